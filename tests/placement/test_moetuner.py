"""MoETuner's two stages against every clustering and an exact dynamic programme."""

from __future__ import annotations

from itertools import permutations, product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.problem.asked import Position
from placement.problem.errors import PlacementError
from placement.problem.placement import EMPTY
from placement.problem.problem import Problem
from placement.solvers import mapping
from placement.solvers import moetuner as module
from placement.solvers.mapping import ACROSS, cheapest_mapping, mapping_cost, wires
from placement.solvers.moetuner import balanced_clusters, between_clusters, moetuner, unevenness
from placement.solvers.programme import BACKENDS, Effort
from placement.solvers.solution import Search
from tests.examples import examples
from traces.co_activation import transitions

PLENTY = Effort(10_000)
Floats = npt.NDArray[np.float64]


def cheapest_by_dynamic_programme(moved_LCC: npt.NDArray[np.int64], wire_GG: Floats) -> float:
    """Over all permutations of all layers: the least sum so far that ends in each."""
    ways = list(permutations(range(len(wire_GG))))
    total = dict.fromkeys(ways, 0.0)
    for moved_CC in moved_LCC:
        total = {
            to: min(
                total[way]
                + max(moved_CC[a, b] * wire_GG[way[a], to[b]] for a, b in product(range(len(way)), repeat=2))
                for way in ways
            )
            for to in ways
        }
    return float(min(total.values()))


@pytest.mark.parametrize("node_G", [[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 1, 1]])
def test_the_mapping_is_as_cheap_as_the_dynamic_programme(node_G: list[int]) -> None:
    wire_GG = wires(np.array(node_G))
    moved_LCC = np.random.default_rng(3).integers(0, 100, (5, 4, 4))
    gpu_LC, proven = cheapest_mapping(moved_LCC, wire_GG, PLENTY)
    assert proven
    assert np.sort(gpu_LC, axis=1).tolist() == [[0, 1, 2, 3]] * 6
    assert mapping_cost(moved_LCC, wire_GG, gpu_LC) == cheapest_by_dynamic_programme(moved_LCC, wire_GG)


@settings(max_examples=examples(10))
@given(st.lists(st.integers(0, 5), min_size=27, max_size=27))
def test_so_it_is_with_ties_and_zeros(moved: list[int]) -> None:
    moved_LCC, wire_GG = np.array(moved).reshape(3, 3, 3), wires(np.array([0, 0, 1]))
    gpu_LC, proven = cheapest_mapping(moved_LCC, wire_GG, PLENTY)
    assert proven
    assert mapping_cost(moved_LCC, wire_GG, gpu_LC) == cheapest_by_dynamic_programme(moved_LCC, wire_GG)


def test_wires_know_nodes() -> None:
    assert wires(np.array([0, 0, 1])).tolist() == [[0, 1, ACROSS], [1, 0, ACROSS], [ACROSS, ACROSS, 0]]


def test_more_gpus_are_exchanged_down_to_a_local_optimum() -> None:
    moved_LCC = np.random.default_rng(0).integers(0, 100, (3, 6, 6))
    wire_GG = wires(np.array([0, 0, 0, 1, 1, 1]))
    gpu_LC, proven = cheapest_mapping(moved_LCC, wire_GG, PLENTY)
    cost = mapping_cost(moved_LCC, wire_GG, gpu_LC)
    assert not proven
    assert cost < mapping_cost(moved_LCC, wire_GG, np.tile(np.arange(6), (4, 1)))
    for layer, a, b in product(range(4), range(6), range(6)):
        other = gpu_LC.copy()
        other[layer, [a, b]] = other[layer, [b, a]]
        assert mapping_cost(moved_LCC, wire_GG, other) >= cost * (1 - 1e-9)


@settings(max_examples=examples(20))
@given(st.lists(st.integers(0, 20), min_size=5, max_size=6), st.integers(2, 3))
def test_clusters_are_as_even_as_any(load: list[int], clusters: int) -> None:
    load_E = np.array([*load, 1], np.float64)
    size = -(-len(load_E) // clusters)
    cluster_E, proven = balanced_clusters(load_E, clusters, size, PLENTY)
    assert proven
    assert np.bincount(cluster_E, minlength=clusters).max() <= size
    least = min(
        unevenness(np.array(way), load_E, clusters)
        for way in product(range(clusters), repeat=len(load_E))
        if np.bincount(way, minlength=clusters).max() <= size
    )
    assert unevenness(cluster_E, load_E, clusters) == pytest.approx(least, rel=1e-5, abs=1e-4)


def test_many_experts_keep_the_largest_first_and_say_so() -> None:
    load_E = np.random.default_rng(0).lognormal(size=256)
    cluster_E, proven = balanced_clusters(load_E, 32, 8, PLENTY)
    assert not proven
    assert np.bincount(cluster_E).tolist() == [8] * 32
    assert unevenness(cluster_E, load_E, 32) < unevenness(np.arange(256) // 8, load_E, 32) / 5


def followed(layers: int = 4, tokens: int = 600, **changes: Any) -> Problem:
    """Eight experts on four GPUs in two nodes; tokens prefer one partner expert in the next layer."""
    rng = np.random.default_rng(5)
    partner_LE = np.array([rng.permutation(8) for _ in range(layers)])
    sample_TLK = np.empty((tokens, layers, 1), np.int64)
    sample_TLK[:, 0, 0] = rng.integers(0, 8, tokens)
    for layer in range(1, layers):
        follows_T = rng.random(tokens) < 0.8
        onward_T = partner_LE[layer, sample_TLK[:, layer - 1, 0]]
        sample_TLK[:, layer, 0] = np.where(follows_T, onward_T, rng.integers(0, 8, tokens))
    load_LE = np.stack([np.bincount(ids_T, minlength=8) for ids_T in sample_TLK[:, :, 0].T])
    fields: dict[str, Any] = {"gpus_per_node": 2, "sample_TLK": sample_TLK}
    return Problem.of(load_LE, 4, **(fields | changes))


def test_both_stages_together() -> None:
    problem = followed()
    answer = moetuner(problem)
    assert not answer.limit_reached
    assert problem.sample_TLK is not None
    slot_LE = np.argsort(answer.placement.slot_expert_LS, axis=1)
    gpu_LE = answer.placement.slot_gpu_S[slot_LE].astype(np.int64)
    assert [np.bincount(gpu_E).tolist() for gpu_E in gpu_LE] == [[2] * 4] * 4
    moved_LCC = between_clusters(transitions(problem.sample_TLK, 8), gpu_LE, 4)
    wire_GG = wires(problem.node_G)
    stay = mapping_cost(moved_LCC, wire_GG, np.tile(np.arange(4), (4, 1)))
    assert stay == pytest.approx(cheapest_by_dynamic_programme(moved_LCC, wire_GG))


def test_slots_to_spare_stay_empty() -> None:
    placement = moetuner(followed(slots=12)).placement
    assert (placement.slot_expert_LS == EMPTY).sum(axis=1).tolist() == [4] * 4
    assert (placement.replicas_LE == 1).all()


def test_no_programme_is_written_when_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[object] = []

    def counted(load_E: Floats, clusters: int, size: int, effort: Effort) -> tuple[object, bool]:
        written.append(load_E)
        return balanced_clusters(load_E, clusters, size, effort)

    monkeypatch.setattr(module, "balanced_clusters", counted)
    # The first layer takes all the time there is.
    monkeypatch.setattr(Effort, "seconds", property(lambda effort: 0.0 if written else 1.0))
    monkeypatch.setattr(mapping, "_permutation_costs", lambda *_: pytest.fail("stage 2 has no time"))
    answer = moetuner(followed(), Search(seconds=1.0))
    assert len(written) == 1
    assert answer.limit_reached


def test_an_interruption_keeps_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "cheapest_mapping", interrupted)
    answer = moetuner(followed())
    assert answer.limit_reached
    assert answer.interrupted
    assert (answer.placement.replicas_LE == 1).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample_TLK": None}, "solver: moetuner needs sampled tokens: give a routing trace"),
        ({"slots": [3, 3, 2, 2]}, "slots: moetuner needs equal GPUs (got [3 3 2 2])"),
        ({"speed": [1, 1, 1, 2]}, "speed: moetuner needs equal GPUs (got [1. 1. 1. 2.])"),
        ({"groups": 2}, "groups: is not known to moetuner"),
        ({"fixed": (Position(0, 0, 0),)}, "fixed: is not known to moetuner"),
        ({"forbidden": (Position(0, 0, 0),)}, "forbidden: is not known to moetuner"),
    ],
)
def test_what_the_paper_does_not_know_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PlacementError) as caught:
        moetuner(followed(**changes))
    assert str(caught.value) == message


@pytest.mark.parametrize("backend", BACKENDS)
def test_both_backends_find_the_same_evenness(backend: str) -> None:
    load_E = np.array([9.0, 7.0, 6.0, 5.0, 4.0, 2.0])
    cluster_E, _ = balanced_clusters(load_E, 3, 2, Effort(10_000, backend=backend))
    # 9 + 2, 7 + 4, 6 + 5 are 11 each.
    assert unevenness(cluster_E, load_E, 3) == 0.0
