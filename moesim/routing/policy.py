"""What a routing policy gets, what it gives back, and how its work is counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from traces.jit import jit

NO_EXPERT = -1
"""In ``ids_TK``: this place of the token has no expert."""


@dataclass(frozen=True)
class Batch:
    """The routing of one MoE layer in one step, as the router chose it.

    Not validated here: it is cut from a trace, which is validated where it is read.

    Attributes:
        ids_TK: int16 [T, K], C-contiguous, experts of each token, distinct within a token; −1 for none.
        weights_TK: float32 [T, K], C-contiguous, gate weights without NaN (ignored where the id is −1);
            None where the trace has none.
        offsets_G: int64 [G + 1], ascending from 0 to T: rows offsets[g] to offsets[g + 1] have their home
            on rank g.
        experts: E, logical experts of the layer.
    """

    ids_TK: npt.NDArray[np.int16]
    weights_TK: npt.NDArray[np.float32] | None
    offsets_G: npt.NDArray[np.int64]
    experts: int


@dataclass(frozen=True)
class Outcome:
    """The routing that a policy made of a batch, and what it did to it, counted in assignments.

    ``wished = kept + rerouted + dropped``, and ``kept + rerouted + added`` assignments are served.

    Attributes:
        ids_TK: int16 [T, K], −1 where there is no assignment (any more).
        weights_TK: float32 [T, K] or None; meaningless where the id is −1.
        wished: assignments of the batch.
        kept: of these, those that go to the expert they asked for.
        rerouted: of these, those that go to another expert.
        dropped: of these, those that go nowhere.
        added: assignments that the batch did not ask for.
        gate_mass: sum of the gate weights of the wished assignments; None without weights.
        gate_mass_lost: the same for the dropped ones.
        capacity: most assignments that one expert can get, the sum over sources where each has its own
            limit; None without a limit. The effective capacity factor is capacity·E / (T·K).
    """

    ids_TK: npt.NDArray[np.int16]
    weights_TK: npt.NDArray[np.float32] | None
    wished: int
    kept: int
    rerouted: int
    dropped: int
    added: int
    gate_mass: float | None
    gate_mass_lost: float | None
    capacity: int | None = None


class Policy(Protocol):
    """A rule that changes routing. Implementations are frozen dataclasses whose fields are its parameters."""

    name: ClassVar[str]
    """Its key in the dictionary of policies."""

    @property
    def needs_weights(self) -> bool:
        """Whether it needs the gate weights, which some traces lack."""

    def apply(self, batch: Batch) -> Outcome:
        """The routing after this policy; ``batch`` stays as it is.

        Raises:
            PolicyError: the batch lacks what the policy needs.
        """


def outcome(
    batch: Batch,
    ids_TK: npt.NDArray[np.int16],
    weights_TK: npt.NDArray[np.float32] | None,
    capacity: int | None = None,
) -> Outcome:
    """Count what became of each assignment of ``batch`` now that its place holds ``ids_TK``."""
    kept, rerouted, dropped, added = _count(batch.ids_TK, ids_TK)
    mass = lost = None
    if batch.weights_TK is not None:
        mass, lost = _gate_mass(batch.ids_TK, ids_TK, batch.weights_TK)
    return Outcome(
        ids_TK=ids_TK,
        weights_TK=weights_TK,
        wished=kept + rerouted + dropped,
        kept=kept,
        rerouted=rerouted,
        dropped=dropped,
        added=added,
        gate_mass=mass,
        gate_mass_lost=lost,
        capacity=capacity,
    )


@jit
def _count(before_TK: npt.NDArray[np.int16], after_TK: npt.NDArray[np.int16]) -> tuple[int, int, int, int]:
    """(kept, rerouted, dropped, added), place by place."""
    kept = rerouted = dropped = added = 0
    for token in range(before_TK.shape[0]):
        for place in range(before_TK.shape[1]):
            before, after = before_TK[token, place], after_TK[token, place]
            kept += (before >= 0) & (after == before)
            rerouted += (before >= 0) & (after >= 0) & (after != before)
            dropped += (before >= 0) & (after < 0)
            added += (before < 0) & (after >= 0)
    return kept, rerouted, dropped, added


@jit
def _gate_mass(
    before_TK: npt.NDArray[np.int16], after_TK: npt.NDArray[np.int16], weights_TK: npt.NDArray[np.float32]
) -> tuple[float, float]:
    """(wished, lost) gate weight, summed in row order in double precision."""
    mass = lost = 0.0
    for token in range(before_TK.shape[0]):
        for place in range(before_TK.shape[1]):
            if before_TK[token, place] >= 0:
                mass += weights_TK[token, place]
                if after_TK[token, place] < 0:
                    lost += weights_TK[token, place]
    return mass, lost
