"""Results read back: whatever passes the check can be shown, whatever does not is one clear error."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moesim.analysis.result_file import Comparison, Result
from moesim.errors import MoesimError
from moesim.report.console import run_tables, whatif_table
from moesim.report.html import run_page, whatif_page
from tests.moesim.report_example import example_comparison, example_run

JUNK: list[Any] = [
    None,
    -1,
    0,
    "x",
    [],
    {},
    [None],
    float("nan"),
    float("inf"),
    True,
    10**30,
    1e300,
    [[1], "a"],
]


def written(content: Any, folder: Path) -> Path:
    path = folder / "result.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def paths(value: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every place in a tree of objects and lists; of a list only its first item."""
    if at:
        yield at
    if isinstance(value, dict):
        for key in value:
            yield from paths(value[key], (*at, key))
    elif isinstance(value, list) and value:
        yield from paths(value[0], (*at, 0))


def mutants(content: Any) -> Iterator[Any]:
    """The content with each place removed, and with each place replaced by each kind of junk."""
    for at in paths(content):
        for junk in [*JUNK, "remove"]:
            mutant = copy.deepcopy(content)
            parent = mutant
            for key in at[:-1]:
                parent = parent[key]
            if junk == "remove":
                del parent[at[-1]]
            else:
                parent[at[-1]] = junk
            yield mutant


def test_a_result_is_read_back_whole(tmp_path: Path) -> None:
    result = example_run()[0]
    assert Result.read(written(result, tmp_path)).plain() == result
    comparison = example_comparison(result)
    assert Comparison.read(written(comparison, tmp_path)).plain() == comparison


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda result: result["scenario"]["cluster"].update(nodes=0),
            "scenario.cluster.nodes: must be at least 1 (got 0)",
        ),
        (lambda result: result["stragglers"][1].pop("load"), "stragglers.1.load: is missing"),
        (lambda result: result["stragglers"][1].update(cause="luck"), "stragglers.1.cause: must be one of"),
        (
            lambda result: result["attribution"].update(ideal_s=None),
            "attribution.ideal_s: must be a number (got None)",
        ),
        (lambda result: result["scenario"].update(overlap=3), "scenario.overlap"),
        (lambda result: result["scenario"].update(rebalance="x"), "scenario.rebalance: must be a mapping"),
        (
            lambda result: result["metrics"]["phase_time_s"].update(wait=-1e308),
            "metrics.phase_time_s.wait: must lie between -1e+30 and 1e+30",
        ),
        (lambda result: result["provenance"].update(seed=10**400), "provenance.seed: must lie between"),
        (lambda result: result.update(format="moesim.result/2"), "format: needs a newer moesim"),
        (lambda result: result.update(format="moesim.plan/1"), "format: is not a moesim result"),
    ],
)
def test_an_error_names_the_field(tmp_path: Path, change: Any, message: str) -> None:
    result = copy.deepcopy(example_run()[0])
    change(result)
    path = written(result, tmp_path)
    with pytest.raises(MoesimError) as error:
        Result.read(path)
    assert str(error.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[1]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a": 1' + b"0" * 5000]
)
def test_what_is_no_result(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "result.json"
    path.write_bytes(raw)
    with pytest.raises(MoesimError):
        Result.read(path)
    with pytest.raises(MoesimError, match="is a folder, a moesim result was expected"):
        Result.read(tmp_path)


def test_what_passes_the_check_can_be_shown(tmp_path: Path) -> None:
    """Over a thousand broken results: a clear error on reading, or a page and tables."""
    result, timeline, work = example_run(layers=2, gpus=2, steps=1)
    shown = refused = 0
    for mutant in mutants(result):
        path = written(mutant, tmp_path)
        try:
            content = Result.read(path)
        except MoesimError as error:
            assert str(error).startswith(str(path))  # noqa: PT017 - either outcome is right
            refused += 1
            continue
        try:
            run_page(content, timeline, work)
        except MoesimError as error:
            assert "the GPUs of the scenario" in str(error)  # noqa: PT017 - a smaller cluster than the run's
        run_tables(content)
        shown += 1
    assert refused > 500
    assert shown > 100


def test_a_comparison_that_passes_the_check_can_be_shown(tmp_path: Path) -> None:
    comparison = example_comparison(example_run(layers=2, gpus=2, steps=1)[0])
    shown = refused = 0
    for mutant in mutants({key: comparison[key] for key in ("format", "points")}):
        path = written(comparison | mutant, tmp_path)
        try:
            content = Comparison.read(path)
        except MoesimError:
            refused += 1
            continue
        whatif_page(content)
        whatif_table(content)
        shown += 1
    assert refused > 100
    assert shown > 20
