"""What commands share: options, progress on stderr, results on stdout. Only commands print."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from traces.base.errors import MoesimError
from traces.base.text import to_json, visible
from traces.sample import SAMPLE_NAME, SAMPLE_TRACE

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn, TaskID

    from moesim.spec.override import Override

ScenarioName = Annotated[str, typer.Argument(metavar="SCENARIO", help="A YAML file or the name of a preset.")]
Set = Annotated[
    list[str] | None, typer.Option("-s", metavar="KEY=VALUE", help="Set a field, in YAML; may be repeated.")
]
Samples = Annotated[
    int,
    typer.Option(
        "--samples",
        metavar="N",
        help="Draw N profiles within their uncertainties, for 90 % intervals; 0, the default, draws none.",
    ),
]
Out = Annotated[Path | None, typer.Option("-o", metavar="OUT", help="Write the files to this folder.")]
# What remains is told from the speed of so long: one point may take minutes.
_SPEED_S = 3600.0

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]


def trace_path(name: str) -> Path:
    """The file called ``name``, or the built-in sample where that is its name and no file is called so."""
    path = Path(name)
    return SAMPLE_TRACE if name == SAMPLE_NAME and not path.exists() else path


def overrides(texts: list[str] | None) -> list[Override]:
    from moesim.spec.override import Override

    return [Override.parse(text) for text in texts or []]


def command_line(
    name: str, scenario: str, set_: list[str] | None, vary: list[str] | None = None, *others: str
) -> str:
    """The command that repeats this run; where the files went does not matter to it."""
    import shlex

    options = [part for text in set_ or [] for part in ("-s", text)]
    options += [part for text in vary or [] for part in ("--vary", text)]
    return shlex.join(["moesim", name, scenario, *options, *others])


def asked_samples(samples: int) -> list[str]:
    """The option as it was given, if it was."""
    return ["--samples", str(samples)] if samples else []


@contextlib.contextmanager
def faults_of(scenario: str) -> Iterator[None]:
    """Name the scenario in a fault that no single file or option has."""
    try:
        yield
    except MoesimError as error:
        error.file = error.file or scenario
        raise


class Advance(Protocol):
    """Adds so much to a progress bar."""

    def __call__(self, part: float = 1.0) -> None: ...


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Advance]:
    """A bar on stderr with the time that remains, gone when done; silent where stderr is no terminal."""
    from rich.progress import BarColumn, TaskProgressColumn, TimeRemainingColumn

    columns = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with _bar(what, total, *columns) as (bar, task):

        def advance(part: float = 1.0) -> None:
            bar.advance(task, part)

        yield advance


@contextlib.contextmanager
def spinner(what: str) -> Iterator[Callable[[str], None]]:
    """A line on stderr for work of unknown length, gone when done; yields what changes its text."""
    from rich.progress import SpinnerColumn, TimeElapsedColumn

    with _bar(what, None, TimeElapsedColumn(), before=SpinnerColumn()) as (bar, task):
        yield lambda text: bar.update(task, description=visible(text))


@contextlib.contextmanager
def _bar(
    what: str, total: int | None, *columns: ProgressColumn, before: ProgressColumn | None = None
) -> Iterator[tuple[Progress, TaskID]]:
    from rich.progress import Progress, TextColumn

    from moesim.report.terminal import terminal

    first = () if before is None else (before,)
    text = TextColumn("{task.description}", markup=False)
    bar = Progress(
        *first,
        text,
        *columns,
        console=terminal(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
        speed_estimate_period=_SPEED_S,
    )
    with bar:
        yield bar, bar.add_task(visible(what), total=total)


def say(line: object) -> None:
    """One line of the result, on stdout."""
    print(visible(str(line)), flush=True)


def tell(line: object) -> None:
    """One line about the work, on stderr."""
    print(visible(str(line)), file=sys.stderr, flush=True)


def show(value: dict[str, Any], tables: Callable[[], list[Any]], as_json: bool, out: Path | None) -> None:
    """The result on stdout; where its files are on stderr."""
    if as_json:
        say(to_json(value))
    else:
        from moesim.report.terminal import terminal

        console = terminal()
        for table in tables():
            console.print(table)
    sys.stdout.flush()
    if out is not None:
        tell(f"report: {out / 'report.html'}")
