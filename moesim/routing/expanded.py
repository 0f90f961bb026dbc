"""Widening what a token may visit by the experts that are where it is, before dropping.

Axes: T tokens, K experts per token, J with those of its own GPU, C candidates per token, G GPUs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from moesim.routing.capped import Capped, limits, order_TK
from moesim.routing.drop import served, stays_TK
from moesim.routing.parameters import flag
from moesim.routing.policy import (
    NO_EXPERT,
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


@dataclass(frozen=True)
class ExpandedDrop(Capped):
    """Each token asks for the candidates on its own GPU too; then what is above the capacity is dropped.

    Expanded drop of Capacity-Aware Inference (arXiv 2503.05066): experts of the token's own GPU cost no
    transfer, and fill with room that others leave. A token may end with more than K experts; with
    ``cap_at_k`` it keeps its chosen ones, and of its own GPU's the best up to K.

    One token at home on GPU 0, which holds experts 0 and 1; expert 1 joins.

    >>> from moesim.routing.policy import Candidates, Held
    >>> gpus_EG = np.array([[True, False], [True, False], [False, True], [False, True]])
    >>> batch = Batch(
    ...     ids_TK=np.array([[2]], np.int16),
    ...     weights_TK=np.array([[0.5]], np.float32),
    ...     offsets_G=np.array([0, 1, 1]),
    ...     experts=4,
    ...     candidates=Candidates(np.array([[2, 1, 3]], np.int16), np.array([[0.5, 0.25, 0.25]], np.float32)),
    ...     held=Held(gpus_EG, np.zeros(2, np.int32)),
    ... )
    >>> found = ExpandedDrop(capacity_factor=1.0).apply(batch)
    >>> found.ids_TK.tolist(), found.weights_TK.tolist(), found.added
    ([[2, 1, -1]], [[0.5, 0.25, 0.0]], 1)

    Attributes:
        cap_at_k: whether a token visits at most K experts.
    """

    name: ClassVar[str] = "expanded_drop"
    widens: ClassVar[bool] = True

    cap_at_k: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        flag("cap_at_k", self.cap_at_k)

    @property
    def needs(self) -> frozenset[Need]:
        """Who else a token might visit, and which of them are at hand."""
        return super().needs | {"weights", "candidates", "placement"}

    @property
    def cost(self) -> Cost:
        """Widening by scores, then as ``drop``; a pass more for the cap."""
        return Cost(assignments=4 + self.cap_at_k, candidates=1, exchanges=self.exchanges)

    def apply(self, batch: Batch) -> Outcome:
        """The batch, as many places wider as the GPU with most experts has of a token's candidates.

        Raises:
            PolicyError: the batch lacks what the policy needs.
        """
        limited = limits(self, batch, self)
        wide = self._widened(batch)
        stays = stays_TK(limited, limited.units_of(wide.ids_TK), order_TK(self, wide, self))
        ids_TJ = served(wide.ids_TK, stays)
        weights_TJ = weights_of(wide, self)
        if self.cap_at_k:
            ids_TJ, weights_TJ = _capped(ids_TJ, weights_TJ, batch.ids_TK.shape[1])
        return outcome(batch, ids_TJ, weights_TJ, room=limited.room)

    def _widened(self, batch: Batch) -> Batch:
        """The batch with the candidates of each token's own GPU behind its chosen experts, the best first."""
        candidates, weights_TK = candidates_of(batch, self), weights_of(batch, self)
        C = candidates.ids_TC.shape[1]
        gpus_EG = held_of(batch, self).gpus_EG
        K = batch.ids_TK.shape[1]
        J = K + min(C, int(gpus_EG.sum(axis=0).max()))
        ids_TJ = np.empty((len(batch.ids_TK), J), np.int16)
        weights_TJ = np.empty(ids_TJ.shape, np.float32)
        _widen(
            batch.ids_TK,
            weights_TK,
            candidates.ids_TC,
            candidates.scores_TC,
            batch.offsets_G,
            gpus_EG,
            ids_TJ,
            weights_TJ,
        )
        return replace(batch, ids_TK=ids_TJ, weights_TK=weights_TJ)


@jit
def _widen(
    ids_TK: Any,
    weights_TK: Any,
    ids_TC: Any,
    scores_TC: Any,
    offsets_G: Any,
    gpus_EG: Any,
    ids_TJ: Any,
    weights_TJ: Any,
) -> None:
    K, C, J = ids_TK.shape[1], ids_TC.shape[1], ids_TJ.shape[1]
    for gpu in range(len(offsets_G) - 1):
        here_E = gpus_EG[:, gpu].copy()
        for token in range(offsets_G[gpu], offsets_G[gpu + 1]):
            for place in range(K):
                ids_TJ[token, place] = ids_TK[token, place]
                weights_TJ[token, place] = weights_TK[token, place]
            for place in range(K, J):
                ids_TJ[token, place] = NO_EXPERT
                weights_TJ[token, place] = 0.0
            place = K
            for c in range(C):
                expert = ids_TC[token, c]
                if not here_E[expert]:
                    continue
                chosen = False
                for k in range(K):
                    chosen |= ids_TK[token, k] == expert
                if not chosen:
                    scale = token_scale(token, ids_TK, weights_TK, ids_TC, scores_TC)
                    ids_TJ[token, place] = expert
                    weights_TJ[token, place] = scores_TC[token, c] * scale
                    place += 1


@jit
def _capped(
    ids_TJ: npt.NDArray[np.int16], weights_TJ: npt.NDArray[np.float32], K: int
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.float32]]:
    """The first K of what each token still visits: a chosen expert in its place, others in free ones."""
    T, J = ids_TJ.shape
    ids_TK, weights_TK = ids_TJ[:, :K].copy(), weights_TJ[:, :K].copy()
    for token in range(T):
        place = 0
        for wide in range(K, J):
            if ids_TJ[token, wide] < 0:
                continue
            while place < K and ids_TK[token, place] >= 0:
                place += 1
            if place == K:
                break
            ids_TK[token, place], weights_TK[token, place] = ids_TJ[token, wide], weights_TJ[token, wide]
    return ids_TK, weights_TK
