"""Dropping what is above a capacity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from moesim.routing.capped import Capped, Limits, limits, order_TK
from moesim.routing.cut import cut
from moesim.routing.parameters import flag
from moesim.routing.policy import Batch, Cost, Need, Outcome, outcome, weights_of
from moesim.routing.scale import renormalised
from traces.base.jit import jit


@dataclass(frozen=True)
class Drop(Capped):
    """Each expert or device serves at most C = ⌈γ·T·K / E⌉ assignments; the others are dropped.

    Switch Transformers (arXiv 2101.03961), GShard (arXiv 2006.16668); by score, as in DeepSeek-V2
    (arXiv 2405.04434, section 2.2.4) and Capacity-Aware Inference (arXiv 2503.05066).

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
        renormalise: whether the weights of what stays grow until they have the sum that all had before.
    """

    name: ClassVar[str] = "drop"

    renormalise: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        flag("renormalise", self.renormalise)

    @property
    def needs(self) -> frozenset[Need]:
        """What the order and the unit need, and weights to renormalise."""
        return super().needs | ({"weights"} if self.renormalise else set[Need]())

    @property
    def cost(self) -> Cost:
        """Counting, finding thresholds, dropping."""
        return Cost(assignments=3 + self.renormalise, exchanges=self.exchanges)

    def apply(self, batch: Batch) -> Outcome:
        """The batch without what is above capacity.

        Raises:
            PolicyError: the batch lacks what the policy needs.
        """
        limited = limits(self, batch, self)
        stays = stays_TK(limited, limited.units_of(batch.ids_TK), order_TK(self, batch, self))
        ids_TK = served(batch.ids_TK, stays)
        weights_TK = batch.weights_TK
        if self.renormalise:
            weights_TK = renormalised(batch.ids_TK, weights_of(batch, self), ids_TK)
        return outcome(batch, ids_TK, weights_TK, room=limited.room, in_place=True)


def stays_TK(
    limited: Limits, unit_TK: npt.NDArray[np.int16], bits_TK: npt.NDArray[np.int32]
) -> npt.NDArray[np.bool_]:
    """False where an assignment is above the limits of its unit; ``bits_TK`` says who goes first."""
    T, K = unit_TK.shape
    stays = np.ones((T, K), np.bool_)
    _stays(
        unit_TK.reshape(-1),
        bits_TK.reshape(-1),
        limited.bounds_G * K,
        limited.most_G,
        limited.units,
        stays.reshape(-1),
    )
    return stays


def served(ids_TK: npt.NDArray[np.int16], stays: npt.NDArray[np.bool_]) -> npt.NDArray[np.int16]:
    """The experts where ``stays`` is true, −1 elsewhere.

    >>> served(np.array([[4, 2]], np.int16), np.array([[False, True]]))
    array([[-1,  2]], dtype=int16)
    """
    # −1 has all bits: six times as fast as numpy's where.
    found: npt.NDArray[np.int16] = ids_TK | -(~stays).astype(np.int16)
    return found


@jit
def _stays(unit_N: Any, bits_N: Any, bounds_G: Any, most_G: Any, units: int, stays_N: Any) -> None:
    """Cut what each source sends."""
    for source in range(len(most_G)):
        part = slice(bounds_G[source], bounds_G[source + 1])
        cut(unit_N[part], bits_N[part], np.full(units, most_G[source]), stays_N[part])
