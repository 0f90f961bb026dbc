"""Limits on what an expert or a device serves, and who goes first where not all fit.

Capacity as in Switch Transformers (arXiv 2101.03961, section 2.2) and GShard (arXiv 2006.16668,
section 2.2); a limit for a device as in DeepSeek-V2 (arXiv 2405.04434, section 2.2.4).

Axes: T tokens, K experts per token, E logical experts, G ranks, U limited units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from moesim.routing.errors import PolicyError
from moesim.routing.noise import noise
from moesim.routing.parameters import choice, integer, positive
from moesim.routing.policy import NO_EXPERT, Batch, Held, Need, Policy, held_of, weights_of

UNITS = ("expert", "device")
SCOPES = ("source", "global")
_MOST = (1 << 63) - 1

ORDERS = ("score", "position", "random", "first_choices")


@dataclass(frozen=True)
class Capped:
    """What policies with a capacity have in common: each unit serves at most C = ⌈γ·T·K / U⌉ assignments.

    Attributes:
        capacity_factor: γ, finite and above 0.
        unit: what is limited: an ``expert``, or a ``device`` with all of its experts, each of which must then
            be on one device only. With replicas the limit is on the logical expert.
        scope: ``source`` limits what each home rank sends, T being that rank's own tokens (decided before
            the all-to-all, the usual way); ``global`` limits the whole step.
        order: who goes first: ``score``, the largest gate weights; ``position``, the first tokens, as Switch;
            ``random``; ``first_choices``, the first choices of all tokens before their second ones, as
            GShard. Equal ones in the order of tokens, then of a token's choices.
        seed: of ``random``.

    Raises:
        PolicyError: a parameter has a wrong type or value.
    """

    capacity_factor: float
    unit: str = "expert"
    scope: str = "source"
    order: str = "score"
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "capacity_factor", positive("capacity_factor", self.capacity_factor))
        choice("unit", self.unit, UNITS)
        choice("scope", self.scope, SCOPES)
        choice("order", self.order, ORDERS)
        integer("seed", self.seed, 0, (1 << 63) - 1)

    @property
    def needs(self) -> frozenset[Need]:
        """Weights to order by, and devices to limit."""
        needs = set[Need]()
        if self.order == "score":
            needs.add("weights")
        if self.unit == "device":
            needs.add("placement")
        return frozenset(needs)

    @property
    def exchanges(self) -> int:
        """Collectives in which ranks agree on who goes first."""
        return 1 if self.scope == "global" else 0

    def check(self, held: Held) -> None:
        """Refuse experts in several places where devices are limited.

        Raises:
            PolicyError: an expert is on more than one device.
        """
        copies_E = held.gpus_EG.sum(axis=1)
        if self.unit == "device" and copies_E.max() > 1:
            got = f"expert {int(copies_E.argmax())} on {int(copies_E.max())}"
            rule = "a limit for devices needs every expert on one device: limit experts, or place no replicas"
            raise PolicyError(rule, field="routing.unit", got=got)

    def capacity(self, tokens: int, top_k: int, units: int) -> int:
        """⌈γ·T·K / U⌉ for γ as it is written in decimal: 1.1 · 50 is 55, not the 56 of binary floats."""
        return math.ceil(Fraction(str(self.capacity_factor)) * tokens * top_k / units)


@dataclass(frozen=True)
class Limits:
    """Capacity of a batch.

    Attributes:
        bounds_G: int64 [G + 1]: what each source decides alone; one for ``scope: global``.
        most_G: int64 [G], most assignments that a unit gets from each.
        unit_E: int16 [E], the unit that each expert counts for; None where it is the expert itself.
        units: U.
        room: all units and sources together.
    """

    bounds_G: npt.NDArray[np.int64]
    most_G: npt.NDArray[np.int64]
    unit_E: npt.NDArray[np.int16] | None
    units: int
    room: int

    def units_of(self, ids_TK: npt.NDArray[np.int16]) -> npt.NDArray[np.int16]:
        """int16, as ``ids_TK``: the unit of each expert, -1 for none."""
        # The entry behind the last expert is that of -1.
        return ids_TK if self.unit_E is None else np.append(self.unit_E, np.int16(NO_EXPERT))[ids_TK]


def limits(capped: Capped, batch: Batch, policy: Policy) -> Limits:
    """What ``capped``, which is ``policy``, allows in this batch.

    Raises:
        PolicyError: devices are limited, and it is not known where experts are, or one is on several.
    """
    tokens = len(batch.ids_TK)
    unit_E, units = None, batch.experts
    if capped.unit == "device":
        held = held_of(batch, policy)
        capped.check(held)
        gpus_EG = held.gpus_EG
        unit_E, units = gpus_EG.argmax(axis=1).astype(np.int16), gpus_EG.shape[1]
    bounds_G = batch.offsets_G if capped.scope == "source" else np.array([0, tokens], dtype=np.int64)
    sizes_G = np.diff(bounds_G).tolist()
    # Exact fractions are slow, and most ranks have equally many tokens.
    capacity = {size: capped.capacity(size, batch.top_k, units) for size in set(sizes_G)}
    # As large as integers go, however large γ.
    most_G = np.array([min(capacity[size], _MOST) for size in sizes_G], dtype=np.int64)
    return Limits(bounds_G, most_G, unit_E, units, sum(capacity[size] for size in sizes_G) * units)


def order_TK(capped: Capped, batch: Batch, policy: Policy) -> npt.NDArray[np.int32]:
    """Bits whose order, as :func:`moesim.routing.cut.sort_key` has it, says who goes first: larger ones do.

    Raises:
        PolicyError: weights are needed, and the batch has none.
    """
    T, K = batch.ids_TK.shape
    if capped.order == "score":
        return weights_of(batch, policy).view(np.int32)
    if capped.order == "random":
        return noise(capped.seed, batch.draw, (T, K))
    row_K = np.arange(K, 0, -1, dtype=np.int32) if capped.order == "first_choices" else np.zeros(K, np.int32)
    return np.ascontiguousarray(np.broadcast_to(row_K, (T, K)))
