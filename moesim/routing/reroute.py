"""Sending what is above a capacity elsewhere before it is dropped.

Axes: T tokens, K experts per token, C candidates per token, E logical experts, N assignments, U units.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from moesim.routing.capped import Capped, limits, order_TK
from moesim.routing.cut import cut
from moesim.routing.drop import served, stays_TK
from moesim.routing.errors import PolicyError
from moesim.routing.neighbours import Neighbours, neighbours
from moesim.routing.parameters import choice, integer
from moesim.routing.policy import (
    Batch,
    Cost,
    Need,
    Outcome,
    candidates_of,
    held_of,
    outcome,
    weights_of,
)
from moesim.routing.scale import token_scale
from traces.base.jit import jit

TO = ("candidates", "gpu", "node")

# A key of 64 bits: whether the token visits the expert, the expert's load, its id.
_LOAD, _VISITED = 1 << 15, 1 << 60


@dataclass(frozen=True)
class Reroute(Capped):
    """What is above the capacity goes to other experts with room, and is dropped only where none has any.

    To its token's next candidates as in GShard's second choice (arXiv 2006.16668, section 2.2) and
    Capacity-Aware Inference (arXiv 2503.05066), in rounds as ranks would run it: in each, every overflowing
    assignment asks its token's next candidate, and the first ones by ``order``, now with the candidates'
    scores, are taken in. Or, without scores, to the expert of the same GPU or node that is least loaded by
    then, one assignment after the other.

    γ = 1, C = 1. Token 1 loses expert 0 to token 0 and asks expert 2.

    >>> from moesim.routing.policy import Candidates
    >>> batch = Batch(
    ...     ids_TK=np.array([[0], [0], [1]], np.int16),
    ...     weights_TK=np.array([[0.9], [0.6], [0.8]], np.float32),
    ...     offsets_G=np.array([0, 3]),
    ...     experts=3,
    ...     candidates=Candidates(
    ...         np.array([[0, 1], [0, 2], [1, 2]], np.int16),
    ...         np.array([[0.9, 0.1], [0.6, 0.3], [0.8, 0.2]], np.float32),
    ...     ),
    ... )
    >>> found = Reroute(capacity_factor=1.0).apply(batch)
    >>> found.ids_TK.ravel(), found.weights_TK.ravel()
    (array([0, 2, 1], dtype=int16), array([0.9, 0.3, 0.8], dtype=float32))

    Attributes:
        to: ``candidates``, ``gpu`` or ``node``. A new expert among the candidates weighs in proportion to its
            score, as many times as its token's chosen ones do; one of the same GPU or node weighs what the
            lost one did.
        rounds: how many of its token's candidates an assignment may ask at most; 0 for all.

    Raises:
        PolicyError: a parameter has a wrong type or value.
    """

    name: ClassVar[str] = "reroute"

    to: str = "candidates"
    rounds: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("to", self.to, TO)
        integer("rounds", self.rounds, 0)
        if self.to != "candidates" and self.unit == "device":
            rule = f"must be expert where overflow stays on its {self.to}: a full device has no room"
            raise PolicyError(rule, field="routing.unit", got=self.unit)
        if self.to != "candidates" and self.rounds:
            rule = "counts candidates, and overflow goes to none; leave it out"
            raise PolicyError(rule, field="routing.rounds", got=self.rounds)

    @property
    def needs(self) -> frozenset[Need]:
        """What the order and the unit need, and where overflow goes."""
        where: set[Need] = {"candidates", "weights"} if self.to == "candidates" else {"placement"}
        return super().needs | where

    @property
    def cost(self) -> Cost:
        """Counting, finding thresholds, moving; then the same again among the candidates."""
        asked = 1 if self.to == "candidates" else 0
        return Cost(assignments=5, candidates=asked, exchanges=self.exchanges * (1 + asked))

    def apply(self, batch: Batch) -> Outcome:
        """The batch with overflow in other places.

        Raises:
            PolicyError: the batch lacks what the policy needs.
        """
        if self.to == "candidates":
            return self._to_candidates(batch)
        held = held_of(batch, self)
        limited = limits(self, batch, self)
        near = neighbours(held, self.to)
        stays = stays_TK(limited, batch.ids_TK, order_TK(self, batch, self))
        over_TK, ids_TK = ~stays, served(batch.ids_TK, stays)
        _to_least_loaded(batch.ids_TK, over_TK, limited.bounds_G, limited.most_G, near, ids_TK)
        return outcome(batch, ids_TK, batch.weights_TK, room=limited.room, in_place=True)

    def _to_candidates(self, batch: Batch) -> Outcome:
        candidates, weights_TK = candidates_of(batch, self), weights_of(batch, self).copy()
        limited = limits(self, batch, self)
        bits_TK = order_TK(self, batch, self)
        stays = stays_TK(limited, limited.units_of(batch.ids_TK), bits_TK)
        over_TK, ids_TK = ~stays, served(batch.ids_TK, stays)
        _to_candidates(
            batch.ids_TK,
            over_TK,
            limited.units_of(ids_TK),
            bits_TK,
            limited.bounds_G,
            limited.most_G,
            limited.units,
            batch.experts,
            candidates.ids_TC,
            candidates.scores_TC,
            limited.units_of(candidates.ids_TC),
            self.order == "score",
            self.rounds or candidates.ids_TC.shape[1],
            int(np.diff(limited.bounds_G).max()),
            ids_TK,
            weights_TK,
        )
        return outcome(batch, ids_TK, weights_TK, room=limited.room, in_place=True)


@jit
def _to_candidates(
    wished_TK: Any,
    over_TK: Any,
    unit_TK: Any,
    bits_TK: Any,
    bounds_G: Any,
    most_G: Any,
    units: int,
    experts: int,
    ids_TC: Any,
    scores_TC: Any,
    unit_TC: Any,
    by_score: bool,
    rounds: int,
    most_tokens: int,
    ids_TK: Any,
    weights_TK: Any,
) -> None:
    """Write where overflow went into ``ids_TK`` and ``weights_TK``."""
    K, C = ids_TK.shape[1], ids_TC.shape[1]
    ids_N, weights_N, bits_N = ids_TK.reshape(-1), weights_TK.reshape(-1), bits_TK.reshape(-1)
    # Of each token of a source that has overflow: the candidate that it asks next, those that it may ask, -1
    # behind them: what it did not wish for. What it wished for is full or visited.
    next_T, left_TC = np.empty(most_tokens, np.int32), np.empty((most_tokens, C + 1), np.int16)
    # How many times its score a candidate weighs, and the last token that wished for each expert; entry 0 is
    # that of no expert, here and where units are counted, so that unsigned indices do.
    scale_T, wisher_E = np.empty(most_tokens, np.float32), np.full(experts + 1, -1, np.int32)
    # Open assignments, what each asks for now, and those that ask where not all of them fit.
    most_open = most_tokens * K + 1
    at_O, token_O = np.empty(most_open, np.int64), np.empty(most_open, np.int32)
    expert_O, unit_O = np.empty(most_open, np.int16), np.empty(most_open, np.int16)
    weight_O, taken_O = np.empty(most_open, np.float32), np.empty(most_open, np.bool_)
    crowd_O, crowd_unit_O = np.empty(most_open, np.int32), np.empty(most_open, np.int16)
    crowd_weight_O = np.empty(most_open, np.float32)
    crowd_bits_O = crowd_weight_O.view(np.int32) if by_score else np.empty(most_open, np.int32)
    asks_U = np.zeros(units, np.int32)
    for source in range(len(most_G)):
        first, last = bounds_G[source], bounds_G[source + 1]
        with_none_U, opened = np.full(units + 1, most_G[source]), 0
        for token in range(first, last):
            for place in range(K):
                with_none_U[np.uint64(unit_TK[token, place] + 1)] -= 1
                at_O[opened], token_O[opened] = token * K + place, token
                opened += over_TK[token, place]
        room_U = with_none_U[1:]
        token = -1
        for index in range(opened):
            if token_O[index] == token:
                continue
            token = token_O[index]
            row, left = token - first, 0
            for place in range(K):
                wisher_E[np.uint64(wished_TK[token, place] + 1)] = token
            for candidate in range(C):
                left_TC[row, left] = candidate
                left += wisher_E[np.uint64(ids_TC[token, candidate] + 1)] != token
            next_T[row], left_TC[row, left] = 0, -1
            scale_T[row] = token_scale(token, wished_TK, weights_TK, ids_TC, scores_TC)
        for _ in range(rounds):
            asking = 0
            for index in range(opened):
                token = token_O[index]
                row = np.uint64(token - first)
                candidate = left_TC[row, np.uint64(next_T[row])]
                if candidate < 0:
                    continue
                next_T[row] += 1
                at_O[asking], token_O[asking] = at_O[index], token
                expert_O[asking], unit_O[asking] = ids_TC[token, candidate], unit_TC[token, candidate]
                weight_O[asking] = scores_TC[token, candidate] * scale_T[row]
                asks_U[np.uint64(unit_O[asking])] += 1
                asking += 1
            if asking == 0:
                break
            # No branch says who is taken in: nobody could predict it.
            crowd = 0
            for index in range(asking):
                unit = np.uint64(unit_O[index])
                room, asks = room_U[unit], asks_U[unit]
                taken_O[index] = asks <= room
                crowd_O[crowd], crowd_unit_O[crowd] = index, unit_O[index]
                if by_score:
                    crowd_weight_O[crowd] = weight_O[index]
                else:
                    crowd_bits_O[crowd] = bits_N[at_O[index]]
                crowd += (room > 0) & (asks > room)
            if crowd:
                stays_O = np.ones(crowd, np.bool_)
                cut(crowd_unit_O[:crowd], crowd_bits_O[:crowd], room_U, stays_O)
                for index in range(crowd):
                    taken_O[crowd_O[index]] = stays_O[index]
            opened = 0
            for index in range(asking):
                at, unit, taken = np.uint64(at_O[index]), np.uint64(unit_O[index]), taken_O[index]
                asks_U[unit] = 0
                room_U[unit] -= taken
                ids_N[at] = expert_O[index] if taken else ids_N[at]
                weights_N[at] = weight_O[index] if taken else weights_N[at]
                at_O[opened], token_O[opened] = at, token_O[index]
                opened += not taken


@jit
def _to_least_loaded(
    wished_TK: Any, over_TK: Any, bounds_G: Any, most_G: Any, near: Neighbours, ids_TK: Any
) -> None:
    """Write where overflow went into ``ids_TK``."""
    K = ids_TK.shape[1]
    ids_N = ids_TK.reshape(-1)
    # The least key of a unit is that of its least loaded expert, the first of equal ones. Entry 0 is that of
    # no expert; unsigned indices need no test for negative values.
    key_E = np.empty(len(near.first_E), np.int64)
    for source in range(len(most_G)):
        for entry in range(len(key_E)):
            key_E[entry] = entry - 1
        for at in range(bounds_G[source] * K, bounds_G[source + 1] * K):
            key_E[np.uint64(ids_N[at] + 1)] += _LOAD
        for token in range(bounds_G[source], bounds_G[source + 1]):
            over = 0
            for place in range(K):
                over += over_TK[token, place]
            if over == 0:
                continue
            for place in range(K):
                key_E[np.uint64(wished_TK[token, place] + 1)] += _VISITED
            for place in range(K):
                if not over_TK[token, place]:
                    continue
                lost = wished_TK[token, place]
                least = _VISITED
                for at in range(near.first_E[lost], near.first_E[lost + 1]):
                    unit = near.unit_M[at]
                    for pair in range(near.first_U[unit], near.first_U[unit + 1]):
                        least = min(least, key_E[np.uint64(near.expert_M[pair] + 1)])
                if least < _VISITED and least // _LOAD < most_G[source]:
                    ids_TK[token, place] = least % _LOAD
                    key_E[ids_TK[token, place] + 1] += _LOAD + _VISITED
            for place in range(K):
                key_E[np.uint64(wished_TK[token, place] + 1)] -= _VISITED
                if over_TK[token, place] and ids_TK[token, place] >= 0:
                    key_E[ids_TK[token, place] + 1] -= _VISITED
