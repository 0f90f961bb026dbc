"""Places of a token that an expert must leave, and the next best candidates that take them.

Axes: T tokens, K places of a token, C candidates per token, best first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from moesim.routing.errors import PolicyError
from moesim.routing.policy import NO_EXPERT, Batch, Candidates, Need, Outcome, Policy, candidates_of, outcome
from moesim.routing.scale import token_scale
from traces.base.jit import jit

_IDS = 1 << 15
"""Ids of experts are int16."""

INSTEAD: dict[str, frozenset[Need]] = {"candidates": frozenset({"candidates"}), "nothing": frozenset()}
"""What takes the place of an expert that a token may not visit, and what that needs to know."""


def restrict(
    batch: Batch, policy: Policy, instead: str, on_QE: npt.NDArray[np.bool_], row_T: npt.NDArray[np.intp]
) -> Outcome:
    """The batch with the experts that are on, those of row ``row_T`` of ``on_QE`` for each token.

    Args:
        instead: ``candidates``: the best candidates that are on, and that the token does not visit yet, take
            the freed places; ``nothing``: the assignments are dropped.

    Raises:
        PolicyError: candidates are asked for, and the batch has none.
    """
    free_TK = (batch.ids_TK >= 0) & ~_look_up(on_QE, row_T, batch.ids_TK)
    if instead == "nothing":
        return without(batch, free_TK)
    candidates = candidates_of(batch, policy)
    return refill(batch, free_TK, candidates, _look_up(on_QE, row_T, candidates.ids_TC))


def without(batch: Batch, free_TK: npt.NDArray[np.bool_]) -> Outcome:
    """The batch without the assignments in these places."""
    return outcome(
        batch, np.where(free_TK, np.int16(NO_EXPERT), batch.ids_TK), batch.weights_TK, in_place=True
    )


def refill(
    batch: Batch, free_TK: npt.NDArray[np.bool_], candidates: Candidates, allowed_TC: npt.NDArray[np.bool_]
) -> Outcome:
    """The batch with the best allowed candidates in these places, from the first place on.

    A place for which no candidate is left has no expert. What stands in these places is not allowed.

    Expert 7 is off; of its candidates the token visits 3 already, so that 5 is the next.

    >>> candidates = Candidates(np.array([[7, 3, 5]], np.int16), np.array([[0.5, 0.25, 0.125]], np.float32))
    >>> batch = Batch(np.array([[7, 3]], np.int16), np.array([[0.6, 0.3]], np.float32), np.array([0, 1]), 8)
    >>> free_TK, allowed_TC = np.array([[True, False]]), np.array([[False, True, True]])
    >>> found = refill(batch, free_TK, candidates, allowed_TC)
    >>> found.ids_TK, found.weights_TK
    (array([[5, 3]], dtype=int16), array([[0.15, 0.3 ]], dtype=float32))
    """
    ids_TK = batch.ids_TK.copy()
    if batch.weights_TK is None:
        nothing = np.zeros((0, 0), np.float32)
        _refill(
            batch.experts,
            batch.ids_TK,
            nothing,
            free_TK,
            candidates.ids_TC,
            nothing,
            allowed_TC,
            ids_TK,
            nothing,
        )
        return outcome(batch, ids_TK, None, in_place=True)
    weights_TK = batch.weights_TK.copy()
    ids_TC, scores_TC = candidates.ids_TC, candidates.scores_TC
    _refill(
        batch.experts,
        batch.ids_TK,
        batch.weights_TK,
        free_TK,
        ids_TC,
        scores_TC,
        allowed_TC,
        ids_TK,
        weights_TK,
    )
    return outcome(batch, ids_TK, weights_TK, in_place=True)


def candidate_weights(
    ids_TK: npt.NDArray[np.int16], weights_TK: npt.NDArray[np.float32], candidates: Candidates
) -> npt.NDArray[np.float32]:
    """float32 [T, C]: the gate weight that each candidate has, or would have.

    That of an expert which the token does not visit is in proportion to its score.

    >>> candidates = Candidates(np.array([[7, 3, 5]], np.int16), np.array([[0.5, 0.25, 0.125]], np.float32))
    >>> candidate_weights(np.array([[3, 7]], np.int16), np.array([[0.5, 1.0]], np.float32), candidates)
    array([[1.  , 0.5 , 0.25]], dtype=float32)
    """
    weights_TC = np.empty(candidates.ids_TC.shape, np.float32)
    _candidate_weights(ids_TK, weights_TK, candidates.ids_TC, candidates.scores_TC, weights_TC)
    return weights_TC


def check_experts(name: str, experts: tuple[int, ...], batch: Batch) -> None:
    """Refuse ids that the layer does not have.

    Raises:
        PolicyError: naming the parameter ``name``.
    """
    for expert in experts:
        if expert >= batch.experts:
            rule = f"must be below the {batch.experts} experts of a layer"
            raise PolicyError(rule, field=f"routing.{name}", got=expert)


def _look_up(
    on_QE: npt.NDArray[np.bool_], row_T: npt.NDArray[np.intp], ids_TK: npt.NDArray[np.int16]
) -> npt.NDArray[np.bool_]:
    """Whether each expert is on for its token; no expert is not."""
    on_TK = np.empty(ids_TK.shape, np.bool_)
    _look_up_into(on_QE, row_T, ids_TK, on_TK)
    return on_TK


@jit
def _look_up_into(on_QE: Any, row_T: Any, ids_TK: Any, on_TK: Any) -> None:
    T, K = ids_TK.shape
    for token in range(T):
        on_E = on_QE[row_T[token]]
        for place in range(K):
            expert = ids_TK[token, place]
            on_TK[token, place] = expert >= 0 and on_E[expert]


@jit
def _refill(
    experts: int,
    before_TK: Any,
    weights_TK: Any,
    free_TK: Any,
    ids_TC: Any,
    scores_TC: Any,
    allowed_TC: Any,
    ids_TK: Any,
    after_TK: Any,
) -> None:
    """Write into ``ids_TK`` and ``after_TK``, copies of what was. Weights of no tokens stand for none."""
    T, K = before_TK.shape
    C = ids_TC.shape[1]
    weighted = len(weights_TK) > 0
    # The last token that visited each expert: faster than looking through the places of each token.
    # Entry 0 is that of no expert; unsigned indices need no test for negative values.
    visitor_E = np.full(experts + 1, -1, np.int32)
    # A token's free places, and candidates for them. Nobody could predict which: no branch depends on them.
    free_K, next_C = np.empty(K + 1, np.int64), np.empty(C + 1, np.int64)
    for token in range(T):
        free = left = np.uint64(0)
        for place in range(K):
            free_K[free] = place
            free += np.uint64(free_TK[token, place])
        if free == 0:
            continue
        for place in range(K):
            visitor_E[np.uint64(before_TK[token, place] + 1)] = token
        for candidate in range(C):
            next_C[left] = candidate
            new = visitor_E[np.uint64(ids_TC[token, candidate] + 1)] != token
            left += np.uint64(allowed_TC[token, candidate] & new)
        found, scale = min(free, left), np.float32(1.0)
        if weighted and found > 0:
            scale = token_scale(token, before_TK, weights_TK, ids_TC, scores_TC)
        for taken in range(found):
            hole, instead = np.uint64(free_K[taken]), np.uint64(next_C[taken])
            ids_TK[token, hole] = ids_TC[token, instead]
            if weighted:
                after_TK[token, hole] = scores_TC[token, instead] * scale
        for taken in range(found, free):
            ids_TK[token, np.uint64(free_K[taken])] = NO_EXPERT


@jit
def _candidate_weights(ids_TK: Any, weights_TK: Any, ids_TC: Any, scores_TC: Any, weights_TC: Any) -> None:
    T, C = ids_TC.shape
    K = ids_TK.shape[1]
    weights_N = weights_TK.reshape(-1)
    # Where an expert stood last: faster than looking through the places of each token. Entry 0 is that of no
    # expert; unsigned indices need no test for negative values.
    last_E = np.full(_IDS + 1, -1, np.int64)
    for token in range(T):
        scale = token_scale(token, ids_TK, weights_TK, ids_TC, scores_TC)
        for place in range(K):
            last_E[np.uint64(ids_TK[token, place] + 1)] = token * K + place
        for candidate in range(C):
            last = last_E[np.uint64(ids_TC[token, candidate] + 1)]
            own = weights_N[np.uint64(max(last, 0))]
            weights_TC[token, candidate] = own if last >= token * K else scores_TC[token, candidate] * scale
