"""Tokens that stay together: each visits experts in few groups, nodes or GPUs only.

Axes: T tokens, K experts per token, C candidates per token, E experts, G GPUs, U units (groups of experts,
nodes, GPUs), H most units that hold one expert.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from moesim.routing.errors import PolicyError
from moesim.routing.filling import INSTEAD, refill, without
from moesim.routing.neighbours import on_nodes
from moesim.routing.parameters import choice, integer
from moesim.routing.policy import Batch, Candidates, Cost, Need, Outcome, candidates_of, held_of, weights_of
from moesim.routing.ranking import best_first
from traces.base.jit import jit

UNITS = ("group", "node", "device")


@dataclass(frozen=True)
class Limited:
    """Each token visits experts of its ``most`` best units only, within these the best ones.

    A unit is as good as the sum of the ``best`` largest scores of its experts; of equally good ones the lower
    is chosen. DeepSeek-V2 limits devices by their best expert (arXiv 2405.04434, section 2.2.2), DeepSeek-V3
    nodes by the sum of the K / M best (arXiv 2412.19437, section 2.1.2), its code groups of experts by the
    two best. With one device this is a choice in two levels: first the device, then its experts.

    Two groups of two experts: 0 and 1 have 0.5 together, 2 and 3 have 0.4. So the token goes to 0 and 1.

    >>> scores = Candidates(np.array([[2, 0, 1, 3]], np.int16), np.array([[0.4, 0.3, 0.2, 0.0]], np.float32))
    >>> batch = Batch(np.array([[2, 0]], np.int16), None, np.array([0, 1]), experts=4, candidates=scores)
    >>> Limited(most=1, unit="group", groups=2).apply(batch).ids_TK.tolist()
    [[1, 0]]

    Attributes:
        most: units that a token may visit; as many as there are change nothing.
        unit: ``group``, ``node``, or ``device``, which is a GPU. With replicas an expert is in every unit
            that holds one.
        best: how many experts of a unit count. What the candidates do not show of a unit counts as the
            token's worst candidate.
        groups: for ``group``: into how many groups of equal size the experts divide, in the order of ids.
        instead: ``candidates``: the best candidates of the units take the place of experts elsewhere;
            ``nothing``: those assignments are dropped, and units are judged by the chosen experts.

    Raises:
        PolicyError: a parameter has a wrong type or value; applied to experts that do not divide into groups.
    """

    name: ClassVar[str] = "limited"
    cost: ClassVar[Cost] = Cost(candidates=2)

    most: int
    unit: str = "node"
    best: int = 2
    groups: int | None = None
    instead: str = "candidates"

    def __post_init__(self) -> None:
        integer("most", self.most, 1)
        choice("unit", self.unit, UNITS)
        integer("best", self.best, 1)
        if self.unit == "group":
            integer("groups", self.groups, 1)
        elif self.groups is not None:
            raise PolicyError("goes with unit group only", field="routing.groups", got=self.groups)
        choice("instead", self.instead, INSTEAD)

    @property
    def needs(self) -> frozenset[Need]:
        """What units are judged by, and where they are."""
        needs = set(INSTEAD[self.instead]) or {"weights"}
        if self.unit != "group":
            needs.add("placement")
        return frozenset(needs)

    def apply(self, batch: Batch) -> Outcome:
        """The batch within the chosen units.

        Raises:
            PolicyError: the batch lacks what the policy needs.
        """
        on_EU = self._units(batch)
        if self.instead == "nothing":
            order_TK, weights_KT = best_first(batch.ids_TK, weights_of(batch, self))
            known = Candidates(
                np.take_along_axis(batch.ids_TK, order_TK.astype(np.intp), axis=1),
                weights_KT.T.astype(np.float32),
            )
        else:
            known = candidates_of(batch, self)
        allowed_TC, away_TK = np.empty(known.ids_TC.shape, np.bool_), np.empty(batch.ids_TK.shape, np.bool_)
        _limit(
            batch.ids_TK,
            known.ids_TC,
            known.scores_TC,
            _units_of(on_EU),
            on_EU.shape[1],
            self.most,
            self.best,
            allowed_TC,
            away_TK,
        )
        return (
            without(batch, away_TK)
            if self.instead == "nothing"
            else refill(batch, away_TK, known, allowed_TC)
        )

    def _units(self, batch: Batch) -> npt.NDArray[np.bool_]:
        """[E, U]: whether a unit holds an expert."""
        if self.groups is not None:
            if batch.experts % self.groups:
                rule = f"must divide the {batch.experts} experts of a layer"
                raise PolicyError(rule, field="routing.groups", got=self.groups)
            return np.repeat(np.eye(self.groups, dtype=np.bool_), batch.experts // self.groups, axis=0)
        held = held_of(batch, self)
        return held.gpus_EG if self.unit == "device" else on_nodes(held)


def _units_of(on_EU: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """[1 + E, H]: the units of each expert, ascending, then U; first comes no expert, which is in none."""
    E, U = on_EU.shape
    most = int(np.count_nonzero(on_EU, axis=1).max())
    unit_EH = np.full((1 + E, most), U, np.int32)
    expert_M, unit_M = np.nonzero(on_EU)
    unit_EH[1 + expert_M, np.arange(len(unit_M)) - np.searchsorted(expert_M, expert_M)] = unit_M
    return unit_EH


@jit
def _limit(
    ids_TK: Any,
    ids_TC: Any,
    scores_TC: Any,
    unit_EH: Any,
    units: int,
    most: int,
    best: int,
    allowed_TC: Any,
    away_TK: Any,
) -> None:
    """Which candidates are in a token's best units, and which of its experts are in none of them.

    No branch depends on a score, which nobody could predict; unsigned indices need no test for negative ones.
    """
    T, C = ids_TC.shape
    # What a token's candidates say of each unit, and whether it is among the best; the last unit is none.
    seen_U, sum_U = np.zeros(units + 1, np.int64), np.zeros(units + 1)
    chosen_U = np.zeros(units + 1, np.bool_)
    touched_U, total_U = np.empty(units + 1, np.int64), np.empty(units + 1)
    for token in range(T):
        touched, lowest = np.uint64(0), 0.0
        for candidate in range(C):
            entry = np.uint64(ids_TC[token, candidate] + 1)
            lowest = scores_TC[token, candidate] if entry > 0 else lowest
            for holder in range(unit_EH.shape[1]):
                unit = np.uint64(unit_EH[entry, np.uint64(holder)])
                seen = seen_U[unit]
                touched_U[touched] = unit
                touched += np.uint64((seen == 0) & (unit < np.uint64(units)))
                sum_U[unit] += lowest if seen < best else 0.0
                seen_U[unit] = seen + 1
        for index in range(touched):
            unit = np.uint64(touched_U[index])
            total_U[index] = sum_U[unit] + max(0, best - seen_U[unit]) * lowest
            seen_U[unit], sum_U[unit] = 0, 0.0
        for index in range(touched):
            unit, total, better = touched_U[index], total_U[index], 0
            for other in range(touched):
                ahead = (total_U[other] == total) & (touched_U[other] < unit)
                better += (total_U[other] > total) | ahead
            chosen_U[np.uint64(unit)] = better < most
        # Twice the same loop: a function in its place takes half as long again.
        for candidate in range(C):
            entry, inside = np.uint64(ids_TC[token, candidate] + 1), False
            for holder in range(unit_EH.shape[1]):
                inside |= chosen_U[np.uint64(unit_EH[entry, np.uint64(holder)])]
            allowed_TC[token, candidate] = inside
        for place in range(ids_TK.shape[1]):
            entry, inside = np.uint64(ids_TK[token, place] + 1), False
            for holder in range(unit_EH.shape[1]):
                inside |= chosen_U[np.uint64(unit_EH[entry, np.uint64(holder)])]
            away_TK[token, place] = (entry > 0) & (not inside)
        for index in range(touched):
            chosen_U[np.uint64(touched_U[index])] = False
