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

from moesim.routing.parameters import choice, positive
from moesim.routing.policy import NO_EXPERT, Batch, Cost, Need, Outcome, outcome, weights_of
from traces.jit import jit

UNITS = ("expert",)
SCOPES = ("source", "global")
ORDERS = ("score",)

_MAGNITUDE, _LOWEST = 0x7FFFFFFF, -0x80000000

_FEW = 32
"""Up to here insertion finds the n-th largest, above it bits do, which are slow for a handful of keys.
With 16,384 tokens on 128, 32 and 8 ranks any value from 16 to 64 is within a tenth of the best."""


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
    needs: ClassVar[frozenset[Need]] = frozenset({"weights"})
    cost: ClassVar[Cost] = Cost(assignments=3)

    capacity_factor: float
    unit: str = "expert"
    scope: str = "source"
    order: str = "score"

    def __post_init__(self) -> None:
        object.__setattr__(self, "capacity_factor", positive("capacity_factor", self.capacity_factor))
        choice("unit", self.unit, UNITS)
        choice("scope", self.scope, SCOPES)
        choice("order", self.order, ORDERS)

    def apply(self, batch: Batch) -> Outcome:
        """The batch without what is above capacity.

        Raises:
            PolicyError: the batch has no gate weights.
        """
        weights_TK = weights_of(batch, self)
        tokens, top_k = len(batch.ids_TK), batch.top_k
        bounds_G = batch.offsets_G if self.scope == "source" else np.array([0, tokens], dtype=np.int64)
        sizes_G = np.diff(bounds_G).tolist()
        # Exact fractions are slow, and most ranks have equally many tokens.
        capacity = {size: self.capacity(size, top_k, batch.experts) for size in set(sizes_G)}
        capacity_G = [capacity[size] for size in sizes_G]
        # An expert gets at most one assignment of each token, so T is as good as any larger limit.
        limit_G = np.array([min(limit, tokens) for limit in capacity_G], dtype=np.int64)
        ids_TK = _drop(batch.ids_TK, weights_TK.view(np.int32), bounds_G, limit_G, batch.experts)
        return outcome(batch, ids_TK, weights_TK, room=sum(capacity_G) * batch.experts)

    def capacity(self, tokens: int, top_k: int, experts: int) -> int:
        """⌈γ·T·K / E⌉ for γ as it is written in decimal: 1.1 · 50 is 55, not the 56 of binary floats."""
        return math.ceil(Fraction(str(self.capacity_factor)) * tokens * top_k / experts)


@jit
def _drop(
    ids_TK: npt.NDArray[np.int16],
    bits_TK: npt.NDArray[np.int32],
    bounds_G: npt.NDArray[np.int64],
    limit_G: npt.NDArray[np.int64],
    experts: int,
) -> npt.NDArray[np.int16]:
    """int16 [T, K]: ``ids_TK`` with −1 for what is above ``limit_G`` in the rows of each source.

    An expert above its limit is cut at a threshold: all that is above it stays, and of what equals it
    the first in row order, until the limit is reached.
    """
    kept_TK = ids_TK.copy()
    ids_N, bits_N, kept_N = ids_TK.reshape(-1), bits_TK.reshape(-1), kept_TK.reshape(-1)
    top_k = ids_TK.shape[1]
    count_E = np.zeros(experts, dtype=np.int64)
    end_E = np.zeros(experts, dtype=np.int64)
    threshold_E = np.zeros(experts, dtype=np.int32)
    ties_E = np.zeros(experts, dtype=np.int64)
    pool_N = np.empty(ids_TK.size, dtype=np.int32)
    for source in range(len(limit_G)):
        first, last, limit = bounds_G[source] * top_k, bounds_G[source + 1] * top_k, limit_G[source]
        count_E[:] = 0
        for index in range(first, last):
            if ids_N[index] >= 0:
                count_E[ids_N[index]] += 1
        above = total = 0
        for expert in range(experts):
            end_E[expert] = total
            total += count_E[expert]
            above += count_E[expert] > limit
        if above == 0:
            continue
        # From here on every expert is treated alike: a branch on whether it is above its limit would be
        # mispredicted so often that it costs more than the work it saves.
        for index in range(first, last):
            if ids_N[index] >= 0:
                pool_N[end_E[ids_N[index]]] = _key(bits_N[index])
                end_E[ids_N[index]] += 1
        for expert in range(experts):
            threshold_E[expert] = _LOWEST
            if count_E[expert] > limit:
                keys_N = pool_N[end_E[expert] - count_E[expert] : end_E[expert]]
                threshold_E[expert], ties_E[expert] = _threshold(keys_N, limit)
        for index in range(first, last):
            expert = ids_N[index]
            if expert >= 0:
                key = _key(bits_N[index])
                kept_N[index] = expert if key >= threshold_E[expert] else NO_EXPERT
                if key == threshold_E[expert]:
                    ties_E[expert] -= 1
                    if ties_E[expert] < 0:
                        kept_N[index] = NO_EXPERT
    return kept_TK


@jit
def _key(bits: np.int32) -> np.int32:
    """An integer in the order of the float32 with these bits (sign and magnitude); −0.0 equals 0.0."""
    return bits if bits >= 0 else np.int32(-(bits & _MAGNITUDE))


@jit
def _threshold(keys_N: npt.NDArray[np.int32], limit: int) -> tuple[np.int32, int]:
    """(the ``limit``-th largest key, how many equal to it are among the ``limit`` largest). Reorders keys."""
    threshold = _nth_by_insertion(keys_N, limit) if len(keys_N) <= _FEW else _nth_by_bits(keys_N, limit)
    larger = 0
    for key in keys_N:
        larger += key > threshold
    return threshold, limit - larger


@jit
def _nth_by_insertion(keys_N: npt.NDArray[np.int32], nth: int) -> np.int32:
    """The ``nth`` largest key; moves the ``nth`` largest to the front, in descending order."""
    for position in range(1, len(keys_N)):
        key, hole = keys_N[position], position
        if position >= nth:
            if key <= keys_N[nth - 1]:
                continue
            hole = nth - 1
            keys_N[position] = keys_N[hole]
        while hole > 0 and keys_N[hole - 1] < key:
            keys_N[hole] = keys_N[hole - 1]
            hole -= 1
        keys_N[hole] = key
    found: np.int32 = keys_N[nth - 1]
    return found


@jit
def _nth_by_bits(keys_N: npt.NDArray[np.int32], nth: int) -> np.int32:
    """The ``nth`` largest key: the largest number that at least ``nth`` keys reach, found bit by bit.

    32 passes that the compiler turns into vector code: linear for any input, unlike quickselect.
    """
    found = np.int32(_LOWEST)
    for bit in range(31, -1, -1):
        # From the lowest number, adding 2³¹ for the sign bit gives 0.
        candidate = np.int32(0) if bit == 31 else np.int32(found + (1 << bit))
        reached = np.int32(0)
        for key in keys_N:
            reached += np.int32(key >= candidate)
        if reached >= nth:
            found = candidate
    return found
