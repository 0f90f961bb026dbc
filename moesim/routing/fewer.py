"""Fewer experts for a token: rules that keep the best of those it chose.

A token's places are ordered by gate weight, equal ones by place. Each rule says how many of the first ones
stay, at least one; the others are dropped. What papers say of the probabilities of all experts is applied to
the gate weights of the chosen ones, as shares of their sum, whatever that is.

Axes: T tokens, K experts per token (places), G home ranks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from moesim.errors import PolicyError
from moesim.routing.parameters import choice, flag, integer, number
from moesim.routing.policy import NO_EXPERT, Batch, Cost, Need, Outcome, outcome, weights_of
from moesim.routing.ranking import best_first
from traces.jit import jit

Counts = npt.NDArray[np.intp]
Weights = npt.NDArray[np.float64]

IMPORTANT = ("undecided", "decided")


@dataclass(frozen=True)
class Fewer:
    """What the rules have in common.

    Attributes:
        renormalise: whether the weights of what stays grow until they have the sum that all had before.
            Models whose routers normalise over the chosen experts (Mixtral) would do so; others
            (OLMoE, DeepSeek-V2) leave the weights as they are.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"weights"})
    cost: ClassVar[Cost] = Cost(assignments=2)

    renormalise: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        flag("renormalise", self.renormalise)

    def apply(self, batch: Batch) -> Outcome:
        """The batch without the places that the rule does not keep.

        Raises:
            PolicyError: the batch has no gate weights.
        """
        weights_TK = weights_of(batch, self)
        order_TK, weights_KT = best_first(batch.ids_TK, weights_TK)
        count_T = np.maximum(self.count(weights_KT, batch), 1)
        ids_TK, kept_TK = _keep(batch.ids_TK, weights_TK, order_TK, count_T, self.renormalise)
        return outcome(batch, ids_TK, kept_TK if self.renormalise else weights_TK)

    def count(self, weights_KT: Weights, batch: Batch) -> Counts:
        """[T]: how many of its best experts each token keeps; of 0 it keeps one.

        Args:
            weights_KT: float64, weights by rank and token, descending along K; 0 where a token has fewer.
            batch: where they come from.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class TopK(Fewer):
    """Each token visits its k best experts.

    The least that a deployment can change; the loads of gpt-oss and DeepSeek with fewer experts are
    measured in arXiv 2505.03531.

    >>> batch = Batch(
    ...     ids_TK=np.array([[4, 7, 2]], dtype=np.int16),
    ...     weights_TK=np.array([[0.25, 0.5, 0.125]], dtype=np.float32),
    ...     offsets_G=np.array([0, 1]),
    ...     experts=8,
    ... )
    >>> TopK(2).apply(batch).ids_TK
    array([[ 4,  7, -1]], dtype=int16)

    Attributes:
        k: experts of a token; K and more change nothing. A list has one number for each layer of the model,
            dense layers included: entry l is layer l's.

    Raises:
        PolicyError: a parameter has a wrong type or value; applied to a layer that the list does not have.
    """

    name: ClassVar[str] = "top_k"

    k: int | tuple[int, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.k, Sequence) and not isinstance(self.k, str) and self.k:
            checked: int | tuple[int, ...] = tuple(integer("k", each, 1) for each in self.k)
        else:
            checked = integer("k", self.k, 1)
        object.__setattr__(self, "k", checked)

    def count(self, weights_KT: Weights, batch: Batch) -> Counts:
        """k of the layer."""
        k = self.k
        if isinstance(k, tuple):
            if batch.layer >= len(k):
                rule = f"must have an entry for each layer of the model, {batch.layer} too"
                raise PolicyError(rule, field="routing.k", got=f"{len(k)} entries")
            k = k[batch.layer]
        return np.full(weights_KT.shape[1], min(k, len(weights_KT)))


@dataclass(frozen=True)
class TopP(Fewer):
    """Each token visits its best experts until their weights add up to p of the sum.

    Harder Tasks Need More Experts (arXiv 2403.07652), there over the probabilities of all experts.

    Attributes:
        p: from 0 to 1; 1 keeps every expert with a weight.

    Raises:
        PolicyError: a parameter has a wrong type or value.
    """

    name: ClassVar[str] = "top_p"

    p: float

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "p", number("p", self.p, 0.0, 1.0))

    def count(self, weights_KT: Weights, batch: Batch) -> Counts:
        """One, and one for each of the sums of the first weights that falls short."""
        sum_KT = np.cumsum(weights_KT, axis=0)
        return 1 + np.count_nonzero(sum_KT[:-1] < self.p * sum_KT[-1], axis=0)


@dataclass(frozen=True)
class Threshold(Fewer):
    """Each token visits the experts that have at least a given share of its gate weights.

    The rule of DynMoE's top-any gating (arXiv 2405.14297), whose thresholds are trained, one for each expert.

    Attributes:
        share: from 0, which changes nothing, to 1.

    Raises:
        PolicyError: a parameter has a wrong type or value.
    """

    name: ClassVar[str] = "threshold"

    share: float

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "share", number("share", self.share, 0.0, 1.0))

    def count(self, weights_KT: Weights, batch: Batch) -> Counts:
        """The weights that reach the share."""
        return np.count_nonzero(weights_KT >= self.share * weights_KT.sum(axis=0), axis=0)


@dataclass(frozen=True)
class Gap(Fewer):
    """Each token visits its best experts down to the first large gap between weights.

    Adaptive Gating (arXiv 2310.07188): one expert instead of two where the first is far ahead of the second.
    With more experts the first such gap decides.

    Attributes:
        gap: share of the sum of the token's weights above which a gap is large; 1 changes nothing.

    Raises:
        PolicyError: a parameter has a wrong type or value.
    """

    name: ClassVar[str] = "gap"

    gap: float

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "gap", number("gap", self.gap, 0.0, 1.0))

    def count(self, weights_KT: Weights, batch: Batch) -> Counts:
        """One, and one for each step down before the first large one."""
        small_KT = weights_KT[:-1] - weights_KT[1:] <= self.gap * weights_KT.sum(axis=0)
        return 1 + np.count_nonzero(np.logical_and.accumulate(small_KT, axis=0), axis=0)


@dataclass(frozen=True)
class Skip(Fewer):
    """Each token skips the experts whose weight is small beside that of its best one.

    Not All Experts are Equal (arXiv 2402.14800, dynamic skipping), there for the second of two experts.

    Attributes:
        ratio: from 0, which changes nothing, to 1: an expert below ``ratio`` times the largest weight goes.

    Raises:
        PolicyError: a parameter has a wrong type or value.
    """

    name: ClassVar[str] = "skip"

    ratio: float

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "ratio", number("ratio", self.ratio, 0.0, 1.0))

    def count(self, weights_KT: Weights, batch: Batch) -> Counts:
        """The weights that reach the ratio."""
        return np.count_nonzero(weights_KT >= self.ratio * weights_KT[0], axis=0)


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
    k: int
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
        for first, last in itertools.pairwise(batch.offsets_G.tolist()):
            protected = math.ceil(Fraction(str(self.share)) * (last - first))
            order = np.argsort(rank_T[first:last], kind="stable")
            count_T[first + order[:protected]] = top_k
        return count_T


@jit
def _keep(ids_TK: Any, weights_TK: Any, order_TK: Any, count_T: Any, renormalise: bool) -> tuple[Any, Any]:
    """Ids with the first ``count_T`` of ``order_TK`` only, and their weights if they are renormalised."""
    T, K = ids_TK.shape
    kept_TK = np.full((T, K), NO_EXPERT, np.int16)
    scaled_TK = np.zeros((T, K) if renormalise else (0, K), np.float32)
    for token in range(T):
        kept = total = 0.0
        for k in range(K):
            place = order_TK[token, k]
            if ids_TK[token, place] < 0:
                break
            total += weights_TK[token, place]
            if k < count_T[token]:
                kept_TK[token, place] = ids_TK[token, place]
                kept = total
        if renormalise and kept > 0:
            for place in range(K):
                if kept_TK[token, place] >= 0:
                    scaled_TK[token, place] = weights_TK[token, place] * (total / kept)
    return kept_TK, scaled_TK
