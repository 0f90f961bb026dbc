"""Tokens that stay together: each visits experts in few groups, nodes or GPUs only.

Axes: T tokens, K experts per token, C candidates per token, E experts, G GPUs, U units (groups of experts,
nodes, GPUs), H most units that hold one expert.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from moesim.errors import PolicyError
from moesim.routing.filling import INSTEAD, refill, without
from moesim.routing.neighbours import on_nodes
from moesim.routing.parameters import choice, integer
from moesim.routing.policy import Batch, Candidates, Cost, Need, Outcome, candidates_of, held_of, weights_of
from moesim.routing.ranking import best_first
from traces.jit import jit

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
        unit_EH = _units_of(self._units(batch))
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
            batch.ids_TK, known.ids_TC, known.scores_TC, unit_EH, self.most, self.best, allowed_TC, away_TK
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
    """[E, H]: the units of each expert, ascending, then −1."""
    most = int(np.count_nonzero(on_EU, axis=1).max())
    unit_EH = np.argsort(~on_EU, axis=1, kind="stable")[:, :most].astype(np.int32)
    unit_EH[~np.take_along_axis(on_EU, unit_EH.astype(np.intp), axis=1)] = -1
    return unit_EH


@jit
def _limit(
    ids_TK: Any,
    ids_TC: Any,
    scores_TC: Any,
    unit_EH: Any,
    most: int,
    best: int,
    allowed_TC: Any,
    away_TK: Any,
) -> None:
    """Which candidates are in a token's best units, and which of its experts are in none of them."""
    T, C = ids_TC.shape
    H, U = unit_EH.shape[1], unit_EH.max() + 1
    # What a token's candidates say of each unit, and the last token that chose it.
    seen_U, sum_U, chooser_U = np.zeros(U, np.int64), np.zeros(U), np.full(U, -1, np.int64)
    touched_U = np.empty(U + 1, np.int64)
    for token in range(T):
        touched = 0
        lowest = 0.0
        for candidate in range(C):
            expert = ids_TC[token, candidate]
            if expert < 0:
                continue
            lowest = scores_TC[token, candidate]
            for holder in range(H):
                unit = unit_EH[expert, holder]
                if unit < 0:
                    break
                touched_U[touched] = unit
                touched += seen_U[unit] == 0
                sum_U[unit] += lowest if seen_U[unit] < best else 0.0
                seen_U[unit] += 1
        # The best units move to the front; insertion, for they are few.
        for index in range(touched):
            unit = touched_U[index]
            total = sum_U[unit] + max(0, best - seen_U[unit]) * lowest
            sum_U[unit] = total
            place = min(index, most)
            while place > 0 and (
                sum_U[touched_U[place - 1]] < total
                or (sum_U[touched_U[place - 1]] == total and touched_U[place - 1] > unit)
            ):
                place -= 1
            for moved in range(min(index, most - 1), place, -1):
                touched_U[moved] = touched_U[moved - 1]
            if place < most:
                touched_U[place] = unit
        for index in range(min(most, touched)):
            chooser_U[touched_U[index]] = token
        for candidate in range(C):
            allowed_TC[token, candidate] = _is_in(ids_TC[token, candidate], unit_EH, chooser_U, token)
        for place in range(ids_TK.shape[1]):
            expert = ids_TK[token, place]
            away_TK[token, place] = expert >= 0 and not _is_in(expert, unit_EH, chooser_U, token)
        for candidate in range(C):
            expert = ids_TC[token, candidate]
            for holder in range(H if expert >= 0 else 0):
                seen_U[unit_EH[expert, holder]] = 0
                sum_U[unit_EH[expert, holder]] = 0.0


@jit
def _is_in(expert: int, unit_EH: Any, chooser_U: Any, token: int) -> bool:
    """Whether the token chose one of the expert's units."""
    found = False
    if expert >= 0:
        for holder in range(unit_EH.shape[1]):
            unit = unit_EH[expert, holder]
            found |= unit >= 0 and chooser_U[unit] == token
    return found
