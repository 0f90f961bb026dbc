"""The bound where copies across nodes cost something beside what GPUs take, window by window."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.judging.bounds import bound_L
from placement.judging.evaluation import cost_L
from placement.problem.objective import Objective
from placement.problem.placement import Placement
from placement.problem.problem import Problem
from tests.examples import examples


def cheapest(problem: Problem) -> float:
    """Of all ways to lay four experts on four GPUs of one slot."""
    gpu_S = np.arange(4, dtype=np.int32)
    return min(
        float(cost_L(problem, Placement(np.array([way]), gpu_S, 4, 4, (0,)))[0])
        for way in itertools.permutations(range(4))
    )


def test_the_windows_that_are_worst_for_gpus_and_for_copies_may_differ() -> None:
    # One choice for each token, half of them away: 8 + 8 / 2 in the first window, 4 + 16 / 2 in the second.
    problem = Problem.of(
        [[[8, 0, 0, 0]], [[4, 4, 4, 4]]],
        4,
        gpus_per_node=2,
        objective=Objective(per_copy=1, worst_window=True),
        sample_TLK=np.arange(4).reshape(4, 1, 1),
    )
    assert cheapest(problem) == 12.0
    assert bound_L(problem)[0] == pytest.approx(12.0)


@settings(max_examples=examples(40))
@given(
    st.lists(st.lists(st.integers(0, 9), min_size=4, max_size=4).filter(any), min_size=1, max_size=3),
    st.lists(st.permutations(range(4)), min_size=1, max_size=4),
    st.sampled_from([0.0, 1.0]),
    st.booleans(),
)
def test_no_placement_is_below_the_bound(
    load_WE: list[list[int]], tokens: list[list[int]], per_token: float, worst: bool
) -> None:
    problem = Problem.of(
        [[load_E] for load_E in load_WE],
        4,
        gpus_per_node=2,
        objective=Objective(per_token=per_token, per_copy=0.5, worst_window=worst),
        sample_TLK=np.array(tokens)[:, None, :2],
    )
    assert bound_L(problem)[0] <= cheapest(problem)
