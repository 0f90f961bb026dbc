"""What GPUs of two slots cannot go below, by an integer programme over the numbers of copies alone.

Given copies are packed best on pairs of slots by folding their order, the largest beside the smallest. That
is within T exactly if, for every λ up to T / 2::

    copies above T − λ  +  copies from λ on  ≤  slots

as a copy above T − λ wastes the slot beside it, or leaves it to one below λ. So which GPU holds what need not
be asked, and 256 experts on 144 GPUs are decided in seconds. Two copies of one expert may share a GPU here.

Axes: I choices of a number of copies for an expert.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from placement.judging.packing_bound import Loads, cost_of_copy
from placement.solvers.programme import TOLERANCE, Effort, binaries, solve_programme
from traces.base.arrays import Floats, Ints

_NEAR = 0.01
"""So near what is reached a bound is left alone."""

_LEAST = 0.015
"""Of T, the least λ that is asked about; copies below only count."""

_NODES = 100
"""Of branch and bound, for one question."""


def paired_bound(loads: Loads, gpus: int, most: int, low: float, high: float) -> float:
    """A bound from ``low``, which is one, towards ``high``, which some placement reaches; at speed 1.

    Args:
        most: copies of an expert.
    """
    while high > low * (1.0 + _NEAR):
        middle = math.sqrt(low * high)
        if not ruled_out(loads, gpus, most, middle, Effort(_NODES)):
            break
        low = middle * (1.0 - TOLERANCE)
    return low


def ruled_out(loads: Loads, gpus: int, most: int, within: float, effort: Effort) -> bool:
    """Whether it is proven that no numbers of copies fold within a cost.

    Two GPUs, loads 4, 1, 1: with two copies of the first, the fullest GPU gets 3.

    >>> loads = Loads(np.array([4.0, 1.0, 1.0]), np.zeros(3), 0.0)
    >>> [ruled_out(loads, 2, 2, within, Effort(100)) for within in (2.9, 3.1)]
    [True, False]
    """
    import pulp

    choices = _choices(loads, most, within)
    programme = pulp.LpProblem("pairs")
    programme.setObjective(pulp.LpAffineExpression())  # any will do
    chosen_I = binaries(programme, "chosen", len(choices.cost_I))
    for expert in range(len(loads.token_E)):
        programme += pulp.lpSum(chosen_I[choices.expert_I == expert]) == 1
    before = None
    for row, terms in enumerate(_counted(choices, within)):
        # What is counted up to one λ, from what was up to the λ before: few terms each.
        count = programme.add_variable(f"count_{row}", 0, 2 * gpus)
        more = pulp.lpSum(copies * chosen_I[i] for i, copies in terms)
        programme += count == (more if before is None else before + more)
        before = count
    outcome = solve_programme(programme, effort)
    return outcome.value is None and outcome.proven


class _Choices(NamedTuple):
    """Numbers of copies that an expert may have.

    Attributes:
        expert_I, copies_I, cost_I: the expert, how many copies, and what each costs.
    """

    expert_I: Ints
    copies_I: Ints
    cost_I: Floats


def _choices(loads: Loads, most: int, within: float) -> _Choices:
    """From the fewest copies that fit to the first below every λ: more would only take more slots."""
    rows = []
    for expert in range(len(loads.token_E)):
        for copies in range(1, most + 1):
            cost = cost_of_copy(loads, expert, copies)
            if cost <= within * (1.0 + TOLERANCE):
                rows.append((expert, copies, cost))
            if cost < _LEAST * within:
                break
    expert_I, copies_I, cost_I = map(np.array, zip(*rows, strict=True))
    return _Choices(expert_I, copies_I, cost_I)


def _counted(choices: _Choices, within: float) -> Iterator[list[tuple[int, int]]]:
    """By how much the left side grows from λ to λ, the largest first: (choice, copies) of each term.

    It is asked only where it has grown last, as it may be largest there.
    """
    large_I = choices.cost_I > 0.5 * within
    # From which λ on a copy counts; a large one counts twice at first and once from there on.
    from_I = np.where(large_I, (within - choices.cost_I) * (1.0 + TOLERANCE), choices.cost_I)
    from_I[from_I < _LEAST * within] = 0.0
    terms = [(i, 2 * int(choices.copies_I[i])) for i in np.flatnonzero(large_I).tolist()]
    grown = bool(terms)
    for i in np.lexsort((~large_I, -from_I)).tolist():
        if large_I[i] and grown:
            yield terms
            terms = []
        grown = not large_I[i]
        terms.append((i, -int(choices.copies_I[i]) if large_I[i] else int(choices.copies_I[i])))
    yield terms
