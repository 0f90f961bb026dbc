"""What a policy did to the routing, counted over layers and steps."""

from __future__ import annotations

from dataclasses import dataclass

from moesim.routing.policy import Outcome


@dataclass
class Tally:
    """What the policy did, summed over layers and steps; assignments, and gate mass where it is known."""

    wished: int = 0
    kept: int = 0
    rerouted: int = 0
    dropped: int = 0
    added: int = 0
    gate_mass: float = 0.0
    gate_mass_lost: float = 0.0
    weighted: bool = True
    # What fits under the limits where there are any, and the assignments there.
    room: int = 0
    limited: int = 0

    def add_recorded(self, assignments: int) -> None:
        """Count assignments that all stay as they are, of which no weights are known."""
        self.wished += assignments
        self.kept += assignments
        self.weighted = False

    def add(self, outcome: Outcome) -> None:
        """Count one layer of one step."""
        self.wished += outcome.wished
        self.kept += outcome.kept
        self.rerouted += outcome.rerouted
        self.dropped += outcome.dropped
        self.added += outcome.added
        if outcome.gate_mass is None or outcome.gate_mass_lost is None:
            self.weighted = False
        else:
            self.gate_mass += outcome.gate_mass
            self.gate_mass_lost += outcome.gate_mass_lost
        if outcome.room is not None:
            self.room += outcome.room
            self.limited += outcome.wished
