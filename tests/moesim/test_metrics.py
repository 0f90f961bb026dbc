"""Means and percentiles over steps and layers, on steps whose lengths are known."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.analysis import metrics
from moesim.analysis.cube import step_times
from moesim.analysis.execution_file import ExecutionMetrics
from moesim.analysis.metrics import routing_metrics, timeline_metrics
from moesim.analysis.result_file import Metrics
from moesim.hardware.network import Ports
from moesim.live.measured import over_repeats
from moesim.simulation.conditions import Conditions
from moesim.simulation.loop import simulate
from moesim.simulation.program import in_sequence
from moesim.simulation.recording import Recording
from moesim.simulation.tally import Tally
from tests.moesim.command import moesim
from tests.moesim.programs import SLOW, collective, compute
from tests.tolerance import rounding
from traces.timeline import Timeline, read_timeline, read_work


def recorded(steps: Sequence[Sequence[float]]) -> Timeline:
    """A run of two ranks; each step is the seconds that the experts of its layers take."""
    programs = [
        in_sequence(
            [
                each
                for layer, seconds in enumerate(layers)
                for each in (
                    collective("dispatch", layer, [[0.0, 0.0], [0.0, 0.0]]),
                    compute("experts", layer, seconds, seconds / 2),
                    collective("combine", layer, [[0.0, 0.0], [0.0, 0.0]]),
                )
            ]
        )
        for layers in steps
    ]
    recording = Recording("metrics", range(len(steps[0])))
    for step, clock in enumerate(simulate(programs, 2, Conditions([Ports(SLOW)]))):
        recording.add_step(step, clock, programs[step].operations)
    return recording.timeline()


def percentile(values: Sequence[float], q: float) -> float:
    """Between the two ranks around q of the way from the smallest to the largest, linearly."""
    ordered = sorted(values)
    place = q / 100 * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def test_percentiles_by_hand() -> None:
    """Steps of 10, 1, 3 and 2 s: the median lies between 2 and 3, 95 % at 3 + 0.85 · 7."""
    found = timeline_metrics(recorded([[10.0], [1.0], [3.0], [2.0]]), tokens_per_step=8)
    assert found["step_time_s"] == pytest.approx({"mean": 4.0, "p50": 2.5, "p95": 8.95, "p99": 9.79})
    assert found["tokens_per_s"] == pytest.approx(2.0)
    assert found["layer_time_s"] == pytest.approx({"mean": 4.0, "p95": 8.95})


lengths = st.floats(0.1, 10.0)


@given(
    steps=st.integers(1, 3).flatmap(lambda n: st.lists(st.lists(lengths, min_size=n, max_size=n), min_size=1))
)
def test_percentiles_are_those_of_steps_and_of_all_layers_of_all_steps(steps: list[list[float]]) -> None:
    timeline = recorded(steps)
    whole = [sum(layers) for layers in steps]
    single = [seconds for layers in steps for seconds in layers]
    np.testing.assert_allclose(step_times(timeline), whole, rtol=rounding(10**6))
    found = timeline_metrics(timeline, tokens_per_step=1)
    expected = {"mean": sum(whole) / len(whole)} | {f"p{q}": percentile(whole, q) for q in (50, 95, 99)}
    assert found["step_time_s"] == pytest.approx(expected, rel=rounding(10**6))
    expected = {"mean": sum(single) / len(single), "p95": percentile(single, 95)}
    assert found["layer_time_s"] == pytest.approx(expected, rel=rounding(10**6))
    # A rank takes half as long in every layer of every step: max over mean is 1 / 0.75.
    assert found["straggler_ratio"]["experts_time"] == pytest.approx(4 / 3, rel=rounding(10**6))


def test_of_no_gate_mass_no_share_is_lost() -> None:
    """A trace may hold weights that are all 0."""
    tally = Tally(wished=4, kept=3, dropped=1, gate_mass=0.0, gate_mass_lost=0.0)
    assert routing_metrics(tally)["gate_mass_lost"] is None
    tally = Tally(wished=4, kept=3, dropped=1, gate_mass=2.0, gate_mass_lost=0.5)
    assert routing_metrics(tally)["gate_mass_lost"] == 0.25


def test_a_metric_is_declared_once(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    """An entry of the list, and what computes it: it stands in the JSON, in the terminal and on the page."""

    hottest = metrics.OfSteps(
        lambda spans: spans.assignments_WLG.max(axis=(1, 2)), lambda most_W, _: float(most_W.max())
    )

    def number(found: Metrics) -> float | None:
        return found.number("hottest_cell")

    figure = metrics.Figure("hottest cell", "1/s", number, lambda _: "so it is")
    entry = metrics.Metric("hottest_cell", hottest, figure=figure)
    monkeypatch.setattr(metrics, "METRICS", (*metrics.METRICS, entry))
    assert moesim("run", "s.yaml", "-o", "out").code == 0
    value = json.loads((here / "out" / "result.json").read_text("utf-8"))["metrics"]["hottest_cell"]
    assert value > 0
    line = rf"hottest cell +{value:,.0f}  so it is"
    assert re.search(line, moesim("run", "s.yaml").out)
    pages = []
    for _ in range(2):
        pages.append((here / "out" / "report.html").read_text("utf-8"))
        assert f"<dt>hottest cell</dt><dd>{value:,.0f}</dd>" in pages[-1]
        assert moesim("report", "out").code == 0
    assert pages[0] == pages[1]


def test_a_metric_of_spans_is_one_of_real_runs_too() -> None:
    """Medians over the repeats, number by number; unknown where one repeat does not know it."""
    repeats = [
        {"cells": [1.0, 4.0], "share": None, "nested": {"a": 3.0}, "balancedness": each}
        for each in (0.5, 0.7)
    ]
    found = over_repeats(repeats)
    assert found == {
        "cells": [1.0, 4.0],
        "share": None,
        "nested": {"a": 3.0},
        "balancedness": pytest.approx(0.6),
    }
    ratio = {"assignments": 1.0, "experts_time": 1.0}
    read = ExecutionMetrics.model_validate({"straggler_ratio": ratio, **found})
    assert read.plain()["cells"] == [1.0, 4.0]


@pytest.mark.usefixtures("here")
def test_a_long_run_keeps_few_steps_and_measures_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics are those of a run that keeps every step; what is kept whole are every third."""
    monkeypatch.setattr("moesim.simulation.recording._BLOCK", 100)
    ask = ("run", "s.yaml", "-s", "workload.steps=8", "-s", "workload.tokens_per_gpu=[3, 5, 2, 7]")
    whole = json.loads(moesim(*ask, "--json").out)
    few = json.loads(moesim(*ask, "-s", "workload.timeline_every=3", "--json", "-o", "few").out)
    for key, value in metrics_of(whole).items():
        assert metrics_of(few)[key] == pytest.approx(value, rel=rounding(10**4)), key
    assert np.unique(read_timeline("few/timeline.parquet").step_N).tolist() == [0, 3, 6]
    assert np.unique(read_work("few/work.parquet").step_N).tolist() == [0, 3, 6]
    terms = few["attribution"]
    parts = ("hardware_s", "migration_s", "imbalance_s", "network_s", "overhead_s", "ideal_s")
    step_s = few["metrics"]["step_time_s"]["mean"]
    assert sum(terms[part] for part in parts) == pytest.approx(step_s, rel=rounding(10**4))
    assert "Of 8 steps one in 3 is kept whole" in " ".join(few["notes"])
    assert not any("kept whole" in note for note in whole["notes"])
    assert moesim("report", "few").code == 0


def metrics_of(result: dict[str, Any]) -> dict[str, float]:
    """Every number, by its path."""
    found: dict[str, float] = {}

    def walk(value: Any, path: str) -> None:
        for key, each in value.items() if isinstance(value, dict) else ():
            walk(each, f"{path}.{key}")
        if isinstance(value, int | float):
            found[path] = value

    walk(result["metrics"], "metrics")
    return found
