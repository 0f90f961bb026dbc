"""Several policies one after the other, and all layers of a step.

Axes: L MoE layers, T tokens, J most experts that a token visits after the policies.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moesim.routing.policy import NO_EXPERT, Batch, Outcome, Policy, outcome


@dataclass(frozen=True)
class Routed:
    """Layers after the policies.

    Attributes:
        ids_LTJ: int16, logical experts, −1 for none.
        weights_LTJ: float32, or None without weights.
        outcomes: of each layer what each policy made of the router's choice, in the order of the policies.
    """

    ids_LTJ: NDArray[np.int16]
    weights_LTJ: NDArray[np.float32] | None
    outcomes: tuple[tuple[Outcome, ...], ...]


def route(policies: Sequence[Policy], layers: Iterable[Batch]) -> Routed:
    """The routing of layers after all policies; there is at least one of each.

    Raises:
        PolicyError: a batch lacks what a policy needs.
    """
    outcomes = tuple(apply_all(policies, batch) for batch in layers)
    last = [found[-1] for found in outcomes]
    width = max(each.ids_TK.shape[1] for each in last)
    shape = (len(last), len(last[0].ids_TK), width)
    ids_LTJ = np.full(shape, NO_EXPERT, np.int16)
    weights_LTJ = None if last[0].weights_TK is None else np.zeros(shape, np.float32)
    for row, each in enumerate(last):
        ids_LTJ[row, :, : each.ids_TK.shape[1]] = each.ids_TK
        if weights_LTJ is not None:
            weights_LTJ[row, :, : each.ids_TK.shape[1]] = each.weights_TK
    return Routed(ids_LTJ, weights_LTJ, outcomes)


def apply_all(policies: Sequence[Policy], batch: Batch) -> tuple[Outcome, ...]:
    """The routing after each policy, each applied to what the one before it made.

    All are counted against what the router chose, so that the last one tells what became of its choice.

    Raises:
        PolicyError: the batch lacks what a policy needs.
    """
    outcomes: list[Outcome] = []
    now = batch
    for policy in policies:
        found = policy.apply(now)
        if now is not batch:
            found = outcome(batch, found.ids_TK, found.weights_TK, room=found.room)
        outcomes.append(found)
        now = replace(batch, ids_TK=found.ids_TK, weights_TK=found.weights_TK)
    return tuple(outcomes)
