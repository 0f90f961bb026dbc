"""A step as the list of operations that every GPU runs in order, with what each costs on each GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from moesim.hardware.kernels import Kernels
from moesim.hardware.network import Fabric, Network
from moesim.hardware.profile import Phase
from moesim.simulation.batch import StepTokens
from moesim.simulation.busy import Busy
from moesim.simulation.work import Work
from moesim.spec.model import DTYPE_BYTES

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# One fp32 scale for each 128 values of an fp8 vector (DeepSeek-V3 technical report, section 3.3.2).
_FP8_BLOCK, _FP8_SCALE_BYTES = 128, 4


@dataclass(frozen=True)
class Transfer:
    """Bytes of a collective's two hops, GPU (row) to GPU (column); the second relays the first."""

    first_GG: FloatArray
    second_GG: FloatArray

    def then(self, other: Transfer) -> Transfer:
        """Both, pipelined: their bytes share the ports."""
        return Transfer(self.first_GG + other.first_GG, self.second_GG + other.second_GG)

    @property
    def received_G(self) -> FloatArray:
        """Bytes that enter each GPU, those it relays included."""
        return (self.first_GG + self.second_GG).sum(axis=0)  # type: ignore[no-any-return]

    def cross_node_bytes(self, gpus_per_node: int) -> float:
        """Bytes that cross a NIC."""
        across_GG = _across_nodes(len(self.first_GG), gpus_per_node)
        return float((self.first_GG + self.second_GG)[across_GG].sum())


@dataclass(frozen=True)
class Operation:
    """One operation on all GPUs: kernels, or a collective if it has a transfer.

    Attributes:
        phase: one of ``traces.timeline.PHASES`` other than ``wait``.
        layer: true layer index; -1 for what belongs to the whole step.
        busy_G: seconds of kernels on each GPU; of a collective, those around the transfer.
        wire_G: seconds on links inside an operation that is not a collective of the whole group.
        overhead_s: launches and other fixed seconds.
        assignments_G, unique_G: assignments and distinct tokens it handles on each GPU.
        transfer: what a collective moves.
        micro_batch: of the step.
        later_EG: ``busy_G + wire_G`` after each change of the hardware, where it changes during the run.
        stretch_G: how many times as long it takes on each GPU, from when the last one has entered a
            collective; None where none takes longer or shorter.
    """

    phase: Phase
    layer: int
    busy_G: FloatArray
    wire_G: FloatArray
    overhead_s: float
    assignments_G: IntArray
    unique_G: IntArray
    transfer: Transfer | None = None
    micro_batch: int = 0
    later_EG: tuple[FloatArray, ...] = ()
    stretch_G: FloatArray | None = None

    def on(self, busy_EG: Sequence[FloatArray], wire_EG: Sequence[FloatArray]) -> Operation:
        """The same on hardware that passes through states: before its first change and after each."""
        later_EG = tuple(busy_G + wire_G for busy_G, wire_G in zip(busy_EG[1:], wire_EG[1:], strict=True))
        return replace(self, busy_G=busy_EG[0], wire_G=wire_EG[0], later_EG=later_EG)

    def work_at(self, epoch: int) -> FloatArray:
        """``busy_G + wire_G`` after so many changes of the hardware."""
        return self.later_EG[epoch - 1] if epoch else self.busy_G + self.wire_G

    @property
    def communicates(self) -> bool:
        """Whether it belongs on the communication stream."""
        return self.transfer is not None

    @property
    def seconds_G(self) -> FloatArray:
        """Seconds on each GPU, the transfer apart."""
        seconds_G = self.busy_G + self.wire_G + self.overhead_s
        return seconds_G if self.stretch_G is None else seconds_G * self.stretch_G


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


def step_operations(
    kernels: Kernels,
    fabric: Fabric,
    busy: Busy,
    work: Work,
    tokens: StepTokens,
    copy: Bytes,
    *,
    exchange_s: float = 0.0,
    reduces_to_all: bool = False,
    ends_step: bool = True,
) -> list[Operation]:
    """The operations of one step, in program order.

    Args:
        kernels, fabric: the cost models.
        busy: seconds of the kernels.
        work: what was counted, one row for each MoE layer of the model.
        tokens: what was asked and where it is at home.
        copy: bytes of a token on a wire.
        exchange_s: seconds on links in which a policy's ranks tell each other their counts, in each router.
        reduces_to_all: whether the combine leaves the sums on every GPU.
        ends_step: whether the fixed cost of a step comes at the end.
    """
    tokens_G = tokens.tokens_G
    none_G, no_assignments_G = np.zeros(len(tokens_G)), np.zeros(len(tokens_G), np.int64)
    wires = {
        "attention": attention_group_s(kernels, tokens_G),
        "router": np.full(len(tokens_G), exchange_s),
    }
    row = {layer: i for i, layer in enumerate(kernels.model.moe_layers)}
    operations = []
    for (phase, layer), busy_G in busy.items():
        overhead_s = kernels.launch_s(phase)
        if phase == "other" and ends_step:
            overhead_s += kernels.profile.step
        if phase != "experts":
            wire_G = wires.get(phase, none_G)
            operations.append(Operation(phase, layer, busy_G, wire_G, overhead_s, no_assignments_G, tokens_G))
            continue
        i = row[layer]
        served_G, unique_G = work.served_LG[i].astype(np.int64), work.unique_LG[i].astype(np.int64)
        sent_GG, relayed_GG = work.sent_LGG[i].astype(np.float64), work.relayed_LGG[i].astype(np.float64)
        there = dispatch_transfer(sent_GG, relayed_GG, copy.dispatch)
        if work.returned_LGG is None:
            back = combine_transfer(sent_GG, relayed_GG, copy.combine, fabric.gpus_per_node)
        else:
            back = Transfer(work.returned_LGG[i] * copy.combine, np.zeros_like(sent_GG))
        if reduces_to_all:
            back = back.then(dispatch_transfer(sent_GG, relayed_GG, copy.combine))
        before_s, after_s = kernels.launch_s("dispatch"), kernels.launch_s("combine")
        inwards_G, outwards_G = (kernels.arrange(served_G, each) for each in (copy.dispatch, copy.combine))
        operations += [
            Operation("dispatch", layer, inwards_G, none_G, before_s, served_G, unique_G, there),
            Operation("experts", layer, busy_G, none_G, overhead_s, served_G, unique_G),
            Operation("combine", layer, outwards_G, none_G, after_s, served_G, unique_G, back),
        ]
    return operations


def dispatch_transfer(sent_GG: FloatArray, relayed_GG: FloatArray, copy_bytes: float) -> Transfer:
    """Home GPUs send; entry GPUs relay what came over their NIC."""
    return Transfer(sent_GG * copy_bytes, relayed_GG * copy_bytes)


def combine_transfer(
    sent_GG: FloatArray, relayed_GG: FloatArray, copy_bytes: float, gpus_per_node: int
) -> Transfer:
    """The way back: what was relayed is summed at the entry GPU first, and crosses the NIC once.

    Without relays every copy goes straight back in the first hop.
    """
    back_GG = sent_GG.T * copy_bytes
    if not relayed_GG.any():
        return Transfer(back_GG, np.zeros_like(back_GG))
    across_GG = _across_nodes(len(sent_GG), gpus_per_node)
    inside_GG = np.where(across_GG, 0.0, back_GG) + relayed_GG.T * copy_bytes
    return Transfer(inside_GG, np.where(across_GG, back_GG, 0.0))


def even(operations: Sequence[Operation], network: Network) -> list[Operation]:
    """The same step with each phase evened out, as one GPU that stands for all of them.

    Each operation takes every GPU the mean over GPUs of its own duration; a collective's own duration is
    what it takes when all GPUs enter together. GPUs that are always equal never wait, so one serves for
    all.
    """
    evened = []
    for operation in operations:
        busy_1 = np.array([operation.busy_G.mean()])
        wire_1 = np.array([_own_wire_G(operation, network).mean()])
        evened.append(replace(operation, busy_G=busy_1, wire_G=wire_1, transfer=None))
    return evened


def even_seconds(operations: Sequence[Operation], network: Network) -> tuple[float, float, float]:
    """Seconds of kernels, of transfers and of fixed costs in an evened step, each added up."""
    busy_s = float(np.mean([operation.busy_G for operation in operations], axis=1).sum())
    wire_s = sum(
        float(_own_wire_G(operation, network).mean())
        for operation in operations
        if operation.transfer is not None or operation.wire_G.any()
    )
    return busy_s, wire_s, sum(operation.overhead_s for operation in operations)


def _own_wire_G(operation: Operation, network: Network) -> FloatArray:
    """Seconds on links, of a collective when all GPUs enter it together."""
    transfer = operation.transfer
    if transfer is None:
        return operation.wire_G
    return network.collective(np.zeros(len(operation.wire_G)), transfer.first_GG, transfer.second_GG)


def level(operations: Sequence[Operation]) -> list[Operation]:
    """The same step with tokens and contexts spread evenly: what runs at home takes every GPU the mean."""

    def levelled(operation: Operation) -> Operation:
        ones_G = np.ones(len(operation.busy_G))
        return replace(
            operation, busy_G=operation.busy_G.mean() * ones_G, wire_G=operation.wire_G.mean() * ones_G
        )

    moe = ("dispatch", "experts", "combine")
    return [operation if operation.phase in moe else levelled(operation) for operation in operations]


def without_network(operations: Sequence[Operation]) -> list[Operation]:
    """An evened step whose transfers take no time."""
    return [replace(operation, wire_G=np.zeros(1)) for operation in operations]


def without_overhead(operations: Sequence[Operation]) -> list[Operation]:
    """The same step without launches and fixed costs."""
    return [replace(operation, overhead_s=0.0) for operation in operations]


def attention_group_s(kernels: Kernels, tokens_G: IntArray, nvlink_G: FloatArray | None = None) -> FloatArray:
    """Seconds of the all-gather before and the reduce-scatter after attention in a group of tp GPUs.

    Each moves (tp - 1) / tp of the group's activations through every GPU's NVLink port, at the part of its
    bandwidth that the group can use, so that the slowest port of a group holds up all of it.

    Args:
        kernels: the cost model.
        tokens_G: tokens at home on each GPU.
        nvlink_G: part of its bandwidth that each port still has; None where all are healthy.
    """
    tp = kernels.tp
    if tp == 1:
        return np.zeros(len(tokens_G))
    group_G = np.repeat(tokens_G.reshape(-1, tp).sum(axis=1), tp)
    token_bytes = kernels.model.hidden * DTYPE_BYTES[kernels.model.activation_dtype]
    bytes_G = group_G * token_bytes * (tp - 1) / tp
    link = kernels.gpu.nvlink
    seconds_G = bytes_G / (link.bandwidth * kernels.profile.nvlink * kernels.group_share)
    if nvlink_G is not None:
        seconds_G = seconds_G / np.repeat(nvlink_G.reshape(-1, tp).min(axis=1), tp)
    return 2 * (seconds_G + link.latency)


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
