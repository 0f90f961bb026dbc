"""Bringing co-activated experts together: the book-keeping, the limits, and what it wins."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.judging.evaluation import foreign_nodes_T, gpu_cost_WLG
from placement.problem.asked import Position
from placement.problem.errors import PlacementError
from placement.problem.placement import Placement
from placement.problem.problem import Problem
from placement.problem.rules import check_obeys, moves_L
from placement.solvers import locality as module
from placement.solvers.hypergraph import Layer, refine
from placement.solvers.locality import locality
from placement.solvers.solution import Search, Solution
from placement.solvers.swap import swap
from tests.examples import examples

Ints = npt.NDArray[np.int64]

NO_HOME, ANY = -1, 2**62


def clustered(layers: int, *, experts: int = 64, top_k: int = 8, tokens: int = 4000) -> Ints:
    """[T, L, K]: each token has one of eight topics, and prefers its eighth of the experts."""
    rng = np.random.default_rng(11)
    topic_LE = np.stack([rng.permutation(experts) % 8 for _ in range(layers)])
    topic_T = rng.integers(0, 8, tokens)
    popularity_LE = 0.3 * rng.standard_normal((layers, experts))
    score_TLE = popularity_LE + 3.0 * (topic_LE == topic_T[:, None, None])
    score_TLE += rng.gumbel(size=score_TLE.shape)
    return np.argsort(-score_TLE, axis=2)[:, :, :top_k]


def loads_of(sample_TLK: Ints, experts: int = 64) -> Ints:
    return np.stack([np.bincount(ids.ravel(), minlength=experts) for ids in sample_TLK.transpose(1, 0, 2)])


def clustered_problem(layers: int = 2, **changes: Any) -> Problem:
    """64 experts on 4 nodes of 4 GPUs."""
    sample_TLK = clustered(layers)
    fields: dict[str, Any] = {"gpus_per_node": 4, "sample_TLK": sample_TLK}
    return Problem.of(loads_of(sample_TLK), 16, **(fields | changes))


def nodes_per_token(problem: Problem, placement: Placement) -> float:
    """With homes that are equally likely, 1 - 1 / N of the nodes that a token needs are foreign."""
    foreign = [foreign_nodes_T(problem, placement, row).mean() for row in range(len(problem.layers))]
    return float(np.mean(foreign)) / (1 - 1 / problem.nodes)


def fullest_L(problem: Problem, answer: Solution) -> npt.NDArray[np.float64]:
    fullest: npt.NDArray[np.float64] = gpu_cost_WLG(problem, answer.placement).max(axis=2).max(axis=0)
    return fullest


def start_of(problem: Problem) -> Solution:
    return swap(problem)


def test_co_activated_experts_come_together_at_one_percent_of_balance() -> None:
    problem = clustered_problem()
    start, answer = start_of(problem), locality(problem)
    nodes = nodes_per_token(problem, start.placement)
    # 0.805 to 0.834 over twelve seeds.
    for other in (answer, locality(problem, Search(seed=1)), locality(problem, Search(seed=2))):
        assert nodes_per_token(problem, other.placement) < 0.84 * nodes
    assert (fullest_L(problem, answer) <= 1.01 * fullest_L(problem, start) * (1 + 1e-9)).all()
    assert not answer.limit_reached
    assert locality(problem).placement == answer.placement


def test_a_node_that_is_left_without_load_is_level() -> None:
    # One slot on each GPU: the two experts with tokens, always chosen together, leave a node to the others.
    # That one GPU of each node is a little faster parts them at first.
    problem = Problem.of(
        [[5, 5, 0, 0]],
        4,
        gpus_per_node=2,
        speed=[1.001, 1, 1.001, 1],
        sample_TLK=np.array([[[0, 1]]] * 8),
        home_T=np.zeros(8, dtype=int),
    )
    assert foreign_nodes_T(problem, swap(problem).placement, 0).mean() == 1.0
    assert foreign_nodes_T(problem, locality(problem).placement, 0).mean() == 0.0


def test_on_one_node_they_come_together_on_gpus() -> None:
    problem = clustered_problem(1, gpus_per_node=16)
    by_gpu = clustered_problem(1, gpus_per_node=1)
    start, answer = start_of(problem), locality(problem)
    assert nodes_per_token(by_gpu, answer.placement) < 0.97 * nodes_per_token(by_gpu, start.placement)


@pytest.mark.parametrize(
    "changes",
    [
        {"slots": 80},
        {"slots": 64 + 7, "speed": [1, 1, 1, 2] * 4},
        {"gpus_per_node": [6, 5, 3, 2]},
        {"fixed": (Position(0, 5, 3), Position(1, 7, 15))},
        {"forbidden": tuple(Position(0, expert, 0) for expert in range(0, 64, 2))},
        {"home_T": np.arange(4000) % 4},
        {"groups": 8},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_limits_and_rules_hold_whatever_the_problem(changes: dict[str, Any]) -> None:
    problem = clustered_problem(**changes)
    start, answer = start_of(problem), locality(problem, balance_lost=0.05)
    check_obeys(problem, answer.placement)
    assert (answer.placement.replicas_LE == start.placement.replicas_LE).all()
    assert (fullest_L(problem, answer) <= 1.05 * fullest_L(problem, start) * (1 + 1e-9)).all()
    before, after = nodes_per_token(problem, start.placement), nodes_per_token(problem, answer.placement)
    assert after < before or (problem.groups > 1 and after == before)


def test_moves_stay_within_their_budget() -> None:
    free = clustered_problem()
    previous = start_of(free).placement
    problem = clustered_problem(previous=previous, max_moves=20)
    answer = locality(problem, balance_lost=0.05)
    assert 0 < moves_L(problem, answer.placement).sum() <= 20
    assert nodes_per_token(problem, answer.placement) < nodes_per_token(problem, previous)


def test_no_time_and_an_interruption_leave_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = clustered_problem()
    late = locality(problem, Search(seconds=1e-9))
    assert late.limit_reached

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "refine", interrupted)
    answer = locality(problem)
    assert answer.limit_reached
    assert (answer.placement.slot_expert_LS == start_of(problem).placement.slot_expert_LS).all()


def test_what_locality_cannot_do_without_is_asked_for() -> None:
    with pytest.raises(PlacementError, match="solver: locality needs sampled tokens: give a routing trace"):
        locality(clustered_problem(sample_TLK=None))
    with pytest.raises(PlacementError, match=r"balance_lost: must be finite and not negative \(got -0.1\)"):
        locality(clustered_problem(), balance_lost=-0.1)


@st.composite
def layers(draw: st.DrawFn) -> tuple[Layer, Ints, Ints]:
    """(layer, gpu_C, node_G): seven copies of six experts and an empty slot on four GPUs of two nodes."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    copy_TK = np.stack([rng.permutation(7)[:3] for _ in range(draw(st.integers(1, 12)))])
    cost_WC = rng.integers(0, 5, (draw(st.integers(1, 2)), 8)).astype(np.float64)
    cost_WC[:, 7] = 0.0
    gpu_C, speed_G = rng.permutation(np.arange(8) // 2), rng.choice([1.0, 2.0], 4)
    load_WG = np.stack([np.bincount(gpu_C, cost_C, 4) for cost_C in cost_WC])
    limit_W = (load_WG / speed_G).max(axis=1) * draw(st.sampled_from([1.0, 1.3]))
    allowed_EG = rng.random((6, 4)) < 0.9
    expert_C = np.array([0, 1, 2, 3, 4, 5, 0, -1])
    layer = Layer(
        copy_TK,
        expert_C,
        cost_WC,
        speed_G,
        limit_W,
        allowed_EG,
        rng.random(8) < 0.1,
        rng.random((6, 4)) < 0.3,
    )
    return layer, gpu_C, np.array([0, 0, 1, 1])


def needed(layer: Layer, domain_C: Ints, home_T: Ints) -> int:
    """Domains that tokens need, counted one by one."""
    return sum(
        len({int(domain_C[copy]) for copy in copies} | ({home} if home >= 0 else set()))
        for copies, home in zip(layer.copy_TK.tolist(), home_T.tolist(), strict=True)
    )


def legal(layer: Layer, gpu_C: Ints, a: int, b: int, spent: int, budget: int) -> Ints | None:
    """The copies' GPUs after an exchange, if all rules allow it."""
    after = gpu_C.copy()
    after[[a, b]] = after[[b, a]]
    # Each of two copies of one expert finds the other where it would go: they do not change places.
    if layer.pinned_C[[a, b]].any() or layer.expert_C[a] == layer.expert_C[b]:
        return None
    for copy in (a, b):
        expert = layer.expert_C[copy]
        others = [after[c] for c in range(8) if c != copy and layer.expert_C[c] == expert]
        if expert >= 0 and (not layer.allowed_EG[expert, after[copy]] or after[copy] in others):
            return None
    load_WG = np.stack([np.bincount(after, cost_C, 4) for cost_C in layer.cost_WC])
    if (load_WG > layer.limit_W[:, None] * layer.speed_G + 1e-9).any():
        return None
    return after if spent + moved(layer, after) - moved(layer, gpu_C) <= budget else None


def moved(layer: Layer, gpu_C: Ints) -> int:
    filled = layer.expert_C >= 0
    return int((~layer.before_EG[layer.expert_C[filled], gpu_C[filled]]).sum())


@settings(max_examples=examples(60))
@given(layers(), st.booleans(), st.booleans(), st.sampled_from([ANY, 1]))
def test_refinement_ends_where_no_legal_exchange_helps(
    drawn: tuple[Layer, Ints, Ints], by_gpu: bool, at_home: bool, budget: int
) -> None:
    layer, start_C, node_G = drawn
    domain_G = np.arange(4) if by_gpu else node_G
    within_G = node_G if by_gpu else np.zeros(4, np.int64)
    home_T = np.arange(len(layer.copy_TK)) % 2 if at_home else np.full(len(layer.copy_TK), NO_HOME)
    gpu_C = start_C.copy()
    spent = refine(layer, gpu_C, domain_G, within_G, home_T, budget, 100)
    assert spent == moved(layer, gpu_C) - moved(layer, start_C) <= budget
    assert sorted(gpu_C) == sorted(start_C)
    best = needed(layer, domain_G[gpu_C], home_T)
    assert best <= needed(layer, domain_G[start_C], home_T)
    for a in range(8):
        for b in range(a):
            apart = domain_G[gpu_C[a]] != domain_G[gpu_C[b]] and within_G[gpu_C[a]] == within_G[gpu_C[b]]
            after = legal(layer, gpu_C, a, b, spent, budget)
            if apart and after is not None:
                assert needed(layer, domain_G[after], home_T) >= best
