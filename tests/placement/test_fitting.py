"""Laying copies under a ceiling, against every way there is."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.solvers.fitting import Fitting, Patterns, fit
from placement.solvers.programme import BACKENDS, Effort
from tests.examples import examples

PLENTY = Effort(10_000)


@st.composite
def fittings(draw: st.DrawFn) -> Fitting:
    """Three experts on two or three GPUs, with whole costs of all copies together."""
    gpus, experts, windows = draw(st.integers(2, 3)), 3, draw(st.integers(1, 2))
    choices = []
    for _ in range(experts):
        load_W = np.array([draw(st.integers(0, 6)) for _ in range(windows)], np.float64)
        counts = draw(st.sets(st.integers(1, gpus), min_size=1))
        choices.append({count: load_W / count for count in sorted(counts)})
    cells = st.lists(st.sampled_from([0, 0, 0, 0, 1, -1]), min_size=gpus, max_size=gpus)
    rule = np.array([draw(cells) for _ in range(experts)])
    moved = np.array([draw(st.lists(st.booleans(), min_size=gpus, max_size=gpus)) for _ in range(experts)])
    return Fitting(
        tuple(choices),
        np.array([draw(st.integers(0, 3)) for _ in range(gpus)]),
        np.array([draw(st.sampled_from([1.0, 2.0])) for _ in range(gpus)]),
        np.array([draw(st.integers(1, 9)) for _ in range(windows)], np.float64),
        rule != -1,
        rule == 1,
        moved,
        draw(st.none() | st.integers(0, 3)),
    )


def every_way(fitting: Fitting) -> list[np.ndarray]:
    shape = fitting.allowed_EG.shape
    ways = (
        np.array(bits, bool).reshape(shape) for bits in product([False, True], repeat=shape[0] * shape[1])
    )
    return [held for held in ways if obeys(fitting, held)]


def obeys(fitting: Fitting, held: np.ndarray) -> bool:
    copies = held.sum(axis=1).tolist()
    if any(count not in choices for count, choices in zip(copies, fitting.choices_E, strict=True)):
        return False
    cost_EW = np.array([choices[count] for count, choices in zip(copies, fitting.choices_E, strict=True)])
    load_WG = cost_EW.T @ held
    most = fitting.max_moves
    return bool(
        (held.sum(axis=0) <= fitting.slots_G).all()
        and (load_WG <= fitting.ceiling_W[:, None] * fitting.speed_G + 1e-5).all()
        and not (held & ~fitting.allowed_EG).any()
        and held[fitting.forced_EG].all()
        and (most is None or (held & fitting.moved_EG).sum() <= most)
    )


@settings(max_examples=examples(30))
@given(fittings())
def test_a_way_is_found_exactly_where_there_is_one(fitting: Fitting) -> None:
    found = fit(fitting, PLENTY)
    if found.held_EG is None:
        assert found.impossible
        assert not every_way(fitting)
    else:
        assert obeys(fitting, found.held_EG)


def two_nodes(patterns: Patterns) -> Fitting:
    """Four experts of load 1, two on each of two GPUs, each GPU a node."""
    one, free = {1: np.array([1.0])}, np.ones((4, 2), bool)
    return Fitting(
        (one,) * 4, np.array([2, 2]), np.ones(2), np.array([2.0]), free, ~free, ~free, patterns=patterns
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_experts_of_the_commonest_tokens_come_together(backend: str) -> None:
    # Three tokens chose 0 and 3, one chose 0 and 1; 2 has a token of its own whose home is node 0.
    patterns = Patterns(
        np.array([[0, 3], [0, 1], [2, -1]]),
        np.array([3, 1, 1]),
        np.array([[False, False], [False, False], [True, False]]),
        np.array([0, 1]),
    )
    held = fit(two_nodes(patterns), Effort(1000, backend=backend)).held_EG
    assert held is not None
    assert held[0].tolist() == held[3].tolist() == [False, True]
    assert held[1].tolist() == held[2].tolist() == [True, False]
