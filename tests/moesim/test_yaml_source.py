"""YAML with lines: values by the core schema of YAML 1.2, and everything that is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import SpecError
from moesim.spec.yaml_source import MAX_BYTES, MAX_DEPTH, MAX_VALUES, Source, parse_yaml, read_yaml, show_loc

DOCUMENT = """\
# a comment
cluster:
  nodes: 4
  gpu: {name: h800,
        sms: 132}
faults:
  - {gpu: 3}
  -
    gpu: 4
"""


def test_every_part_has_the_line_where_it_stands() -> None:
    source = parse_yaml(DOCUMENT, "s.yaml")
    assert source.value == {
        "cluster": {"nodes": 4, "gpu": {"name": "h800", "sms": 132}},
        "faults": [{"gpu": 3}, {"gpu": 4}],
    }
    assert source.lines == {
        (): 2,
        ("cluster",): 2,
        ("cluster", "nodes"): 3,
        ("cluster", "gpu"): 4,
        ("cluster", "gpu", "name"): 4,
        ("cluster", "gpu", "sms"): 5,
        ("faults",): 6,
        ("faults", 0): 7,
        ("faults", 0, "gpu"): 7,
        ("faults", 1): 9,
        ("faults", 1, "gpu"): 9,
    }


def test_a_missing_part_has_the_line_of_its_nearest_ancestor() -> None:
    source = parse_yaml(DOCUMENT, "s.yaml")
    assert source.line(("cluster", "gpu", "memory")) == 4
    assert source.line(("nothing", "here")) == 2
    assert Source(3, None, {}).line(("a",)) is None


def test_a_source_makes_errors_with_its_place() -> None:
    error = parse_yaml(DOCUMENT, "s.yaml").error("is too slow", ("faults", 1, "gpu"), got=4)
    assert str(error) == "s.yaml:9: faults[1].gpu: is too slow (got 4)"


def test_paths_are_relative_to_the_file() -> None:
    assert Source(None, "configs/s.yaml", {}).path("../x.json") == Path("configs/../x.json")
    assert Source(None, None, {}).path("x.json") == Path("x.json")
    assert Source(None, "configs/s.yaml", {}).path("/x.json") == Path("/x.json")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        ("1.", 1.0),
        ("-.5", -0.5),
        ("+7", 7),
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("on", "on"),
        ("No", "No"),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("", None),
        ("null", None),
        ("'null'", "null"),
        ('"1"', "1"),
        ("2026-11-22", "2026-11-22"),
        (".inf", float("inf")),
        ("-.INF", float("-inf")),
        ("1e999", float("inf")),
        ("<<", "<<"),
        ("=", "="),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: Any) -> None:
    read = parse_yaml(f"key: {text}", None).value["key"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "s.yaml:3: a: duplicate key, first given in line 1"),
        ("a:\n  b: {c: 1, c: 2}\n", "s.yaml:2: a.b.c: duplicate key, first given in line 2"),
        ("a: &x 1\n", "s.yaml:1: a: YAML anchors and aliases are not supported"),
        ("a: [1, *x]\n", "s.yaml:1: a[1]: YAML anchors and aliases are not supported"),
        ("&k a: 1\n", "s.yaml:1: keys must be text"),
        ("a: !!python/object/apply:os.system [ls]\n", "s.yaml:1: a: YAML tags are not supported"),
        ("a: !x 1\n", "s.yaml:1: a: YAML tags are not supported"),
        ("!!str a: 1\n", "s.yaml:1: keys must be text"),
        ("a:\n  1: 2\n", "s.yaml:2: a: keys must be text (got '1')"),
        ("~: 2\n", "s.yaml:1: keys must be text (got '~')"),
        ("? [1, 2]\n: 3\n", "s.yaml:1: keys must be text"),
        ("a: 1\n---\nb: 2\n", "s.yaml:2: holds a second YAML document"),
        ("a: [1, 2\nb: 3\n", "s.yaml:2: is not valid YAML"),
        ("a: 1\n\tb: 2\n", "s.yaml:2: is not valid YAML"),
        ("a: \x00", "s.yaml: is not valid YAML: it holds a character that YAML forbids"),
        ("a: " + "9" * 5000, "s.yaml:1: a: is a number of too many digits"),
        ("\udc80", "s.yaml: is not UTF-8 text"),
    ],
)
def test_what_is_refused_names_its_line(text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_yaml(text, "s.yaml")
    assert str(caught.value).startswith(message)


def test_depth_is_limited_without_using_up_the_stack() -> None:
    deep = "[" * MAX_DEPTH + "1" + "]" * MAX_DEPTH
    parse_yaml(deep, None)
    with pytest.raises(SpecError, match=f"nested deeper than {MAX_DEPTH} levels"):
        parse_yaml(f"[{deep}]", None)
    with pytest.raises(SpecError, match="nested deeper"):
        parse_yaml("[" * 900_000, None)
    with pytest.raises(SpecError, match="nested deeper"):
        parse_yaml("- " * 400_000, None)


def test_the_number_of_values_is_limited() -> None:
    with pytest.raises(SpecError, match=f"more than {MAX_VALUES} values"):
        parse_yaml("[" + "1," * (MAX_VALUES + 1) + "]", None)


def test_an_empty_file_is_no_value() -> None:
    assert parse_yaml("", None).value is None
    assert parse_yaml("# nothing\n", None).value is None


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("a: 1\nb: Größe\n".encode("latin-1"))
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * (MAX_BYTES + 1))
    trace = tmp_path / "trace.parquet"
    trace.write_bytes(b"PAR1\xff" + b"#" * MAX_BYTES)
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    cases = {
        latin: f"{latin}:2: is not UTF-8 text",
        large: f"{large}: is larger than 1 MiB, too large for a specification",
        trace: f"{trace}: is a Parquet file, not a text; a scenario names its trace under trace",
        pipe: f"{pipe}: is not a regular file",
        tmp_path: f"{tmp_path}: is a folder",
        tmp_path / "none.yaml": f"{tmp_path / 'none.yaml'}: there is no such file",
        tmp_path / ("x" * 300): f"{tmp_path / ('x' * 300)}: cannot be read: File name too long",
        latin / "below": f"{latin / 'below'}: cannot be read: Not a directory",
        Path("a\0b"): "is not a file name",
    }
    for path, message in cases.items():
        with pytest.raises(SpecError) as caught:
            read_yaml(path)
        assert str(caught.value).startswith(message)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: x\n")
    assert read_yaml(path).value == {"name": "x"}


def test_places_are_shown_as_they_are_written() -> None:
    assert show_loc(("faults", 0, "clock")) == "faults[0].clock"
    assert show_loc(()) == ""
    assert show_loc(("a\nb", "", "x" * 100)) == "'a\\nb'.''." + "x" * 59 + "…"


_KEYS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cn")), min_size=1, max_size=8)
_SCALARS = st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False) | _KEYS
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=12,
)


@given(_VALUES)
def test_what_pyyaml_writes_reads_back_the_same(value: Any) -> None:
    text = yaml.safe_dump(value, allow_unicode=True, sort_keys=False)
    if "&id" not in text:  # equal empty containers come out as anchors
        assert parse_yaml(text, None).value == value


@given(st.text(max_size=60) | st.text("[]{}:,-?&*!|>'\"%@` \n\tab01#.", max_size=60))
def test_no_text_makes_another_exception(text: str) -> None:
    try:
        source = parse_yaml(text, "s.yaml")
    except SpecError:
        return
    assert all(line >= 1 for line in source.lines.values())
