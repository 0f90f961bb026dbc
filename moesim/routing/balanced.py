"""Balanced choices, as bounds: what routing would cost if experts, or chance, chose.

None of them is what a trained router wants; the gate mass that they lose says how far they are from it.

Axes: T tokens, K experts per token, C candidates per token, E experts, G home ranks, J places of a token
afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from moesim.routing.capped import SCOPES, Capped, limits
from moesim.routing.drop import stays_TK
from moesim.routing.filling import candidate_weights
from moesim.routing.noise import noise
from moesim.routing.parameters import choice, integer, positive
from moesim.routing.policy import NO_EXPERT, Batch, Cost, Need, Outcome, candidates_of, outcome
from traces.base.jit import jit


@dataclass(frozen=True)
class ExpertChoice:
    """Each expert chooses its C = ⌈γ·T·K / E⌉ best tokens, however many experts choose the same one.

    Expert Choice routing (arXiv 2202.09368, section 3.2). An expert sees the tokens that have it among their
    candidates, and chooses fewer than C if these are fewer; with all E experts as candidates the choice is
    the paper's. Of equal scores the lower token row is chosen.

    Two experts of capacity 1: both prefer the first token.

    >>> from moesim.routing.policy import Candidates
    >>> batch = Batch(
    ...     ids_TK=np.array([[0], [1]], np.int16),
    ...     weights_TK=None,
    ...     offsets_G=np.array([0, 2]),
    ...     experts=2,
    ...     candidates=Candidates(
    ...         np.array([[0, 1], [1, 0]], np.int16), np.array([[0.5, 0.5], [0.4, 0.1]], np.float32)
    ...     ),
    ... )
    >>> ExpertChoice().apply(batch).ids_TK.tolist()
    [[0, 1], [-1, -1]]

    Attributes:
        capacity_factor: γ, finite and above 0.
        scope: ``source``: of each home rank's tokens alone; ``global``: of all tokens of the step.

    Raises:
        PolicyError: a parameter has a wrong type or value.
    """

    name: ClassVar[str] = "expert_choice"
    widens: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset({"candidates"})

    capacity_factor: float = 1.0
    scope: str = "source"

    def __post_init__(self) -> None:
        object.__setattr__(self, "capacity_factor", positive("capacity_factor", self.capacity_factor))
        choice("scope", self.scope, SCOPES)

    @property
    def cost(self) -> Cost:
        """Scores are sorted for each expert: read to count, to gather, and to choose."""
        return Cost(candidates=3, exchanges=1 if self.scope == "global" else 0)

    def apply(self, batch: Batch) -> Outcome:
        """The batch as the experts choose it.

        Raises:
            PolicyError: the batch has no candidates.
        """
        candidates = candidates_of(batch, self)
        ids_TC, bits_TC = candidates.ids_TC, candidates.scores_TC.view(np.int32)
        allowed = limits(Capped(self.capacity_factor, scope=self.scope), batch, self)
        stays_TC = stays_TK(allowed, ids_TC, bits_TC)
        weights_TC = None
        if batch.weights_TK is not None:
            weights_TC = candidate_weights(batch.ids_TK, batch.weights_TK, candidates)
        ids_TJ, weights_TJ = _gather(ids_TC, weights_TC, stays_TC)
        return outcome(batch, ids_TJ, weights_TJ, room=allowed.room)


@dataclass(frozen=True)
class UniformRandom:
    """Each token visits as many experts as it chose, drawn uniformly without replacement.

    What vLLM's routing simulator calls uniform random routing, to measure a server without imbalance: loads
    differ by chance alone, which in small batches is much. Weights stay in their places.

    Attributes:
        seed: equal ones draw equal experts, whatever the trace.

    Raises:
        PolicyError: a parameter has a wrong type or value.
    """

    name: ClassVar[str] = "uniform_random"
    needs: ClassVar[frozenset[Need]] = frozenset()
    cost: ClassVar[Cost] = Cost(assignments=1)

    seed: int = 0

    def __post_init__(self) -> None:
        integer("seed", self.seed, 0, (1 << 63) - 1)

    def apply(self, batch: Batch) -> Outcome:
        """The batch with other experts."""
        ids_TK = np.full(batch.ids_TK.shape, NO_EXPERT, np.int16)
        _draw(batch.ids_TK, noise(self.seed, batch.draw, batch.ids_TK.shape), batch.experts, ids_TK)
        return outcome(batch, ids_TK, batch.weights_TK)


def _gather(
    ids_TC: npt.NDArray[np.int16], weights_TC: npt.NDArray[np.float32] | None, stays_TC: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.float32] | None]:
    """(ids [T, J], weights [T, J]) of the candidates that stay, J as small as it can be, at least 1."""
    T, places = len(ids_TC), max(1, _most(stays_TC))
    # One element more, for what is written behind the last token's last place.
    ids_N, weights_N = np.full(T * places + 1, NO_EXPERT, np.int16), np.zeros(T * places + 1, np.float32)
    _gather_into(ids_TC, ids_TC if weights_TC is None else weights_TC, stays_TC, places, ids_N, weights_N)
    ids_TJ, weights_TJ = ids_N[:-1].reshape(T, places), weights_N[:-1].reshape(T, places)
    return ids_TJ, None if weights_TC is None else weights_TJ


@jit
def _most(stays_TC: Any) -> int:
    """Candidates of the token of which most stay."""
    most = 0
    for token in range(len(stays_TC)):
        count = 0
        for stays in stays_TC[token]:
            count += stays
        most = max(most, count)
    return most


@jit
def _gather_into(
    ids_TC: Any, weights_TC: Any, stays_TC: Any, places: int, ids_N: Any, weights_N: Any
) -> None:
    """Write each token's ``places``, of which the last ones stay as they are."""
    T, C = ids_TC.shape
    for token in range(T):
        at = np.uint64(token * places)
        # Each candidate takes the next place, which is free again if it does not stay: nothing branches.
        for candidate in range(C):
            ids_N[at], weights_N[at] = ids_TC[token, candidate], weights_TC[token, candidate]
            at += np.uint64(stays_TC[token, candidate])
        ids_N[at], weights_N[at] = NO_EXPERT, 0


@jit
def _draw(ids_TK: Any, noise_TK: Any, experts: int, drawn_TK: Any) -> None:
    """Floyd's sampling (Bentley and Floyd 1987): the n-th draw is from the first experts − count + n."""
    T, K = ids_TK.shape
    for token in range(T):
        drawn_K = drawn_TK[token]
        last = experts - 1
        for place in range(K):
            last -= ids_TK[token, place] >= 0
        for place in range(K):
            if ids_TK[token, place] < 0:
                continue
            last += 1
            expert = noise_TK[token, place] % (last + 1)
            for other in range(place):
                if drawn_K[other] == expert:
                    expert = last
                    break
            drawn_K[place] = expert
