"""Names from files are text: no markup for rich, no codes for the terminal, no elements of a page."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given

from moesim.report.markup import tag
from moesim.report.table import Table, words
from moesim.report.terminal import bold, bullets, spaced, terminal
from tests.moesim.command import moesim
from tests.moesim.test_report_page import Structure
from tests.moesim.tiny import tiny_scenario
from tests.test_architecture import imported
from tests.traces.random_traces import random_trace
from tests.traces.test_text import ANY_TEXT
from traces.base.text import visible
from traces.trace_writer import write_trace

ROOM = Path(__file__).parents[2] / "moesim"
# Each would end a style, hide a word, colour, retitle, ring, go back, break a line or turn the direction.
EVIL = "[/][bold]:bug:\x1b[31m\x1b]0;t\x07\x9b1m\r\n\t\u202e\u2028"
SEEN = "[/][bold]:bug:\\x1b[31m"


def scenario(here: Path) -> list[object]:
    fields = tiny_scenario(name=EVIL)
    fields["model"]["name"] = EVIL
    (here / "evil.yaml").write_text(json.dumps(fields))  # JSON is YAML
    return ["evil.yaml"]


def trace(here: Path) -> list[object]:
    found = random_trace(layers=(1, 2), lengths=(12,) * 6, categories=(EVIL, "other"))
    meta = replace(found.meta, model=EVIL, origin=EVIL, licence=EVIL)
    write_trace(replace(found, meta=meta), here / "evil.parquet")
    return ["evil.parquet"]


Command = Callable[[Path], list[object]]
SHOWN: dict[str, Command] = {
    "run": lambda here: ["run", *scenario(here), "-o", "out"],
    "whatif": lambda here: [
        *("whatif", *scenario(here), "--vary", f"name=[x, {json.dumps(EVIL)}]", "-o", "out"),
    ],
    "info": lambda here: ["trace", "info", *trace(here)],
    "info --full": lambda here: ["trace", "info", *trace(here), "--full", "-o", "out.html"],
    "place": lambda here: ["place", *trace(here), "--gpus", "4"],
    "place --simulate": lambda here: ["place", *trace(here), "--gpus", "4", "--simulate", *scenario(here)],
}
REFUSED: dict[str, Command] = {
    "a field": lambda here: ["run", *broken(here, {EVIL: 1})],
    "a value": lambda here: ["run", *broken(here, {"network": EVIL})],
    "an override": lambda _: ["run", "s.yaml", "-s", f"network={json.dumps(EVIL)}"],
    "a file": lambda _: ["trace", "info", EVIL],
    "an option": lambda _: ["run", "s.yaml", f"--{EVIL}"],
    "a choice": lambda _: ["place", "t.parquet", "--gpus", "4", "--format", EVIL],
    "a command": lambda _: [EVIL],
    "a command of trace": lambda _: ["trace", EVIL],
}


def broken(here: Path, fields: dict[str, object]) -> list[object]:
    (here / "broken.yaml").write_text(json.dumps(tiny_scenario() | fields))
    return ["broken.yaml"]


def printable(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


@pytest.mark.parametrize("name", SHOWN)
def test_names_are_shown_as_they_are(here: Path, name: str) -> None:
    done = moesim(*SHOWN[name](here))
    assert done.code == 0, done
    assert printable(done.out), done.out
    assert printable(done.err), done.err
    if name != "place":  # which names no model
        assert SEEN in "".join(done.out.split())
    for page in here.rglob("*.html"):
        structure = Structure(page.read_text("utf-8"))
        assert SEEN in "".join(structure.words)
        assert printable("".join(structure.words))


@pytest.mark.parametrize("name", REFUSED)
def test_names_in_messages_are_shown_as_they_are(here: Path, name: str) -> None:
    done = moesim(*REFUSED[name](here))
    assert done.code == 2
    assert not done.out
    assert printable(done.err), done.err
    assert "\\x1b[31m" in "".join(done.err.replace("│", "").split())  # typer draws a box around its own


def test_files_hold_names_exactly(here: Path) -> None:
    assert moesim("run", *scenario(here), "-o", "out").code == 0
    assert json.loads((here / "out/result.json").read_text("ascii"))["scenario"]["name"] == EVIL
    assert yaml.safe_load((here / "out/scenario.yaml").read_text("utf-8"))["name"] == EVIL
    assert json.loads(moesim("run", "evil.yaml", "--json").out)["scenario"]["name"] == EVIL


def test_names_in_a_result_are_shown_as_they_are(here: Path) -> None:
    moesim("run", "s.yaml", "-o", "out")
    result = json.loads((here / "out/result.json").read_text())
    result["scenario"]["name"] = result["trace"]["origin"] = EVIL + "\ud800"  # which JSON alone can hold
    (here / "out/result.json").write_text(json.dumps(result))
    done = moesim("report", "out")
    assert done.code == 0, done
    words = "".join(Structure((here / "out/report.html").read_text("utf-8")).words)
    assert printable(words)
    assert words.count(visible(EVIL + "\ud800")) >= 2


@given(ANY_TEXT)
def test_every_part_of_a_table_is_shown_as_it_is(text: str) -> None:
    table = Table(words(text), [[text]], title=text, caption=text)
    console = terminal()
    console.width = 50 * (10 + len(text))
    with console.capture() as captured:
        for part in [*spaced([text, bold(text), bullets(text, [text]), table])]:
            console.print(part)
    shown, once = captured.get(), visible(text).strip()
    assert printable(shown)
    assert shown.count(once) >= (7 if once else 1)


@given(ANY_TEXT, ANY_TEXT)
def test_elements_hold_text_as_it_is_shown(text: str, attribute: str) -> None:
    element = tag("p", text, title=attribute)
    assert printable(element)
    structure = Structure(element)
    assert "".join(structure.words) == visible(text)
    assert len(structure.elements) == 1


LAYOUT = {"rich.console.RenderableType", "rich.console.Group", "rich.padding.Padding", "rich.table"}
PRINTING = {"print", "echo", "secho", "stdout", "stderr"}
ALLOWED = {
    "report/terminal.py": {"rich.console.Console", "rich.text.Text", "stderr"},
    "report/table.py": {"rich.table.Table"},
    "commands/terminal.py": {"print", "stdout", "stderr", "rich.progress"},
    "commands/cli.py": {"stdout"},  # its encoding
}


@pytest.mark.parametrize("path", sorted(ROOM.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOM)))
def test_only_two_files_reach_the_terminal(path: Path) -> None:
    """Whoever prints goes through ``say``, ``tell``, ``show`` or ``plain``, which show text as it is."""
    source = path.read_text("utf-8")
    nodes = list(ast.walk(ast.parse(source)))
    ways = {node.id for node in nodes if isinstance(node, ast.Name)} & PRINTING
    ways |= {node.attr for node in nodes if isinstance(node, ast.Attribute)} & PRINTING
    rich = {name for name in imported(source) if name.startswith("rich")} - LAYOUT
    ways |= {"rich.progress" if name.startswith("rich.progress.") else name for name in rich}
    assert ways == ALLOWED.get(path.relative_to(ROOM).as_posix(), set())
