"""The integer programme of placement: copies of experts on GPUs, none above its ceiling.

Axes: E experts and G GPUs that take part (of a layer, all or a few), W windows, P patterns of K experts.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from placement.solvers.programme import Effort, solve_programme
from traces.base.arrays import Bools, Floats, Ints

if TYPE_CHECKING:
    import pulp


@dataclass(frozen=True)
class Patterns:
    """Tokens by which experts they chose, for an objective of distinct nodes.

    Attributes:
        experts_PK: int64, experts that take part; −1 where a token's expert does not.
        tokens_P: how many tokens chose them.
        needs_PN: bool, nodes that they need anyway, because of experts that do not take part.
        node_G: the node of each GPU.
    """

    experts_PK: Ints
    tokens_P: Ints
    needs_PN: Bools
    node_G: Ints


@dataclass(frozen=True)
class Fitting:
    """What is to be laid where.

    Attributes:
        choices_E: for each expert the numbers of copies that it may have, and what one of so many costs in
            each window: {copies: float64 [W]}.
        slots_G, speed_G: of each GPU.
        ceiling_W: what no GPU's cost by its speed may exceed.
        allowed_EG, forced_EG: where a copy may lie, and where one must.
        moved_EG: where a copy would be a moved one; at most ``max_moves`` of these, None = any number.
        patterns: to make their distinct nodes few; without, any placement under the ceiling will do.
    """

    choices_E: tuple[dict[int, Floats], ...]
    slots_G: Ints
    speed_G: Floats
    ceiling_W: Floats
    allowed_EG: Bools
    forced_EG: Bools
    moved_EG: Bools
    max_moves: int | None = None
    patterns: Patterns | None = None

    @property
    def size(self) -> int:
        """0-1 variables that it takes."""
        return sum(
            len(choices) * (1 + int(allowed_G.sum()))
            for choices, allowed_G in zip(self.choices_E, self.allowed_EG, strict=True)
        )


@dataclass(frozen=True)
class Fitted:
    """What was found.

    Attributes:
        held_EG: bool, where copies lie; None where none was found.
        impossible: proven: there is none.
    """

    held_EG: Bools | None
    impossible: bool


def fit(fitting: Fitting, effort: Effort) -> Fitted:
    """Solve it, within 1e-6 of the ceiling.

    Expert e has r copies where y[e, r] = 1, and one of them lies on GPU g where x[e, r, g] = 1::

        Σ_r y[e, r] = 1        Σ_g x[e, r, g] = r · y[e, r]        x[e, r, g] ≤ y[e, r]
        Σ_e Σ_r x[e, r, g] ≤ slots_g        Σ_e Σ_r cost[w, e, r] · x[e, r, g] ≤ ceiling_w · speed_g

    That the cost of a copy depends on their number makes it three-dimensional.

    Two GPUs of two slots, loads 4, 1, 1: only with two copies of expert 0 no GPU gets more than 3.

    >>> one, two = np.array([1.0]), {1: np.array([4.0]), 2: np.array([2.0])}
    >>> anywhere, nowhere = np.ones((3, 2), bool), np.zeros((3, 2), bool)
    >>> even = Fitting((two, {1: one}, {1: one}), np.array([2, 2]), np.ones(2), np.array([3.0]),
    ...                anywhere, nowhere, nowhere)
    >>> fit(even, Effort(100)).held_EG.sum(axis=1)
    array([2, 1, 1])
    """
    import pulp

    programme = pulp.LpProblem("fitting")
    places = _Places(programme, fitting)
    for expert, gpu in np.argwhere(fitting.forced_EG).tolist():
        programme += pulp.lpSum(each.on for each in places.of(expert, [gpu])) == 1
    for gpu, slots in enumerate(fitting.slots_G.tolist()):
        here = places.on_G[gpu]
        programme += pulp.lpSum(each.on for each in here) <= slots
        for window, ceiling in enumerate((fitting.ceiling_W * fitting.speed_G[gpu]).tolist()):
            if ceiling > 0:  # a window without load has neither
                # By the ceiling, so that the solver's tolerance is relative to it.
                cost = [fitting.choices_E[each.expert][each.copies][window] / ceiling for each in here]
                programme += pulp.lpDot(cost, [each.on for each in here]) <= 1
    if fitting.max_moves is not None:
        moved = [each.on for each in places.all if fitting.moved_EG[each.expert, each.gpu]]
        programme += pulp.lpSum(moved) <= fitting.max_moves
    programme.setObjective(pulp.lpSum(_needs(programme, places, fitting.patterns)))
    outcome = solve_programme(programme, effort)
    if outcome.value is None:
        return Fitted(None, outcome.proven)
    held_EG = np.zeros(fitting.allowed_EG.shape, dtype=np.bool_)
    for each in places.all:
        held_EG[each.expert, each.gpu] |= each.on.value() > 0.5
    return Fitted(held_EG, False)


class _Place(NamedTuple):
    """x[expert, copies, gpu]."""

    expert: int
    copies: int
    gpu: int
    on: pulp.LpVariable


class _Places:
    """The variables of a programme, and how the copies of an expert hang together."""

    def __init__(self, programme: pulp.LpProblem, fitting: Fitting) -> None:
        import pulp

        self.on_G: list[list[_Place]] = [[] for _ in fitting.slots_G]
        self._of_E: list[list[_Place]] = []
        for expert, choices in enumerate(fitting.choices_E):
            gpus = np.flatnonzero(fitting.allowed_EG[expert]).tolist()
            of: list[_Place] = []
            numbers = []
            for copies in choices:
                number = programme.add_variable(f"y_{expert}_{copies}", cat="Binary")
                on = programme.add_variable_matrix(f"x_{expert}_{copies}", gpus, cat="Binary")
                programme += pulp.lpSum(on) == copies * number
                for gpu, each in zip(gpus, on, strict=True):
                    of.append(_Place(expert, copies, gpu, each))
                    self.on_G[gpu].append(of[-1])
                    if copies > 1:
                        programme += each <= number
                numbers.append(number)
            programme += pulp.lpSum(numbers) == 1
            self._of_E.append(of)

    @property
    def all(self) -> Iterator[_Place]:
        """By expert, number of copies, GPU."""
        return itertools.chain.from_iterable(self._of_E)

    def of(self, expert: int, gpus: Collection[int]) -> list[_Place]:
        """Those of one expert on some GPUs."""
        return [each for each in self._of_E[expert] if each.gpu in gpus]


def _needs(
    programme: pulp.LpProblem, places: _Places, patterns: Patterns | None
) -> list[pulp.LpAffineExpression]:
    """Terms of the share of tokens that need each node, beyond those that they need anyway.

    A token needs a node at least as much as the share of an expert's copies there: exactly, where its
    experts have one copy each.
    """
    if patterns is None:
        return []
    import pulp

    gpus_N = [np.flatnonzero(patterns.node_G == node).tolist() for node in range(patterns.node_G.max() + 1)]
    total = float(patterns.tokens_P.sum())
    terms = []
    for p, (expert_K, tokens) in enumerate(zip(patterns.experts_PK, patterns.tokens_P, strict=True)):
        for node, gpus in enumerate(gpus_N):
            if patterns.needs_PN[p, node] or not gpus:
                continue
            need = programme.add_variable(f"need_{p}_{node}", 0, 1)
            terms.append(float(tokens) / total * need)
            for expert in expert_K[expert_K >= 0].tolist():
                share = pulp.lpSum((1.0 / each.copies) * each.on for each in places.of(expert, gpus))
                programme += share <= need
    return terms
