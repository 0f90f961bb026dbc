"""Dropping the assignments above an expert's capacity, those with the smallest gate weights first.

Capacity as in Switch Transformers (arXiv 2101.03961, section 2.2) and GShard (arXiv 2006.16668,
section 2.2), the order by score as in Capacity-Aware Inference (arXiv 2503.05066).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from moesim.errors import PolicyError
from moesim.routing.policy import NO_EXPERT, Batch, Outcome, outcome
from traces.jit import jit

UNITS = ("expert",)
SCOPES = ("source", "global")
ORDERS = ("score",)


@dataclass(frozen=True)
class Drop:
    """Each expert serves at most C = ⌈γ·T·K / E⌉ assignments, those with the largest gate weights.

    Equal weights go to the lower token row. The weights of what is kept are not changed. With replicas
    the limit is on the logical expert.

    γ = 1, four tokens, K = 1, E = 2, one source: C = 2, so the third choice of expert 0 goes.

    >>> batch = Batch(
    ...     ids_TK=np.array([[0], [0], [0], [1]], dtype=np.int16),
    ...     weights_TK=np.array([[0.9], [0.5], [0.7], [0.6]], dtype=np.float32),
    ...     offsets_G=np.array([0, 4]),
    ...     experts=2,
    ... )
    >>> Drop(capacity_factor=1.0).apply(batch).ids_TK.ravel()
    array([ 0, -1,  0,  1], dtype=int16)

    Attributes:
        capacity_factor: γ, finite and above 0.
        unit: what is limited: ``expert``.
        scope: ``source`` limits what each home rank sends to an expert, T being that rank's own tokens
            (decided before the all-to-all, the usual way); ``global`` limits the whole step.
        order: what decides who stays: ``score``, the gate weight.

    Raises:
        PolicyError: a parameter has a wrong type or value.
    """

    name: ClassVar[str] = "drop"
    needs_weights: ClassVar[bool] = True

    capacity_factor: float
    unit: str = "expert"
    scope: str = "source"
    order: str = "score"

    def __post_init__(self) -> None:
        object.__setattr__(self, "capacity_factor", _positive("capacity_factor", self.capacity_factor))
        for field, value, known in (
            ("unit", self.unit, UNITS),
            ("scope", self.scope, SCOPES),
            ("order", self.order, ORDERS),
        ):
            if not isinstance(value, str) or value not in known:
                raise PolicyError(f"must be one of: {', '.join(known)}", field=f"routing.{field}", got=value)

    def apply(self, batch: Batch) -> Outcome:
        """The batch without what is above capacity.

        Raises:
            PolicyError: the batch has no gate weights.
        """
        if batch.weights_TK is None:
            raise PolicyError(
                "dropping by score needs gate weights, which this trace lacks; record it with weights or use "
                "policy none",
                field="routing.order",
                got=self.order,
            )
        tokens, top_k = batch.ids_TK.shape
        bounds_G = batch.offsets_G if self.scope == "source" else np.array([0, tokens], dtype=np.int64)
        capacity_G = [self.capacity(int(size), top_k, batch.experts) for size in np.diff(bounds_G)]
        # An expert gets at most one assignment of each token, so T is as good as any larger limit.
        limit_G = np.array([min(capacity, tokens) for capacity in capacity_G], dtype=np.int64)
        ids_TK = _drop(batch.ids_TK, batch.weights_TK, bounds_G, limit_G, batch.experts)
        return outcome(batch, ids_TK, batch.weights_TK, capacity=sum(capacity_G))

    def capacity(self, tokens: int, top_k: int, experts: int) -> int:
        """⌈γ·T·K / E⌉ for γ as it is written in decimal: 1.1 · 10 is 11, not the 12 of binary floats."""
        return math.ceil(Fraction(str(self.capacity_factor)) * tokens * top_k / experts)


def _positive(field: str, value: object) -> float:
    """``value`` as a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PolicyError("must be a number", field=f"routing.{field}", got=value)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not (math.isfinite(number) and number > 0):
        raise PolicyError("must be finite and above 0", field=f"routing.{field}", got=value)
    return number


@jit
def _drop(
    ids_TK: npt.NDArray[np.int16],
    weights_TK: npt.NDArray[np.float32],
    bounds_G: npt.NDArray[np.int64],
    limit_G: npt.NDArray[np.int64],
    experts: int,
) -> npt.NDArray[np.int16]:
    """int16 [T, K]: ``ids_TK`` with −1 for what is above ``limit_G`` in the rows of each source.

    An expert above its limit is cut at a threshold: all weights above it stay, and of those equal to it
    the first in row order until the limit is reached.
    """
    kept_TK = ids_TK.copy()
    top_k = ids_TK.shape[1]
    count_E = np.zeros(experts, dtype=np.int64)
    cursor_E = np.zeros(experts, dtype=np.int64)
    threshold_E = np.zeros(experts, dtype=np.float32)
    ties_E = np.zeros(experts, dtype=np.int64)
    pool_N = np.empty(ids_TK.size, dtype=np.float32)
    for source in range(len(limit_G)):
        first, last, limit = bounds_G[source], bounds_G[source + 1], limit_G[source]
        count_E[:] = 0
        for token in range(first, last):
            for place in range(top_k):
                if ids_TK[token, place] >= 0:
                    count_E[ids_TK[token, place]] += 1
        used = 0
        for expert in range(experts):
            if count_E[expert] > limit:
                cursor_E[expert] = used
                used += count_E[expert]
        if used == 0:
            continue
        for token in range(first, last):
            for place in range(top_k):
                expert = ids_TK[token, place]
                if expert >= 0 and count_E[expert] > limit:
                    pool_N[cursor_E[expert]] = weights_TK[token, place]
                    cursor_E[expert] += 1
        for expert in range(experts):
            if count_E[expert] > limit:
                weights_N = pool_N[cursor_E[expert] - count_E[expert] : cursor_E[expert]]
                threshold_E[expert], ties_E[expert] = _threshold(weights_N, limit)
        for token in range(first, last):
            for place in range(top_k):
                expert = ids_TK[token, place]
                if expert < 0 or count_E[expert] <= limit or weights_TK[token, place] > threshold_E[expert]:
                    continue
                if weights_TK[token, place] == threshold_E[expert] and ties_E[expert] > 0:
                    ties_E[expert] -= 1
                else:
                    kept_TK[token, place] = NO_EXPERT
    return kept_TK


@jit
def _threshold(weights_N: npt.NDArray[np.float32], limit: int) -> tuple[float, int]:
    """(the ``limit``-th largest weight, how many equal to it are among the ``limit`` largest)."""
    threshold = np.partition(weights_N, len(weights_N) - limit)[len(weights_N) - limit]
    larger = 0
    for weight in weights_N:
        larger += weight > threshold
    return threshold, limit - larger
