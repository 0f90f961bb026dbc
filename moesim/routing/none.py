"""The policy that changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moesim.routing.policy import Batch, Cost, Need, Outcome, outcome


@dataclass(frozen=True)
class NoPolicy:
    """Every token visits the experts that the router chose."""

    name: ClassVar[str] = "none"
    needs: ClassVar[frozenset[Need]] = frozenset()
    cost: ClassVar[Cost] = Cost()

    def apply(self, batch: Batch) -> Outcome:
        """The batch as it is."""
        return outcome(batch, batch.ids_TK, batch.weights_TK, in_place=True)
