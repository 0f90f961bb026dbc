"""Statistics against naive versions, in windows or at once, and the known facts of real routing."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import traces.statistics
import traces.trace_writer
from tests.tolerance import rounding
from tests.traces.random_traces import any_trace, random_trace
from traces.base.errors import TraceError
from traces.counting import Sample
from traces.interop import load_any
from traces.interop.hints import Hints
from traces.load_table import LoadTable
from traces.meta import TraceMeta
from traces.routing import RoutingTrace
from traces.statistics import expert_loads, gini, gpu_statistics, table_statistics, trace_statistics
from traces.trace_file import TraceFile
from traces.trace_writer import write_trace


def by_hand() -> RoutingTrace:
    """Two requests, one layer, 4 experts, top-2. Loads: 4, 3, 2, 1."""
    ids = [[0, 1], [1, 0], [0, 2], [0, 1], [3, 2]]
    return RoutingTrace(
        meta=TraceMeta("hand", 4, 2, (7,), "", ""),
        ids_TLK=np.array(ids, np.uint8).reshape(5, 1, 2),
        weights_TLK=None,
        request_T=np.array([0, 0, 0, 1, 1], np.int32),
        position_T=np.array([0, 1, 2, 0, 1], np.int32),
        category_T=np.array([1, 1, 1, -1, -1], np.int32),
        categories=("code", "chat"),
    )


def test_a_case_worked_by_hand() -> None:
    found = trace_statistics(by_hand(), ep=2)
    (layer,) = found.layers
    assert layer.layer == 7
    assert layer.max_over_mean == 4 / 2.5
    assert layer.gini == pytest.approx((-3 * 1 - 1 * 2 + 1 * 3 + 3 * 4) / (4 * 10))
    assert layer.never_activated == 0
    # Pairs: {0,1}→{1,0} share 2, {1,0}→{0,2} share 1, then {0,1}→{3,2} of the next request 0.
    assert layer.overlap == found.overlap == 3 / 6
    # Chances of 0.8, 0.6, 0.4 and 0.2 that a token has an expert: (0.64 + 0.36 + 0.16 + 0.04) / 2.
    assert found.overlap_by_chance == pytest.approx(0.6)
    assert found.gpus is not None
    assert found.gpus.straggler_ratio == 7 / 5
    assert found.gpus.balancedness == pytest.approx(5 / 7)
    assert (found.tokens, found.requests, found.assignments, found.weights) == (5, 2, 10, False)
    assert found.categories == {"": 2, "chat": 3}
    assert found.batches == ()


def test_a_gap_in_positions_is_no_neighbour() -> None:
    trace = replace(by_hand(), position_T=np.array([0, 4, 9, 0, 8], np.int32))
    assert trace_statistics(trace).overlap is None


@given(any_trace())
def test_loads_and_overlap_against_naive_counts(trace: RoutingTrace) -> None:
    experts = trace.meta.experts
    load_LE = expert_loads(trace)
    for row in range(len(trace.meta.layers)):
        counts = Counter(trace.ids_TLK[:, row].ravel().tolist())
        assert load_LE[row].tolist() == [counts[expert] for expert in range(experts)]
    shares = [
        len(set(before.tolist()) & set(after.tolist())) / trace.meta.top_k
        for t in range(1, trace.tokens)
        for before, after in zip(trace.ids_TLK[t - 1], trace.ids_TLK[t], strict=True)
        if trace.request_T[t - 1] == trace.request_T[t]
    ]
    found = trace_statistics(trace).overlap
    assert found == (pytest.approx(np.mean(shares)) if shares else None)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12).filter(any))
def test_gini_against_its_definition(loads: list[int]) -> None:
    differences = sum(abs(a - b) for a in loads for b in loads)
    expected = differences / (2 * len(loads) ** 2 * np.mean(loads))
    assert gini(np.array(loads)) == pytest.approx(expected, abs=rounding(1000))


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 2**32))
def test_gpu_loads_against_naive_sums(gpus: int, each: int, seed: int) -> None:
    load_LE = np.random.default_rng(seed).integers(1, 100, (3, gpus * each))
    ratios, balances = [], []
    for load_E in load_LE.tolist():
        loads = [sum(load_E[gpu * each : (gpu + 1) * each]) for gpu in range(gpus)]
        mean = sum(loads) / gpus
        ratios.append(max(loads) / mean)
        balances.append((mean + 1e-5) / (max(loads) + 1e-5))
    found = gpu_statistics(load_LE, gpus)
    assert found.straggler_ratio == pytest.approx(np.mean(ratios))
    assert found.balancedness == pytest.approx(np.mean(balances))


def test_windows_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces.trace_writer, "WINDOW_TOKENS", 7)
    trace = random_trace(lengths=(40, 3, 50), candidates=4, categories=("a", "b"))
    write_trace(trace, tmp_path / "t.parquet")
    with TraceFile(tmp_path / "t.parquet") as file:
        assert trace_statistics(file, ep=4) == trace_statistics(trace, ep=4)


def test_batches_against_the_tokens_that_they_drew(monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch of all tokens is the whole trace, in whatever order it was drawn."""
    monkeypatch.setattr(traces.statistics, "BATCH_SIZES", (4, 60, 61))
    trace = random_trace(lengths=(60,))
    found = trace_statistics(trace, ep=2)
    small, whole = found.batches
    assert (small.tokens, whole.tokens) == (4, 60)
    assert whole.max_over_mean == pytest.approx(np.mean([layer.max_over_mean for layer in found.layers]))
    assert whole.gpus == found.gpus
    assert whole.activated == 1
    assert small.max_over_mean > whole.max_over_mean
    assert trace_statistics(trace, seed=1).batches[0] != trace_statistics(trace, seed=2).batches[0]


def test_a_window_of_a_batch_is_the_tokens_asked_for() -> None:
    """Each drawn token must be the one at its index: a trace in which token t routes to expert t."""
    tokens = 300
    trace = RoutingTrace(
        meta=TraceMeta("identity", 300, 1, (0,), "", ""),
        ids_TLK=np.arange(tokens, dtype=np.uint16).reshape(-1, 1, 1),
        weights_TLK=None,
        request_T=np.zeros(tokens, np.int32),
        position_T=np.arange(tokens, dtype=np.int32),
    )
    sample = Sample(tokens, (16, 256), 5)
    for window in trace.windows(7):
        sample.add(window, int(window.position_T[0]))
    rng = np.random.default_rng(5)
    for batches in sample.batches():
        for batch_TLK in batches:
            assert batch_TLK.ravel().tolist() == rng.choice(tokens, len(batch_TLK), replace=False).tolist()


def test_json_holds_it() -> None:
    found = trace_statistics(random_trace(lengths=(20, 20), categories=("a",)), ep=2)
    assert json.loads(json.dumps(found.to_dict()))["meta"]["layers"] == [1, 3]
    loads = table_statistics(LoadTable("m", 4, (3,), np.array([[[1, 2, 3, 4]]])), ep=2)
    assert json.loads(json.dumps(loads.to_dict()))["gpus"]["straggler_ratio"] == 1.4


def test_a_table_has_the_loads_of_its_trace() -> None:
    trace = random_trace(lengths=(20, 20))
    table = LoadTable("tiny", 8, (1, 3), expert_loads(trace)[None])
    of_table, of_trace = table_statistics(table, ep=4), trace_statistics(trace, ep=4)
    assert of_table.gpus == of_trace.gpus
    assert [replace(layer, overlap=None) for layer in of_trace.layers] == list(of_table.layers)
    assert of_table.assignments == of_trace.assignments


@pytest.mark.parametrize("ep", [0, -1, 3, 16])
def test_gpus_that_do_not_divide_are_refused(ep: int) -> None:
    with pytest.raises(TraceError, match=rf"ep: must divide 8 experts \(got {ep}\)"):
        trace_statistics(random_trace(), ep=ep)


@pytest.mark.shared
def test_known_facts_of_gpt_oss(shared: Path) -> None:
    """Figures that the data set's own description states."""
    trace = load_any(shared / "data/gptoss20b/decode_routing.npz", Hints(model="gpt-oss-20b", experts=32))
    found = trace_statistics(trace, ep=8)
    assert (found.tokens, found.requests, found.assignments) == (70_558, 212, 70_558 * 24 * 4)
    assert found.max_over_mean_median == pytest.approx(2.76, abs=0.005)
    assert found.max_over_mean_worst == pytest.approx(4.2, abs=0.05)
    assert found.overlap == pytest.approx(0.43, abs=0.01)
    for batch, stated in zip(found.batches, (3.6, 3.1, 3.0), strict=True):
        assert batch.max_over_mean == pytest.approx(stated, abs=0.1)
    assert 0.15 < asdict(found)["overlap_by_chance"] < 0.25
