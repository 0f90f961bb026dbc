"""What a micro-batch asks of the hardware: tokens at home, and the work that they make elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from moesim.dispatch.work import Work
from moesim.hardware.kernels import Kernels

FloatArray = NDArray[np.float64]

Attended = Callable[[FloatArray], FloatArray]


class Home(Protocol):
    """What tokens ask of the GPUs where they are at home. G ranks."""

    @property
    def tokens_G(self) -> NDArray[Any]:
        """Tokens at home on each rank."""

    @property
    def last_G(self) -> FloatArray:
        """Tokens of each rank whose logits are asked for."""

    @property
    def prefilling_G(self) -> FloatArray:
        """Tokens of each rank that are of chunks; all others decode."""

    def keys_G(self, attended: Attended, *, prefill: bool) -> FloatArray:
        """Keys that each rank's decoding or prefill tokens attend to, summed.

        Args:
            attended: how many a token attends to, by the tokens before it.
        """


@dataclass(frozen=True)
class Part:
    """A micro-batch of a step, or all of it.

    Attributes:
        kind_LS: the kind of the expert in each slot; None where all are of one kind.
    """

    tokens: Home
    work: Work
    kind_LS: NDArray[np.int16] | None = None

    def experts_s(self, kernels: Kernels, slot_gpu_S: NDArray[np.int32]) -> FloatArray:
        """[L, G] seconds of the experts' kernels.

        Args:
            slot_gpu_S: the GPU of each slot.
        """
        return kernels.experts(self.work.tokens_LS, slot_gpu_S, len(self.tokens.tokens_G), self.kind_LS)
