"""Dropping by score: a naive oracle, the properties it must keep, cases worked by hand."""

from __future__ import annotations

import itertools
import math
from decimal import Decimal
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import PolicyError
from moesim.routing.drop import Drop
from moesim.routing.none import NoPolicy
from moesim.routing.policy import NO_EXPERT, Batch, Outcome
from tests.tolerance import rounding

WEIGHTS = [0.0, -0.0, 0.25, 0.5, 0.5000001, 1.0, -1.0, 1e-40]
"""Few values, so that ties are common; both zeros, a subnormal, and a negative one."""


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """Any small batch: places without an expert, ranks without tokens, tied weights."""
    experts = draw(st.integers(1, 6))
    top_k = draw(st.integers(1, min(experts, 4)))
    tokens_G = draw(st.lists(st.integers(0, 12), min_size=1, max_size=3))
    chance = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    tokens = sum(tokens_G)
    ids_TK = np.array([chance.permutation(experts)[:top_k] for _ in range(tokens)], dtype=np.int16)
    ids_TK = ids_TK.reshape(tokens, top_k)
    ids_TK[chance.random(ids_TK.shape) < 0.1] = NO_EXPERT
    weights_TK = chance.choice(WEIGHTS, size=ids_TK.shape).astype(np.float32)
    return Batch(ids_TK, weights_TK, np.cumsum([0, *tokens_G], dtype=np.int64), experts)


gammas = st.sampled_from([0.1, 0.3, 0.5, 1.0, 1.1, 1.5, 2.0])
scopes = st.sampled_from(["source", "global"])


def weights_of(batch: Batch) -> npt.NDArray[np.float32]:
    assert batch.weights_TK is not None
    return batch.weights_TK


def bounds_of(batch: Batch, scope: str) -> list[tuple[int, int]]:
    """First and last row of what is limited together."""
    if scope == "global":
        return [(0, len(batch.ids_TK))]
    offsets = batch.offsets_G.tolist()
    return list(itertools.pairwise(offsets))


def naive_capacity(gamma: float, assignments: int, experts: int) -> int:
    return math.ceil(Decimal(str(gamma)) * assignments / experts)


def naive_drop(batch: Batch, gamma: float, scope: str) -> list[list[int]]:
    """Every expert of every source sorted by weight, then row; what stands beyond capacity is dropped."""
    ids: list[list[int]] = batch.ids_TK.tolist()
    for first, last in bounds_of(batch, scope):
        capacity = naive_capacity(gamma, (last - first) * batch.ids_TK.shape[1], batch.experts)
        for expert in range(batch.experts):
            places = [(row, ids[row].index(expert)) for row in range(first, last) if expert in ids[row]]
            places.sort(key=lambda place: (-weights_of(batch)[place], place[0]))
            for row, place in places[capacity:]:
                ids[row][place] = NO_EXPERT
    return ids


@given(batches(), gammas, scopes)
def test_drop_is_the_naive_sort(batch: Batch, gamma: float, scope: str) -> None:
    outcome = Drop(gamma, scope=scope).apply(batch)
    assert outcome.ids_TK.tolist() == naive_drop(batch, gamma, scope)
    assert outcome.ids_TK.dtype == np.int16
    assert outcome.weights_TK is batch.weights_TK


@pytest.mark.parametrize("tokens", [1, 6, 31, 32, 33, 64, 123, 431])
@pytest.mark.parametrize("scope", ["source", "global"])
def test_drop_is_the_naive_sort_for_short_and_long_queues(tokens: int, scope: str) -> None:
    # Two experts, top-1: the queue of one expert is about as long as the batch; both ways to select are used.
    chance = np.random.default_rng(tokens)
    ids_TK = (chance.random((tokens, 1)) < 0.1).astype(np.int16)
    for weights in (chance.random((tokens, 1)), chance.choice(WEIGHTS, size=(tokens, 1))):
        offsets_G = np.array([0, tokens // 3, tokens])
        batch = Batch(ids_TK, weights.astype(np.float32), offsets_G, experts=2)
        for gamma in (0.1, 0.5, 1.0, 1.9):
            assert Drop(gamma, scope=scope).apply(batch).ids_TK.tolist() == naive_drop(batch, gamma, scope)


@given(batches(), gammas, scopes)
def test_no_expert_is_above_its_capacity(batch: Batch, gamma: float, scope: str) -> None:
    outcome = Drop(gamma, scope=scope).apply(batch)
    total = 0
    for first, last in bounds_of(batch, scope):
        capacity = naive_capacity(gamma, (last - first) * batch.ids_TK.shape[1], batch.experts)
        served = outcome.ids_TK[first:last]
        assert np.bincount(served[served >= 0], minlength=1).max() <= capacity
        total += capacity
    assert outcome.room == total * batch.experts


@given(batches(), gammas, scopes)
def test_what_is_kept_weighs_at_least_what_is_dropped(batch: Batch, gamma: float, scope: str) -> None:
    after_TK = Drop(gamma, scope=scope).apply(batch).ids_TK
    for first, last in bounds_of(batch, scope):
        before, after, weights = batch.ids_TK[first:last], after_TK[first:last], weights_of(batch)[first:last]
        for expert in range(batch.experts):
            kept, dropped = weights[after == expert], weights[(before == expert) & (after < 0)]
            if kept.size and dropped.size:
                assert kept.min() >= dropped.max()


def counts(outcome: Outcome) -> tuple[int, int, int, int, int]:
    return outcome.wished, outcome.kept, outcome.rerouted, outcome.dropped, outcome.added


@given(batches(), gammas, scopes)
def test_every_assignment_is_accounted_for(batch: Batch, gamma: float, scope: str) -> None:
    outcome = Drop(gamma, scope=scope).apply(batch)
    assert outcome.wished == np.count_nonzero(batch.ids_TK >= 0)
    assert outcome.wished == outcome.kept + outcome.rerouted + outcome.dropped
    assert np.count_nonzero(outcome.ids_TK >= 0) == outcome.kept + outcome.rerouted + outcome.added
    assert outcome.rerouted == outcome.added == 0
    weights_TK = weights_of(batch).astype(np.float64)
    lost = (batch.ids_TK >= 0) & (outcome.ids_TK < 0)
    assert outcome.gate_mass == pytest.approx(weights_TK[batch.ids_TK >= 0].sum(), rel=rounding(1000))
    assert outcome.gate_mass_lost == pytest.approx(weights_TK[lost].sum(), rel=rounding(1000))


@given(batches(), scopes)
def test_a_large_factor_changes_nothing(batch: Batch, scope: str) -> None:
    # An expert is chosen at most once by each token: γ = E/K gives it room for all of them.
    for gamma in (batch.experts / batch.ids_TK.shape[1] + 1e-9, 1e300):
        outcome, nothing = Drop(gamma, scope=scope).apply(batch), NoPolicy().apply(batch)
        assert np.array_equal(outcome.ids_TK, batch.ids_TK)
        assert counts(outcome) == counts(nothing)
        assert outcome.gate_mass == nothing.gate_mass
        assert outcome.gate_mass_lost == nothing.gate_mass_lost == 0.0


@given(batches(), gammas, scopes, st.permutations(range(6)))
def test_relabelled_experts_are_treated_the_same(
    batch: Batch, gamma: float, scope: str, order: list[int]
) -> None:
    label_E = np.array([label for label in order if label < batch.experts], dtype=np.int16)

    def relabelled(ids_TK: npt.NDArray[np.int16]) -> npt.NDArray[np.int16]:
        return np.where(ids_TK >= 0, label_E[ids_TK], ids_TK)

    policy = Drop(gamma, scope=scope)
    other = policy.apply(Batch(relabelled(batch.ids_TK), batch.weights_TK, batch.offsets_G, batch.experts))
    assert np.array_equal(other.ids_TK, relabelled(policy.apply(batch).ids_TK))


@given(batches(), scopes)
def test_a_larger_factor_keeps_what_a_smaller_one_keeps(batch: Batch, scope: str) -> None:
    fewer, more = (Drop(gamma, scope=scope).apply(batch).ids_TK >= 0 for gamma in (0.5, 1.0))
    assert not (fewer & ~more).any()


def test_the_batch_stays_as_it_is() -> None:
    ids_TK = np.zeros((9, 1), dtype=np.int16)
    weights_TK = np.linspace(0, 1, 9, dtype=np.float32)[:, None]
    ids_before, weights_before = ids_TK.copy(), weights_TK.copy()
    outcome = Drop(1.0).apply(Batch(ids_TK, weights_TK, np.array([0, 9]), experts=3))
    assert outcome.dropped == 6
    assert np.array_equal(ids_TK, ids_before)
    assert np.array_equal(weights_TK, weights_before)


def test_worked_by_hand() -> None:
    # Rank 0 has rows 0 to 3, rank 1 rows 4 and 5; E = 3, K = 1, γ = 1.
    # source: C = ⌈4/3⌉ = 2 for rank 0, ⌈2/3⌉ = 1 for rank 1. Expert 0 keeps .9 and the first .5; then .1.
    # global: C = ⌈6/3⌉ = 2: expert 0 keeps .9 and the first .5 of all six rows, expert 1 its one.
    ids_TK = np.array([[0], [0], [1], [0], [0], [0]], dtype=np.int16)
    weights_TK = np.array([[0.5], [0.5], [0.2], [0.9], [0.1], [0.05]], dtype=np.float32)
    batch = Batch(ids_TK, weights_TK, np.array([0, 4, 6]), experts=3)
    source = Drop(1.0).apply(batch)
    assert source.ids_TK.ravel().tolist() == [0, -1, 1, 0, 0, -1]
    assert counts(source) == (6, 4, 0, 2, 0)
    assert source.room == 3 * 3
    assert source.gate_mass_lost == pytest.approx(0.55)
    overall = Drop(1.0, scope="global").apply(batch)
    assert overall.ids_TK.ravel().tolist() == [0, -1, 1, 0, -1, -1]
    assert overall.room == 2 * 3


@pytest.mark.parametrize(
    ("gamma", "tokens", "top_k", "experts", "capacity"),
    [
        (1.1, 50, 1, 1, 55),  # 1.1 * 50 is 55.00000000000001 in binary
        (1.1, 100, 1, 10, 11),
        (0.1, 3, 1, 3, 1),
        (0.1, 300, 1, 10, 3),
        (1.0, 64, 4, 32, 8),
        (1.0, 1, 8, 256, 1),  # decode: the ceiling dominates
        (1.25, 128, 8, 256, 5),
        (2, 128, 8, 256, 8),
        (1e-300, 128, 8, 256, 1),
        (1.5, 0, 8, 256, 0),
    ],
)
def test_capacity_is_exact(gamma: float, tokens: int, top_k: int, experts: int, capacity: int) -> None:
    assert Drop(gamma).capacity(tokens, top_k, experts) == capacity


def test_a_trace_without_weights_is_refused_with_the_way_out() -> None:
    batch = Batch(np.zeros((2, 1), dtype=np.int16), None, np.array([0, 2]), experts=1)
    with pytest.raises(
        PolicyError, match=r"routing\.policy: policy drop needs gate weights.*record the trace"
    ):
        Drop(1.0).apply(batch)


def test_a_batch_without_tokens_stays_empty() -> None:
    empty = Batch(
        np.zeros((0, 2), dtype=np.int16), np.zeros((0, 2), dtype=np.float32), np.array([0, 0]), experts=4
    )
    outcome = Drop(1.0).apply(empty)
    assert outcome.ids_TK.shape == (0, 2)
    assert (counts(outcome), outcome.room, outcome.gate_mass) == ((0, 0, 0, 0, 0), 0, 0.0)


@pytest.mark.shared
def test_real_routing_is_dropped_as_the_naive_sort_does(shared: Path) -> None:
    with np.load(shared / "data" / "gptoss20b" / "decode_routing.npz") as trace:
        ids_TK = np.ascontiguousarray(trace["topk_ids"][:512, 12], dtype=np.int16)
        weights_TK = np.ascontiguousarray(trace["topk_weights"][:512, 12], dtype=np.float32)
    batch = Batch(ids_TK, weights_TK, np.arange(0, 513, 64, dtype=np.int64), experts=32)
    for scope in ("source", "global"):
        outcome = Drop(1.0, scope=scope).apply(batch)
        assert outcome.ids_TK.tolist() == naive_drop(batch, 1.0, scope)
        assert 0 < outcome.dropped < outcome.wished
