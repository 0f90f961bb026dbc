"""A policy as a user writes it: each token visits its first expert only, where it has a place."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from moesim.routing.parameters import TOP_K
from moesim.routing.policy import NO_EXPERT, Batch, Cost, Need, Outcome, outcome


@dataclass(frozen=True)
class FirstOnly:
    """Each token visits its first experts only."""

    name: ClassVar[str] = "first_only"
    needs: ClassVar[frozenset[Need]] = frozenset()
    cost: ClassVar[Cost] = Cost(assignments=1)

    places: int = field(default=1, metadata=TOP_K)

    def apply(self, batch: Batch) -> Outcome:
        ids_TK = batch.ids_TK.copy()
        ids_TK[:, self.places :] = NO_EXPERT
        return outcome(batch, ids_TK, batch.weights_TK)
