"""The balanced assignment of BASE layers, as a bound.

Axes: T tokens, K experts per token, C candidates per token, E experts, N tokens of one source.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from moesim.routing.capped import SCOPES
from moesim.routing.errors import PolicyError
from moesim.routing.filling import candidate_weights
from moesim.routing.parameters import choice
from moesim.routing.policy import NO_EXPERT, Batch, Cost, Need, Outcome, candidates_of, outcome

_Value = TypeVar("_Value", np.int16, np.float32)

MOST_TOKENS = 512
"""Of a source. A linear assignment takes cubic time: 0.1 s for 128 tokens with K = 8, seconds for 512."""


@dataclass(frozen=True)
class Base:
    """Every expert serves ⌈T·K / E⌉ tokens at most, and the sum of scores is as large as it can be.

    BASE layers (arXiv 2103.16716, section 3), there for one expert per token. For K experts there are K
    rounds, each a linear assignment of every token to an expert that it does not have yet, solved exactly,
    after which no expert has more than its share of the rounds so far. On random scores the sum comes within
    half a percent of that of the integer programme for all K at once.

    A token is assigned to its candidates only. What finds no seat among them is dropped; with all E experts
    as candidates that is next to nothing.

    >>> from moesim.routing.policy import Candidates
    >>> batch = Batch(
    ...     ids_TK=np.array([[0], [0]], np.int16),
    ...     weights_TK=None,
    ...     offsets_G=np.array([0, 2]),
    ...     experts=2,
    ...     candidates=Candidates(
    ...         np.array([[0, 1], [0, 1]], np.int16), np.array([[0.9, 0.1], [0.6, 0.4]], np.float32)
    ...     ),
    ... )
    >>> Base().apply(batch).ids_TK.tolist()
    [[0], [1]]

    Attributes:
        scope: ``source``: each home rank's tokens alone; ``global``: all tokens of the step.

    Raises:
        PolicyError: a parameter has a wrong type or value; applied to more than 512 tokens of a source.
    """

    name: ClassVar[str] = "base"
    needs: ClassVar[frozenset[Need]] = frozenset({"candidates"})

    scope: str = "source"

    def __post_init__(self) -> None:
        choice("scope", self.scope, SCOPES)

    @property
    def cost(self) -> Cost:
        """One reading of the scores: what an assignment takes on a GPU is not estimated."""
        return Cost(candidates=1, exchanges=1 if self.scope == "global" else 0)

    def apply(self, batch: Batch) -> Outcome:
        """The batch with balanced experts.

        Raises:
            PolicyError: the batch has no candidates, or too many tokens.
        """
        candidates = candidates_of(batch, self)
        bounds = batch.offsets_G.tolist() if self.scope == "source" else [0, len(batch.ids_TK)]
        place_TK = np.empty((len(batch.ids_TK), batch.top_k), np.intp)
        room = 0
        for first, last in itertools.pairwise(bounds):
            if last - first > MOST_TOKENS:
                rule = f"base assigns at most {MOST_TOKENS} tokens of a source at once; use expert_choice"
                raise PolicyError(rule, field="routing.policy", got=f"{last - first} tokens")
            ids_NC, scores_NC = candidates.ids_TC[first:last], candidates.scores_TC[first:last]
            place_TK[first:last] = _assign(ids_NC, scores_NC, batch.top_k, batch.experts)
            room += -(-(last - first) * batch.top_k // batch.experts) * batch.experts
        ids_TK = _take(candidates.ids_TC, place_TK, NO_EXPERT)
        if batch.weights_TK is None:
            return outcome(batch, ids_TK, None, room=room)
        weights_TC = candidate_weights(batch.ids_TK, batch.weights_TK, candidates)
        return outcome(batch, ids_TK, _take(weights_TC, place_TK, 0), room=room)


def _assign(
    ids_NC: npt.NDArray[np.int16], scores_NC: npt.NDArray[np.float32], top_k: int, experts: int
) -> npt.NDArray[np.intp]:
    """[N, K]: which candidate each round gives each token, −1 for none."""
    from scipy.optimize import linear_sum_assignment  # here: it takes a fifth of a second to load

    tokens = len(ids_NC)
    row_N = np.arange(tokens)
    # So bad that any other assignment with fewer of them is better: scores are at most 1.
    never = -1.0 - tokens
    score_NE = np.full((tokens, experts), never)
    np.put_along_axis(score_NE, ids_NC.astype(np.intp), scores_NC, axis=1)
    candidate_NE = np.full((tokens, experts), -1, np.intp)
    np.put_along_axis(candidate_NE, ids_NC.astype(np.intp), np.arange(ids_NC.shape[1])[None], axis=1)
    used_E = np.zeros(experts, np.intp)
    place_NK = np.full((tokens, top_k), -1, np.intp)
    for k in range(top_k):
        seats_E = -(-tokens * (k + 1) // experts) - used_E
        expert_S = np.repeat(np.arange(experts), seats_E)
        _, seat_N = linear_sum_assignment(score_NE[:, expert_S], maximize=True)
        expert_N = expert_S[seat_N]
        seated_N = score_NE[row_N, expert_N] > never
        place_NK[seated_N, k] = candidate_NE[row_N, expert_N][seated_N]
        used_E += np.bincount(expert_N[seated_N], minlength=experts)
        score_NE[row_N, expert_N] = never
    return place_NK


def _take(
    values_TC: npt.NDArray[_Value], place_TK: npt.NDArray[np.intp], nothing: int
) -> npt.NDArray[_Value]:
    found_TK = np.take_along_axis(values_TC, np.maximum(place_TK, 0), axis=1)
    found_TK[place_TK < 0] = nothing
    return found_TK
