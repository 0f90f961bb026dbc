"""What imbalance is said to cost, against what-ifs that remove it: over dispatch modes, skews and homes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.comparison import Comparison, Row
from moesim.analysis.result import simulate_scenario
from moesim.analysis.result_file import Result
from moesim.spec.override import Override
from moesim.spec.scenario import load_scenario

MODES = ("per_expert", "per_gpu", "per_node", "all_gather")
SKEWS = (0.4, 0.8)
UNEQUAL = [64, 192] * 16
"""Tokens of each rank, as many as 128 on each."""

COPIES = {"solver": "eplb", "slots": 288}


def attribution() -> Comparison:
    """Each term beside the what-if that shows it, and each ceiling beside a placement's gain."""
    rows: list[Row] = []
    checks: list[Row] = []
    for mode in MODES:
        even = _run(mode)
        skewed = {skew: _run(mode, **{"trace.synth.skew": skew}) for skew in SKEWS}
        for skew, result in skewed.items():
            rows.append(_row(f"{mode}: skew {skew} instead of 0", result, even))
        unequal = _run(mode, **{"workload.tokens_per_gpu": UNEQUAL})
        rows.append(_row(f"{mode}: 64 or 192 tokens a GPU instead of 128", unequal, even))
        checks += _ceilings(mode, skewed[SKEWS[-1]])
    return Comparison(
        "attribution",
        "our own what-ifs: DeepSeek-V3 on 4 × 8 H800, EP32, 128 tokens a GPU",
        tuple(rows),
        tuple(checks),
        (),
        (
            "measured: how much longer the mean step is; predicted: how much more of it is called imbalance.",
            "Ceilings: measured is what eplb with 288 slots wins, predicted the most that a placement could.",
        ),
    )


def _run(mode: str, **changes: Any) -> Result:
    fields = {"dispatch.mode": mode, **changes}
    overrides = [Override(tuple(key.split(".")), value) for key, value in fields.items()]
    return simulate_scenario(load_scenario(str(Path(__file__).with_name("scenario.yaml")), overrides))[1]


def _row(case: str, worse: Result, better: Result) -> Row:
    longer_s = worse.metrics.step_time_s.mean - better.metrics.step_time_s.mean
    more_s = worse.attribution.imbalance_s - better.attribution.imbalance_s
    return Row(case, "ms", 1e3 * longer_s, 1e3 * more_s)


def _ceilings(mode: str, skewed: Result) -> Iterator[Row]:
    """What more copies won, beside what the skewed run said that a placement could win at most."""
    placed = _run(mode, **{"trace.synth.skew": SKEWS[-1], "placement": COPIES})
    won_s = skewed.metrics.step_time_s.mean - placed.metrics.step_time_s.mean
    assert skewed.ceilings is not None  # every run has them
    if won_s > 0:
        most_s = skewed.ceilings.placements_s
        yield Row(f"{mode}: ceiling at skew {SKEWS[-1]}", "ms", 1e3 * won_s, 1e3 * most_s)
