"""Bytes of a collective on the wires: what a copy of a token weighs, and the hops that copies take."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from moesim.spec.dtypes import DTYPE_BYTES
from moesim.spec.links import Links

FloatArray = NDArray[np.float64]

# One fp32 scale for each 128 values of an fp8 vector (DeepSeek-V3 technical report, section 3.3.2).
_FP8_BLOCK, _FP8_SCALE_BYTES = 128, 4

_PASSES = 2  # a copy is written to a buffer and read from it, at each end


@dataclass(frozen=True)
class Transfer:
    """Bytes of a collective's two hops, GPU (row) to GPU (column); the second relays the first.

    Of several collectives, ``first_CGG`` and so on: what is computed of them has the same leading axis.
    """

    first_GG: FloatArray
    second_GG: FloatArray

    def then(self, other: Transfer) -> Transfer:
        """Both, pipelined: their bytes share the ports."""
        return Transfer(self.first_GG + other.first_GG, self.second_GG + other.second_GG)

    @property
    def memory_bytes_G(self) -> FloatArray:
        """Bytes through each GPU's memory: where a copy leaves and where it arrives it passes a buffer.

        So it is read and written once more at each end than it would have to be (DeepEP, ``csrc/kernels``).
        """
        bytes_GG = self.first_GG + self.second_GG
        return _PASSES * (bytes_GG.sum(axis=-2) + bytes_GG.sum(axis=-1))  # type: ignore[no-any-return]

    @cached_property
    def received_G(self) -> FloatArray:
        """Bytes that enter each GPU, those it relays included."""
        return self.first_GG.sum(axis=-2) + self.second_GG.sum(axis=-2)  # type: ignore[no-any-return]

    @property
    def carried_G(self) -> FloatArray:
        """Bytes that each GPU's multiprocessors move: sent or received, whichever are more."""
        bytes_GG = self.first_GG + self.second_GG
        return np.maximum(bytes_GG.sum(axis=-2), bytes_GG.sum(axis=-1))  # type: ignore[no-any-return]

    def cross_node_bytes(self, gpus_per_node: int) -> float:
        """Bytes that cross a NIC."""
        return float(self.received_G.sum() - self.inside_bytes(gpus_per_node).sum())

    def inside_bytes(self, gpus_per_node: int) -> FloatArray:
        """Bytes that stay in their node; of several collectives, of each."""
        P, inside = gpus_per_node, np.zeros(self.first_GG.shape[:-2])
        for first in range(0, self.first_GG.shape[-1], P):
            for bytes_GG in (self.first_GG, self.second_GG):
                inside += bytes_GG[..., first : first + P, first : first + P].sum(axis=(-1, -2))
        return inside


@dataclass(frozen=True)
class Bytes:
    """Bytes of one copy of a token, out and back."""

    dispatch: float
    combine: float

    @classmethod
    def of(cls, hidden: int, dtype: str, combine_dtype: str) -> Bytes:
        """A copy is the hidden vector; fp8 adds its scales.

        >>> Bytes.of(7168, "fp8", "bf16")
        Bytes(dispatch=7392.0, combine=14336.0)
        """
        return cls(_vector_bytes(hidden, dtype), _vector_bytes(hidden, combine_dtype))


def dispatch_transfer(sent_GG: FloatArray, relayed_GG: FloatArray, copy_bytes: float) -> Transfer:
    """Home GPUs send; entry GPUs relay what came over their NIC."""
    return Transfer(sent_GG * copy_bytes, relayed_GG * copy_bytes)


def combine_transfer(
    sent_GG: FloatArray, relayed_GG: FloatArray, copy_bytes: float, gpus_per_node: int
) -> Transfer:
    """The way back: what was relayed is summed at the entry GPU first, and crosses the NIC once.

    Without relays every copy goes straight back in the first hop.
    """
    back_GG = sent_GG.swapaxes(-1, -2) * copy_bytes
    relays = relayed_GG.any(axis=(-1, -2), keepdims=True)
    if not relays.any():
        return Transfer(back_GG, np.zeros_like(back_GG))
    summed_GG = _across_nodes(sent_GG.shape[-1], gpus_per_node) & relays
    inside_GG = np.where(summed_GG, 0.0, back_GG) + relayed_GG.swapaxes(-1, -2) * copy_bytes
    return Transfer(inside_GG, np.where(summed_GG, back_GG, 0.0))


def busiest_s(transfer: Transfer, links: Links, copy_bytes: float) -> FloatArray:
    """[G] seconds that the busiest multiprocessor of each GPU needs longer than the mean one.

    Of n copies each of the kernels' multiprocessors handles n / sms on average. They fall on it as chance has
    it, so that the fullest has z standard deviations more, √(n / sms) each (Poisson); ``links.spread`` is z.
    """
    if links.rate is None:
        return np.zeros(transfer.first_GG.shape[:-1])
    copies_G = transfer.carried_G / (copy_bytes * links.sms)
    return links.spread * np.sqrt(copies_G) * (copy_bytes / links.rate)


@lru_cache(maxsize=4)
def _across_nodes(gpus: int, gpus_per_node: int) -> NDArray[np.bool_]:
    """[G, G]: whether two GPUs stand in different nodes; asked for in every collective, so kept."""
    node_G = np.arange(gpus) // gpus_per_node
    across_GG: NDArray[np.bool_] = node_G[:, None] != node_G[None, :]
    across_GG.flags.writeable = False
    return across_GG


def _vector_bytes(hidden: int, dtype: str) -> float:
    scales = -(-hidden // _FP8_BLOCK) * _FP8_SCALE_BYTES if dtype == "fp8" else 0
    return hidden * DTYPE_BYTES[dtype] + scales
