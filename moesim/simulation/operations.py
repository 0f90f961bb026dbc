"""A step as the list of operations that every GPU runs in order, with what each costs on each GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moesim.hardware.groups import attention_group_s
from moesim.hardware.kernels import Kernels
from moesim.hardware.network import Fabric
from moesim.hardware.transfer import Bytes, Transfer, busiest_s, combine_transfer, dispatch_transfer
from moesim.simulation.busy import Busy
from moesim.simulation.part import Part
from moesim.spec.profile import Phase

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Operation:
    """One operation on all GPUs: kernels, or a collective if it has a transfer.

    Attributes:
        phase: one of ``traces.timeline.PHASES`` other than ``wait``.
        layer: true layer index; -1 for what belongs to the whole step.
        busy_G: seconds of kernels on each GPU; of a collective, those around the transfer.
        wire_G: seconds on links inside an operation that is not a collective of the whole group; of a
            collective, those in which the last of its multiprocessors sends what it still has.
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

    @property
    def communicates(self) -> bool:
        """Whether it belongs on the communication stream."""
        return self.transfer is not None

    @property
    def seconds_G(self) -> FloatArray:
        """Seconds on each GPU, the transfer apart."""
        return self.seconds_at(0)

    def seconds_at(self, epoch: int) -> FloatArray:
        """The same after so many changes of the hardware."""
        work_G = self.later_EG[epoch - 1] if epoch and self.later_EG else self.busy_G + self.wire_G
        seconds_G = work_G + self.overhead_s
        return seconds_G if self.stretch_G is None else seconds_G * self.stretch_G


def step_operations(
    kernels: Kernels,
    fabric: Fabric,
    busy: Busy,
    part: Part,
    copy: Bytes,
    *,
    exchange_s: float = 0.0,
    reduces_to_all: bool = False,
    host_s: float = 0.0,
) -> list[Operation]:
    """The operations of one step, in program order.

    Args:
        kernels, fabric: the cost models.
        busy: seconds of the kernels.
        part: what runs.
        copy: bytes of a token on a wire.
        exchange_s: seconds on links in which a policy's ranks tell each other their counts, in each router.
        reduces_to_all: whether the combine leaves the sums on every GPU.
        host_s: what the host takes at the end.
    """
    work, tokens_G, links = part.work, part.tokens.tokens_G, kernels.links
    none_G, no_assignments_G = np.zeros(len(tokens_G)), np.zeros(len(tokens_G), np.int64)
    wires = {
        "attention": attention_group_s(kernels, tokens_G),
        "router": np.full(len(tokens_G), exchange_s),
    }
    row = {layer: i for i, layer in enumerate(kernels.model.moe_layers)}
    operations = []
    for (phase, layer), busy_G in busy.items():
        overhead_s = kernels.launch_s(phase, layer)
        if (phase, layer) == ("other", -1):
            overhead_s += host_s
        if phase != "experts":
            wire_G = wires.get(phase, none_G)
            operations.append(Operation(phase, layer, busy_G, wire_G, overhead_s, no_assignments_G, tokens_G))
            continue
        i = row[layer]
        served_G, unique_G = work.served_LG[i], work.unique_LG[i]
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
        there_G, back_G = busiest_s(there, links, copy.dispatch), busiest_s(back, links, copy.combine)
        operations += [
            Operation("dispatch", layer, inwards_G, there_G, before_s, served_G, unique_G, there),
            Operation("experts", layer, busy_G, none_G, overhead_s, served_G, unique_G),
            Operation("combine", layer, outwards_G, back_G, after_s, served_G, unique_G, back),
        ]
    return operations
