"""Not all tokens alike: those that matter keep all of their experts, or get more than the router chose.

Axes: T tokens, K experts per token (places).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np

from moesim.routing.fewer import Counts, Fewer, Weights
from moesim.routing.filling import refill
from moesim.routing.parameters import TOP_K, choice, integer, number
from moesim.routing.policy import NO_EXPERT, Batch, Cost, Need, Outcome, candidates_of, weights_of
from moesim.routing.ranking import best_first
from traces.base.jit import jit

IMPORTANT = ("undecided", "decided")


@dataclass(frozen=True)
class Important(Fewer):
    """Of each home rank's tokens the important ones keep their experts, the others their k best.

    Dynamic pruning with protected tokens, as in DA-MoE (arXiv 2409.06669) and Mixture Compressor
    (arXiv 2410.06270). They take importance from the attention, which no trace has. Here a router that is
    undecided makes a token important, for harder inputs need more experts (arXiv 2403.07652); unlike
    ``top_p`` the share of tokens is fixed, and with it the load.

    Attributes:
        share: important tokens of all, from 0 to 1, which changes nothing; rounded up for each rank.
        k: experts of the other tokens.
        important: ``undecided`` tokens, whose largest weight has a small share in their sum, or ``decided``
            ones. Of equal ones the lower row is the more important.

    Raises:
        PolicyError: a parameter has a wrong type or value.
    """

    name: ClassVar[str] = "important"

    share: float
    k: int = field(metadata=TOP_K)
    important: str = "undecided"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "share", number("share", self.share, 0.0, 1.0))
        integer("k", self.k, 1)
        choice("important", self.important, IMPORTANT)

    def count(self, weights_KT: Weights, batch: Batch) -> Counts:
        """K for the first tokens of each rank in order of importance, k for the rest."""
        top_k, tokens = weights_KT.shape
        sum_T = weights_KT.sum(axis=0)
        rank_T = np.divide(weights_KT[0], sum_T, out=np.zeros(tokens), where=sum_T > 0)
        if self.important == "decided":
            rank_T = -rank_T
        count_T = np.full(tokens, min(self.k, top_k))
        bounds = list(itertools.pairwise(batch.offsets_G.tolist()))
        # Exact fractions are slow, and most ranks have equally many tokens.
        sizes = {last - first for first, last in bounds}
        protected = {size: math.ceil(Fraction(str(self.share)) * size) for size in sizes}
        for first, last in bounds:
            order = np.argsort(rank_T[first:last], kind="stable")
            count_T[first + order[: protected[last - first]]] = top_k
        return count_T


@dataclass(frozen=True)
class Uncertain:
    """Tokens whose router is undecided get more experts than it chose, the next best of their candidates.

    The other half of dynamic routing (Harder Tasks Need More Experts, arXiv 2403.07652), where undecided
    tokens visit more experts than a fixed K. The weights of the chosen ones stay as they are.

    The best of two weights is two thirds of their sum; the third expert of the candidates joins.

    >>> from moesim.routing.policy import Candidates
    >>> batch = Batch(
    ...     ids_TK=np.array([[2, 0]], np.int16),
    ...     weights_TK=np.array([[0.5, 0.25]], np.float32),
    ...     offsets_G=np.array([0, 1]),
    ...     experts=4,
    ...     candidates=Candidates(
    ...         np.array([[2, 0, 3]], np.int16), np.array([[0.5, 0.25, 0.125]], np.float32)
    ...     ),
    ... )
    >>> found = Uncertain(below=0.75, k=3).apply(batch)
    >>> found.ids_TK, found.weights_TK, found.added
    (array([[2, 0, 3]], dtype=int16), array([[0.5  , 0.25 , 0.125]], dtype=float32), 1)

    Attributes:
        below: tokens get more if their largest weight has less than this share in the sum of their weights;
            from 0, which changes nothing, to 1.
        k: experts of such a token, if it has as many candidates.

    Raises:
        PolicyError: a parameter has a wrong type or value.
    """

    name: ClassVar[str] = "uncertain"
    widens: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset({"weights", "candidates"})
    cost: ClassVar[Cost] = Cost(assignments=1, candidates=1)

    below: float
    k: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "below", number("below", self.below, 0.0, 1.0))
        integer("k", self.k, 1)

    def apply(self, batch: Batch) -> Outcome:
        """The batch, as many places wider as tokens can get more experts.

        Raises:
            PolicyError: the batch has no gate weights or no candidates.
        """
        candidates = candidates_of(batch, self)
        _, weights_KT = best_first(batch.ids_TK, weights_of(batch, self))
        uncertain_T = weights_KT[0] < self.below * weights_KT.sum(axis=0)
        more = max(0, min(self.k, candidates.ids_TC.shape[1]) - batch.ids_TK.shape[1])
        ids_TK = np.full((len(uncertain_T), batch.ids_TK.shape[1] + more), NO_EXPERT, np.int16)
        weights_TK = np.zeros(ids_TK.shape, np.float32)
        ids_TK[:, : batch.ids_TK.shape[1]] = batch.ids_TK
        weights_TK[:, : batch.ids_TK.shape[1]] = weights_of(batch, self)
        wide = replace(batch, ids_TK=ids_TK, weights_TK=weights_TK)
        free_TK = _first_empty(ids_TK, uncertain_T, self.k)
        return refill(wide, free_TK, candidates, np.ones(candidates.ids_TC.shape, np.bool_))


@jit
def _first_empty(ids_TK: Any, uncertain_T: Any, most: int) -> Any:
    """[T, K]: the first empty places of each uncertain token, that it may visit ``most`` experts."""
    free_TK = np.zeros(ids_TK.shape, np.bool_)
    for token in range(len(ids_TK)):
        if uncertain_T[token]:
            wanted = most - np.count_nonzero(ids_TK[token] >= 0)
            for place in range(ids_TK.shape[1]):
                free_TK[token, place] = (ids_TK[token, place] < 0) & (wanted > 0)
                wanted -= free_TK[token, place]
    return free_TK
