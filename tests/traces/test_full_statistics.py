"""The full description of a trace against naive counts, by hand, and unchanged where experts are renamed."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import combinations, pairwise, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import traces.trace_writer
from tests.traces.random_traces import any_trace, random_trace
from traces.base.errors import TraceError
from traces.full_statistics import FullStatistics, full_statistics
from traces.interop import load_any
from traces.interop.hints import Hints
from traces.locality import LAGS, STRETCHES, Locality
from traces.meta import TraceMeta
from traces.routing import RoutingTrace
from traces.trace_file import TraceFile
from traces.trace_writer import write_trace


def trace_of(ids: list[list[list[int]]], experts: int, **optional: object) -> RoutingTrace:
    """One request."""
    ids_TLK = np.array(ids, np.uint8)
    tokens, layers, top_k = ids_TLK.shape
    trace = RoutingTrace(
        meta=TraceMeta("hand", experts, top_k, tuple(range(layers)), "", ""),
        ids_TLK=ids_TLK,
        weights_TLK=None,
        request_T=np.zeros(tokens, np.int32),
        position_T=np.arange(tokens, dtype=np.int32),
    )
    return replace(trace, **optional)  # type: ignore[arg-type]


def stretches_of(trace: RoutingTrace) -> list[list[int]]:
    """Maximal runs of tokens without a gap."""
    runs: list[list[int]] = []
    for t in range(trace.tokens):
        follows = (
            t > 0
            and trace.request_T[t] == trace.request_T[t - 1]
            and trace.position_T[t] == trace.position_T[t - 1] + 1
        )
        if follows:
            runs[-1].append(t)
        else:
            runs.append([t])
    return runs


@given(any_trace(), st.sampled_from([1, 2, 5, 100]))
def test_locality_against_sets(trace: RoutingTrace, window: int) -> None:
    found = Locality(trace.meta)
    for part in trace.windows(window):
        found.add(part)
    runs = stretches_of(trace)
    for layer in range(len(trace.meta.layers)):
        chosen_T = [set(row) for row in trace.ids_TLK[:, layer].tolist()]
        for lag, overlap_L in zip(LAGS, found.overlap_DL(), strict=True):
            shared = [
                len(chosen_T[a] & chosen_T[b]) / trace.meta.top_k
                for run in runs
                for a, b in zip(run, run[lag:], strict=False)
            ]
            expected = np.mean(shared) if shared else math.nan
            assert overlap_L[layer] == pytest.approx(expected, nan_ok=True)
        for size, union_L in zip(STRETCHES, found.union_NL(), strict=True):
            unions = [
                len(set().union(*(chosen_T[t] for t in run[start : start + size]))) / trace.meta.experts
                for run in runs
                for start in range(len(run) - size + 1)
            ]
            expected = np.mean(unions) if unions else math.nan
            assert union_L[layer] == pytest.approx(expected, nan_ok=True)


def test_long_stretches_reach_over_the_ring() -> None:
    """More tokens than the longest distance: token t chose expert t mod 129."""
    tokens = 300
    ids_TLK = (np.arange(tokens) % 129).reshape(-1, 1, 1)
    found = Locality(TraceMeta("ring", 129, 1, (0,), "", ""))
    for part in trace_of(ids_TLK.tolist(), 129).windows(50):
        found.add(part)
    assert found.overlap_DL().ravel().tolist() == [0.0] * len(LAGS)
    assert found.union_NL().ravel().tolist() == pytest.approx([size / 129 for size in STRETCHES])


@given(any_trace().filter(lambda trace: trace.meta.experts <= 8))
def test_layers_against_naive_counts(trace: RoutingTrace) -> None:
    found, top_k, experts = full_statistics(trace), trace.meta.top_k, trace.meta.experts
    for index, row in enumerate(found.layers):
        tokens = trace.ids_TLK[:, index].tolist()
        load = [sum(expert in chosen for chosen in tokens) for expert in range(experts)]
        share = [each / sum(load) for each in load if each]
        entropy = -sum(p * math.log(p) for p in share)
        assert row.evenness == pytest.approx(entropy / math.log(experts) if experts > 1 else 1.0)
        pairs = list(combinations(range(experts), 2))
        met = [sum(a in chosen and b in chosen for chosen in tokens) for a, b in pairs]
        weight = [load[a] * load[b] for a, b in pairs]
        if sum(met):
            chance = [each * sum(met) / sum(weight) for each in weight]
            excess = sum(abs(m - c) for m, c in zip(met, chance, strict=True)) / (2 * sum(met))
            assert row.pair_excess == pytest.approx(excess)
        else:
            assert row.pair_excess is None
        for pair in row.pairs:
            at = pairs.index(pair.experts)
            assert pair.tokens == met[at]
            assert pair.lift == pytest.approx(met[at] / chance[at])
            assert pair.lift > 1
        if trace.weights_TLK is not None and top_k > 1:
            entropies = []
            for weights in trace.weights_TLK[:, index].astype(float).tolist():
                p = [each / sum(weights) for each in weights if each]
                entropies.append(-sum(each * math.log(each) for each in p) / math.log(top_k))
            assert row.gate_entropy == pytest.approx(np.mean(entropies))
        else:
            assert row.gate_entropy is None
    assert found.layers[-1].next_layer_bits is None


@given(any_trace().filter(lambda trace: trace.meta.experts <= 8 and trace.tokens > 1))
def test_parts_and_categories_against_naive_counts(trace: RoutingTrace) -> None:
    found = full_statistics(trace)
    parts = min(8, trace.tokens)
    part_T = [t * parts // trace.tokens for t in range(trace.tokens)]
    assert [part.tokens for part in found.parts] == [part_T.count(p) for p in range(parts)]
    code_T = None if trace.category_T is None else trace.category_T.tolist()
    groups = [(part, [t for t, p in enumerate(part_T) if p == i]) for i, part in enumerate(found.parts)]
    if code_T is not None:
        codes = {name: code for code, name in enumerate(trace.categories)}
        groups += [
            (row, [t for t, code in enumerate(code_T) if code == codes[row.name]])
            for row in found.categories
            if row.name
        ]
        assert sum(row.tokens for row in found.categories) == trace.tokens
    for row, members in groups:
        distances = []
        rest = [t for t in range(trace.tokens) if t not in members]
        for layer in range(len(trace.meta.layers)):
            loads = [
                np.bincount(trace.ids_TLK[side, layer].ravel(), minlength=trace.meta.experts)
                / max(1, len(side) * trace.meta.top_k)
                for side in (members, rest)
            ]
            distances.append(np.abs(loads[0] - loads[1]).sum() / 2)
        assert row.distance == (pytest.approx(np.mean(distances)) if rest else None)


@example(trace_of([[pair] for pair in ([3, 2], [3, 1], [1, 3], [0, 3], [0, 1], [0, 4])], 5), 0)
@given(any_trace().filter(lambda trace: trace.meta.experts <= 8), st.integers(0, 99))
def test_names_of_experts_do_not_matter(trace: RoutingTrace, seed: int) -> None:
    renamed = np.random.default_rng(seed).permutation(trace.meta.experts).astype(trace.ids_TLK.dtype)
    other = replace(
        trace,
        meta=replace(trace.meta, candidates=0),
        ids_TLK=renamed[trace.ids_TLK],
        candidate_ids_TLC=None,
        candidate_scores_TLC=None,
    )
    found, again = full_statistics(trace), full_statistics(other)
    for one, two in zip(found.layers, again.layers, strict=True):
        assert one.evenness == pytest.approx(two.evenness)
        assert one.pair_excess == pytest.approx(two.pair_excess)
        assert one.next_layer_bits == pytest.approx(two.next_layer_bits)
        # Of pairs that met equally often beyond chance, names say which comes first.
        beyond = [[pair.tokens * (1 - 1 / pair.lift) for pair in each.pairs] for each in (one, two)]
        assert beyond[0] == pytest.approx(beyond[1])
    assert found.distances == again.distances
    for one_part, two_part in zip(found.parts, again.parts, strict=True):
        assert one_part.distance == pytest.approx(two_part.distance)


def test_what_the_next_layer_tells() -> None:
    """Four experts, one of them each: fully determined is 2 bits, all combinations are none."""
    determined = [[[e], [(e + 1) % 4]] for e in range(4)] * 1000
    free = [[[a], [b]] for a, b in product(range(4), repeat=2)] * 250
    bias = 9 / (2 * 4000 * math.log(2))
    assert full_statistics(trace_of(determined, 4)).layers[0].next_layer_bits == pytest.approx(2 - bias)
    assert full_statistics(trace_of(free, 4)).layers[0].next_layer_bits == 0


def test_company_is_found_and_named() -> None:
    """Tokens choose two of {0, 1, 2}, or 3 and 4; nobody mixes."""
    chosen = [[0, 1], [1, 2], [0, 2], [3, 4]] * 5
    (layer,) = full_statistics(trace_of([[pair] for pair in chosen], 6)).layers
    assert (layer.clustered, layer.largest_cluster) == (5 / 6, 3)
    best = layer.pairs[0]
    # Loads 10, 10, 10, 5, 5: the products of pairs sum to 3·100 + 6·50 + 25 = 625, the meetings to 20.
    assert (best.experts, best.tokens) == ((3, 4), 5)
    assert best.lift == pytest.approx(5 / (25 * 20 / 625))
    assert layer.pair_excess == pytest.approx((15 - 9.6 + 5 - 0.8) / 20)


def test_drift_against_chance() -> None:
    """A trace that changes in its middle drifts; one that does not is where chance puts it."""
    rng = np.random.default_rng(0)
    still = rng.integers(0, 8, (8000, 1, 1))
    turned = np.where(np.arange(8000)[:, None, None] < 4000, still % 4, still)
    for part in full_statistics(trace_of(still.tolist(), 8)).parts:
        assert part.distance is not None
        assert part.by_chance is not None
        assert 0.3 * part.by_chance < part.distance < 2 * part.by_chance
    found = full_statistics(trace_of(turned.tolist(), 8)).parts
    assert all((part.distance or 0) > 5 * (part.by_chance or 0) for part in found)


def test_one_category_and_one_token_have_nothing_to_differ_from() -> None:
    found = full_statistics(random_trace(lengths=(1,), categories=("a",)))
    assert [part.distance for part in (*found.parts, *found.categories)] == [None, None]
    assert [(row.overlap, row.union is None) for row in found.distances][:2] == [(None, False), (None, True)]


def test_windows_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = random_trace(lengths=(40, 3, 50), candidates=4, categories=("a", "b"))
    monkeypatch.setattr(traces.trace_writer, "WINDOW_TOKENS", 7)
    write_trace(trace, tmp_path / "t.parquet")
    with TraceFile(tmp_path / "t.parquet") as file:
        windowed = full_statistics(file)
    found, again = windowed.to_dict(), full_statistics(trace).to_dict()
    # Sums of floats over windows round differently.
    for one, two in zip(found["full"]["layers"], again["full"]["layers"], strict=True):
        assert one.pop("gate_entropy") == pytest.approx(two.pop("gate_entropy"))
    assert found == again


def test_json_holds_it() -> None:
    found = full_statistics(random_trace(lengths=(20, 20), categories=("a",)), ep=2)
    full = json.loads(json.dumps(found.to_dict()))["full"]
    assert np.array(full["load"]).sum() == 40 * 2 * 2
    assert [row["layer"] for row in full["layers"]] == [1, 3]


def test_more_pairs_than_memory_are_refused() -> None:
    trace = random_trace(experts=65_536, layers=tuple(range(40)), lengths=(1,))
    with pytest.raises(TraceError, match="counting all pairs of 65536 experts in 40 layers needs"):
        full_statistics(trace)


@pytest.fixture(scope="module")
def gpt_oss(shared: Path) -> FullStatistics:
    trace = load_any(shared / "data/gptoss20b/decode_routing.npz", Hints(model="gpt-oss-20b", experts=32))
    return full_statistics(trace.select_requests(0, 60))


@pytest.mark.shared
def test_real_routing_is_nothing_like_independent_draws(gpt_oss: FullStatistics) -> None:
    """Overlap falls with distance, and pairs, layers, subjects and time depend on each other."""
    overlaps = [row.overlap or 0.0 for row in gpt_oss.distances]
    assert all(near > far for near, far in pairwise(overlaps))
    assert overlaps[0] > 0.4
    assert all((row.pair_excess or 0.0) > 0.15 for row in gpt_oss.layers)
    assert all((row.next_layer_bits or 0.0) > 0.1 for row in gpt_oss.layers[:-1])
    assert all((part.distance or 0.0) > 2 * (part.by_chance or 1.0) for part in gpt_oss.parts)
