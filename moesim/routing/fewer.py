"""Fewer experts for a token: rules that look at its own gate weights and keep the best of those it chose.

A token's places are ordered by gate weight, equal ones by place. Each rule says how many of the first ones
stay, at least one; the others are dropped. What papers say of the probabilities of all experts is applied to
the gate weights of the chosen ones, as shares of their sum, whatever that is.

Axes: T tokens, K experts per token (places).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from moesim.routing.errors import PolicyError
from moesim.routing.parameters import TOP_K, flag, integer, number
from moesim.routing.policy import NO_EXPERT, Batch, Cost, Need, Outcome, outcome, weights_of
from moesim.routing.ranking import best_first
from moesim.routing.scale import renormalised
from traces.base.jit import jit

Counts = npt.NDArray[np.intp]
Weights = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Fewer:
    """What the rules have in common.

    Attributes:
        renormalise: whether the weights of what stays grow until they have the sum that all had before.
            Models whose routers normalise over the chosen experts (Mixtral) would do so; others
            (OLMoE, DeepSeek-V2) leave the weights as they are.
    """

    name: ClassVar[str]
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
        ids_TK = _keep(batch.ids_TK, order_TK, self.count(weights_KT, batch))
        if self.renormalise:
            weights_TK = renormalised(batch.ids_TK, weights_TK, ids_TK)
        return outcome(batch, ids_TK, weights_TK, in_place=True)

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

    The least that a deployment can change. Faster MoE LLM Inference (arXiv 2505.03531) measures what it
    wins and costs.

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

    k: int | tuple[int, ...] = field(metadata=TOP_K)

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
                rule = f"must have an entry for each layer of the model, for layer {batch.layer} too"
                raise PolicyError(rule, field="routing.k", got=list(k))
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
        return 1 + _how_many(sum_KT[:-1] < self.p * sum_KT[-1])


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
        return _how_many(weights_KT >= self.share * weights_KT.sum(axis=0))


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
        return 1 + _how_many(np.logical_and.accumulate(small_KT, axis=0))


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
        return _how_many(weights_KT >= self.ratio * weights_KT[0])


def _how_many(true_KT: npt.NDArray[np.bool_]) -> Counts:
    """For each token."""
    found: Counts = np.count_nonzero(true_KT, axis=0)
    return found


@jit
def _keep(ids_TK: Any, order_TK: Any, count_T: Any) -> Any:
    """The ids in the first ``count_T`` places of ``order_TK``."""
    kept_TK = np.full(ids_TK.shape, NO_EXPERT, np.int16)
    for token in range(len(ids_TK)):
        for place in order_TK[token, : max(1, count_T[token])]:
            kept_TK[token, place] = ids_TK[token, place]
    return kept_TK
