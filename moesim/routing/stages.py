"""Several policies, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from moesim.routing.policy import Batch, Outcome, Policy, outcome


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
