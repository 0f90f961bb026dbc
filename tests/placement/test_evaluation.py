"""The objective of a placement against its terms written out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.judging.evaluation import copies_WL, cost_L, foreign_nodes_T
from placement.problem.objective import Objective
from placement.problem.placement import EMPTY, Placement
from placement.problem.problem import Problem
from tests.examples import examples
from tests.placement.tiny_problems import every_placement, naive_cost, problems


@settings(max_examples=examples(60))
@given(problems(), st.integers(0, 10_000))
def test_cost_is_the_sum_of_its_terms(problem: Problem, pick: int) -> None:
    placements = list(itertools.islice(every_placement(problem), 200))
    placement = placements[pick % len(placements)]
    assert cost_L(problem, placement)[0] == pytest.approx(naive_cost(problem, placement))


def test_time_counts_activated_experts_by_hand() -> None:
    # Expert 0 in two copies: 3 tokens each, and active with 1 - sqrt(1 - 0.75) = 0.5 each.
    # GPU 0: 3 + 2 tokens, 0.5 + 1 active; at 1 a token and 10 an active expert: 5 + 15.
    objective = Objective(per_token=1.0, per_active=10.0)
    problem = Problem.of([[6, 2, 1]], 2, 4, active_WLE=[[0.75, 1.0, 0.2]], objective=objective)
    placement = Placement(np.array([[0, 1, 0, 2]]), np.array([0, 0, 1, 1]), 3, 2, (0,))
    assert cost_L(problem, placement)[0] == pytest.approx(20.0)


def naive_foreign(problem: Problem, placement: Placement, token: int) -> float:
    """Expected over all choices of a copy for each expert, and over homes where none is given."""
    copies = [
        [
            int(problem.node_G[placement.slot_gpu_S[slot]])
            for slot, held in enumerate(placement.slot_expert_LS[0])
            if held == expert
        ]
        for expert in problem.sample_TLK[token, 0]  # type: ignore[index]
    ]
    homes = problem.node_G.tolist() if problem.home_T is None else [int(problem.home_T[token])]
    choices = list(itertools.product(*copies))
    foreign = [len(set(nodes) - {home}) for nodes in choices for home in homes]
    return sum(foreign) / len(foreign)


@settings(max_examples=examples(40))
@given(st.integers(0, 10_000), st.booleans())
def test_foreign_nodes_are_the_mean_over_all_choices(seed: int, at_home: bool) -> None:
    rng = np.random.default_rng(seed)
    sample_TLK = np.stack([rng.choice(5, size=3, replace=False) for _ in range(4)])[:, None]
    slot_expert_S = rng.permutation([0, 1, 2, 3, 4, 0, 1, EMPTY])
    problem = Problem.of(
        np.ones((1, 5)),
        4,
        8,
        gpus_per_node=[1, 3],
        sample_TLK=sample_TLK,
        home_T=rng.integers(0, 2, 4) if at_home else None,
    )
    placement = Placement(slot_expert_S[None], problem.slot_gpu_S, 5, 4, (0,))
    expected = [naive_foreign(problem, placement, token) for token in range(4)]
    np.testing.assert_allclose(foreign_nodes_T(problem, placement, 0), expected)
    # Five tokens' loads at 3 experts a token are 5 / 3 tokens.
    np.testing.assert_allclose(copies_WL(problem, placement), [[np.mean(expected) * 5 / 3]])


def test_moves_have_their_price() -> None:
    before = Placement(np.array([[0, 1, 2, 3]]), np.array([0, 0, 1, 1]), 4, 2, (0,))
    after = Placement(np.array([[0, 3, 2, 1]]), np.array([0, 0, 1, 1]), 4, 2, (0,))
    problem = Problem.of([[4, 3, 2, 1]], 2, previous=before, objective=Objective(per_move=0.25))
    assert cost_L(problem, before).tolist() == [7.0]
    assert cost_L(problem, after).tolist() == [5.5]
