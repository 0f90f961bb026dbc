"""A measured timeline beside a simulated one, against loops over spans."""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from moesim.analysis.validation import STEADY, Validation, compare, spread
from moesim.analysis.validation_file import Error, RankPairs
from moesim.errors import TimelineError
from tests.moesim.moe_timelines import LAYERS, moe_timeline, noisy_seconds
from tests.tolerance import rounding
from traces.timeline import PHASES, Timeline

SHAPE = (4, 2, len(LAYERS), 3)


def validation(shape: tuple[int, int, int, int] = SHAPE, noise: float = 0.01, seed: int = 0) -> Validation:
    rng = np.random.default_rng(seed)
    return compare(
        moe_timeline(noisy_seconds(rng, shape, noise)), moe_timeline(noisy_seconds(rng, (1, *shape[1:])))
    )


def medians(timeline: Timeline, repeats: list[int] | None = None) -> dict[Any, float]:
    """By (quantity, step, layer, rank), from a loop over the spans."""
    spans: dict[Any, list[tuple[float, float]]] = defaultdict(list)
    for row in range(len(timeline)):
        repeat, step = int(timeline.repeat_N[row]), int(timeline.step_N[row])
        layer, rank = int(timeline.layer_N[row]), int(timeline.rank_N[row])
        phase = PHASES[timeline.phase_N[row]]
        edge = float(timeline.start_s_N[row]), float(timeline.end_s_N[row])
        if repeats is not None and repeat not in repeats:
            continue
        spans["step", step, None, None, repeat].append(edge)
        if layer >= 0 and phase in ("router", "combine"):
            spans["layer", step, layer, None, repeat].append(edge)
        if phase != "wait":
            spans[phase, step, layer, rank, repeat].append(edge)
    lengths = defaultdict(list)
    for (*cell, _), edges in spans.items():
        lengths[tuple(cell)].append(max(end for _, end in edges) - min(start for start, _ in edges))
    return {cell: statistics.median(values) for cell, values in lengths.items()}


@pytest.mark.parametrize("shared_expert", [False, True])
def test_errors_and_noise_are_those_of_a_loop_over_spans(shared_expert: bool) -> None:
    rng = np.random.default_rng(7)
    measured = moe_timeline(noisy_seconds(rng, SHAPE, 0.05, shared_expert))
    simulated = moe_timeline(noisy_seconds(rng, (1, *SHAPE[1:]), 0.0, shared_expert), "simulated")
    summary = compare(measured, simulated).summary()
    real, ours = medians(measured), medians(simulated)
    first, second = medians(measured, [0, 1]), medians(measured, [2, 3])
    quantities = {cell[0] for cell in real}
    assert quantities == summary["error"].keys()
    assert ("shared_expert" in quantities) == shared_expert
    for quantity in quantities:
        cells = [cell for cell in real if cell[0] == quantity]
        errors = [(ours[cell] - real[cell]) / real[cell] for cell in cells]
        assert summary["error"][quantity].bias == pytest.approx(statistics.median(errors))
        sizes = [abs(error) for error in errors]
        assert summary["error"][quantity].median == pytest.approx(statistics.median(sizes))
        assert summary["error"][quantity].p95 == pytest.approx(np.percentile(sizes, 95))
        apart = [abs(first[cell] - second[cell]) / 2 / real[cell] for cell in cells]
        assert summary["noise"][quantity].median == pytest.approx(statistics.median(apart))
    for rank, row in enumerate(summary["per_rank"]):
        cells = [cell for cell in real if cell[0] == "experts" and cell[3] == rank]
        assert row.rank == rank
        assert row.seconds["experts"].measured == pytest.approx(np.mean([real[cell] for cell in cells]))
        sizes = [abs(ours[cell] - real[cell]) / real[cell] for cell in cells]
        assert row.error["experts"].median == pytest.approx(statistics.median(sizes))
    for layer, row in zip(LAYERS, summary["per_layer"], strict=True):
        cells = [cell for cell in real if cell[0] == "layer" and cell[2] == layer]
        assert row.layer == layer
        assert row.seconds.simulated == pytest.approx(np.mean([ours[cell] for cell in cells]))
        sizes = [abs(ours[cell] - real[cell]) / real[cell] for cell in cells]
        assert row.error["layer"].median == pytest.approx(statistics.median(sizes))
    for name, table in (("measured", real), ("simulated", ours)):
        ratios = []
        for step, layer in itertools.product(range(SHAPE[1]), LAYERS):
            of_ranks = [table["experts", step, layer, rank] for rank in range(SHAPE[3])]
            ratios.append(max(of_ranks) / statistics.mean(of_ranks))
        assert getattr(summary["straggler_ratio"], name) == pytest.approx(statistics.mean(ratios))


def test_by_hand() -> None:
    """Two ranks, one layer: the simulation takes 10 % too long for experts and half of the dispatch."""
    real = {"router": [1.0, 1.0], "dispatch": [4.0, 2.0], "experts": [10.0, 20.0], "combine": [3.0, 3.0]}
    measured = {phase: np.tile(values, (2, 1, 1, 1)) for phase, values in real.items()}
    ours = real | {"dispatch": [2.0, 1.0], "experts": [11.0, 22.0]}
    simulated = {phase: np.tile(values, (1, 1, 1, 1)) for phase, values in ours.items()}
    summary = compare(moe_timeline(measured, layers=(5,)), moe_timeline(simulated, layers=(5,))).summary()
    assert summary["error"]["experts"].plain() == pytest.approx({"median": 0.1, "p95": 0.1, "bias": 0.1})
    assert summary["error"]["dispatch"].plain() == pytest.approx({"median": 0.5, "p95": 0.5, "bias": -0.5})
    # The layer: 1 + 2 + 20 + 3 on the second rank, whose dispatch is done first; then 1 + 1 + 22 + 3.
    assert summary["error"]["layer"].bias == pytest.approx(27 / 26 - 1)
    assert summary["error"]["step"] == summary["error"]["layer"]
    assert summary["straggler_ratio"].plain() == pytest.approx({"measured": 20 / 15, "simulated": 22 / 16.5})
    assert summary["rank_order_tau"] == 1
    assert summary["rank_order_pairs"] == RankPairs(compared=1, left_out=0)
    assert (summary["ranks"], summary["repeats"]) == (2, 2)


def test_a_cell_of_two_micro_batches_is_what_both_take() -> None:
    seconds = noisy_seconds(np.random.default_rng(3), SHAPE, 0.01)
    first = moe_timeline(seconds)
    late = dataclasses.replace(
        first,
        micro_batch_N=first.micro_batch_N + np.int32(1),
        start_s_N=first.start_s_N + 0.5,
        end_s_N=first.end_s_N + 0.5,
    )
    names = [field.name for field in dataclasses.fields(Timeline) if field.name != "run"]
    both = Timeline(
        "both", **{name: np.concatenate([getattr(each, name) for each in (first, late)]) for name in names}
    )
    alone, found = compare(first, first).measured, compare(both, both).measured
    for phase in ("router", "dispatch", "experts", "combine"):
        np.testing.assert_allclose(found[phase], 2 * alone[phase])
    for lasts in ("layer", "step"):
        np.testing.assert_allclose(found[lasts], alone[lasts] + 0.5)
    with pytest.raises(TimelineError, match=r"must have micro-batch 0 alone, or 0 and 1 \(got 1\)"):
        compare(late, late)


def test_a_run_is_no_different_from_itself() -> None:
    timeline = moe_timeline(noisy_seconds(np.random.default_rng(1), SHAPE, 0.02))
    summary = compare(timeline, timeline).summary()
    assert all(error == Error(median=0, p95=0, bias=0) for error in summary["error"].values())
    assert summary["rank_order_tau"] == 1
    assert summary["straggler_ratio"].measured == summary["straggler_ratio"].simulated


@given(st.integers(0, 1000), st.integers(2, 5), st.booleans())
def test_tau_is_kendalls(seed: int, ranks: int, with_ties: bool) -> None:
    rng = np.random.default_rng(seed)
    shape = (2, 1, len(LAYERS), ranks)
    measured, simulated = noisy_seconds(rng, shape), noisy_seconds(rng, (1, *shape[1:]))
    if with_ties:
        simulated["experts"] = np.round(simulated["experts"] * 1000)
    found = compare(moe_timeline(measured), moe_timeline(simulated))
    pairs = {"concordant": 0, "discordant": 0, "tied": 0}
    for layer in range(len(LAYERS)):
        for a, b in itertools.combinations(range(ranks), 2):
            sign = np.sign(found.measured["experts"][0, layer, a] - found.measured["experts"][0, layer, b])
            sign *= np.sign(found.simulated["experts"][0, layer, a] - found.simulated["experts"][0, layer, b])
            pairs[{1: "concordant", -1: "discordant", 0: "tied"}[int(sign)]] += 1
    order = found.rank_order()
    untied, everything = pairs["concordant"] + pairs["discordant"], sum(pairs.values())
    assert (order.pairs, order.left_out) == (everything, 0)
    if not untied:
        assert order.tau is None
        return
    assert order.tau is not None
    agreement = pairs["concordant"] - pairs["discordant"]
    assert order.tau == pytest.approx(agreement / math.sqrt(untied * everything))
    if not pairs["tied"] and ranks == 2:
        assert order.tau == pytest.approx(agreement / everything)


def test_tau_of_one_step_and_layer_is_scipys() -> None:
    rng = np.random.default_rng(3)
    measured, simulated = noisy_seconds(rng, (2, 1, 1, 9)), noisy_seconds(rng, (1, 1, 1, 9))
    simulated["experts"][0, 0, 0, :3] = simulated["experts"][0, 0, 0, 4]
    found = compare(moe_timeline(measured, layers=(0,)), moe_timeline(simulated, layers=(0,)))
    tau = scipy.stats.kendalltau(found.measured["experts"].ravel(), found.simulated["experts"].ravel())
    assert found.rank_order().tau == pytest.approx(tau.statistic)


def test_pairs_within_the_noise_have_no_order() -> None:
    """The halves of the repeats differ by 10 % everywhere; ranks by 5 % in one layer, by 30 % in another."""
    experts = np.array([1.0, 1.05, 1.0, 1.3]).reshape(1, 1, 2, 2) * np.array([1.0, 1.1]).reshape(2, 1, 1, 1)
    rest = {phase: np.ones((2, 1, 2, 2)) for phase in ("router", "dispatch", "combine")}
    measured = moe_timeline(rest | {"experts": experts}, layers=(0, 1))
    backward = {phase: values[:1] for phase, values in rest.items()} | {"experts": experts[:1, :, :, ::-1]}
    found = compare(measured, moe_timeline(backward, layers=(0, 1)))
    assert found.summary()["noise"]["experts"].p95 == pytest.approx(0.05 / 1.05)
    order = found.rank_order()
    assert (order.tau, order.pairs, order.left_out) == (-1, 1, 1)


@pytest.mark.parametrize(("apart", "steady"), [(0.0, True), (0.03, True), (0.05, False)])
def test_medians_hold_when_the_halves_agree(apart: float, steady: bool) -> None:
    seconds = noisy_seconds(np.random.default_rng(5), (1, *SHAPE[1:]))
    twice = {phase: np.concatenate([values, values * (1 + apart)]) for phase, values in seconds.items()}
    found = compare(moe_timeline(twice), moe_timeline(seconds))
    assert found.steady == steady
    assert found.steady == steady


def test_few_cells_that_do_not_hold_are_enough_to_be_noisy() -> None:
    shape = (2, 10, len(LAYERS), 2)
    seconds = noisy_seconds(np.random.default_rng(5), (1, *shape[1:]))
    twice = {phase: np.concatenate([values, values]) for phase, values in seconds.items()}
    twice["experts"][1, 0] *= 1.2
    found = compare(moe_timeline(twice), moe_timeline(seconds))
    noise = spread(found.noise["experts"])
    assert noise is not None
    assert noise.median < STEADY["median"]
    assert not found.steady


def test_a_single_repeat_proves_nothing() -> None:
    found = validation((1, *SHAPE[1:]))
    summary = found.summary()
    assert (found.steady, summary["noise"]) == (False, {})
    assert summary["rank_order_pairs"].left_out == 0


def test_cells_that_took_no_time_have_no_error() -> None:
    """One rank alone sends nothing: its dispatch may take no time."""
    seconds = noisy_seconds(np.random.default_rng(2), (2, 1, len(LAYERS), 1))
    nothing = seconds | {"dispatch": np.zeros_like(seconds["dispatch"])}
    simulated = moe_timeline({phase: values[:1] for phase, values in seconds.items()})
    summary = compare(moe_timeline(nothing), simulated).summary()
    assert summary["error"]["dispatch"] is None
    assert summary["noise"]["dispatch"] is None
    assert summary["error"]["experts"].median == pytest.approx(0, abs=rounding(10**6))
    assert summary["rank_order_tau"] is None
    assert summary["rank_order_pairs"] == RankPairs(compared=0, left_out=0)


def broken(change: str) -> tuple[Timeline, Timeline]:
    rng = np.random.default_rng(0)
    measured = moe_timeline(noisy_seconds(rng, SHAPE))
    if change == "a span less":
        return measured.select(np.arange(len(measured)) != 5), measured
    if change == "a span twice":
        rows = np.sort(np.append(np.arange(len(measured)), 0))
        return measured.select(rows), measured
    if change == "no combine":
        return measured, measured.select(measured.phase_N != PHASES.index("combine"))
    if change == "empty":
        return measured, measured.select(np.zeros(0, int))
    if change == "a step of the last repeat missing":
        return measured.select((measured.repeat_N < 3) | (measured.step_N == 0)), measured
    if change == "a rank far away":
        rank_N = np.where(measured.rank_N == 2, 2**31 - 1, measured.rank_N).astype(np.int32)
        return dataclasses.replace(measured, rank_N=rank_N), measured
    if change == "other layers":
        return measured, dataclasses.replace(measured, layer_N=(measured.layer_N + 1).astype(np.int32))
    other = {"more ranks": (4, 2, 3, 4), "fewer steps": (4, 1, 3, 3), "a shared expert": SHAPE}[change]
    return measured, moe_timeline(noisy_seconds(rng, other, 0.0, change == "a shared expert"), "simulated")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("a span less", "repeat 0 of measured: must have one span of "),
        ("a span twice", "must have one span of router for each of 2 steps, 3 MoE layers and 3 ranks"),
        ("no combine", "must have one span of combine .*got .0 spans"),
        ("empty", "measured: holds no spans"),
        ("a step of the last repeat missing", "repeat 3 of measured: must be of 2 steps.*got .1 step,"),
        ("a rank far away", "must have one span of router .* and 2147483648 ranks"),
        ("other layers", "the simulation measured: must be of .* 3 layers from 1 on.*3 layers from 2 on"),
        ("more ranks", "the simulation simulated: must be of .* 3 ranks.*4 ranks"),
        ("fewer steps", "must be of 2 steps.*got .1 step,"),
        ("a shared expert", "without a shared expert .*with a shared expert"),
    ],
)
def test_what_cannot_be_compared_is_refused(change: str, message: str) -> None:
    with pytest.raises(TimelineError, match=message):
        compare(*broken(change))
