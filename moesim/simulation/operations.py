"""A step as the list of operations that every GPU runs in order, with what each costs on each GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import overload

import numpy as np
from numpy.typing import NDArray

from moesim.hardware.groups import attention_group_s
from moesim.hardware.kernels import Kernels
from moesim.hardware.network import Fabric
from moesim.hardware.transfer import Bytes, Transfer, busiest_s, combine_transfer, dispatch_transfer
from moesim.simulation.busy import Busy, Layout
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


@dataclass(frozen=True, eq=False)
class Operations(Sequence[Operation]):
    """Operations as arrays; one of them is an :class:`Operation` that is made when it is asked for.

    Attributes:
        keys: phase, layer and micro-batch of each.
        collective_O: where they are; their transfers are those of ``transfers`` in turn.
        stretch_OG: as of an operation, 1 where none; None where none is stretched.
        later_EOG: as of an operation, one for each change of the hardware, of collectives as before it.
    """

    keys: tuple[tuple[Phase, int, int], ...]
    collective_O: NDArray[np.bool_]
    busy_OG: FloatArray
    wire_OG: FloatArray
    overhead_O: FloatArray
    assignments_OG: IntArray
    unique_OG: IntArray
    transfers: Transfer
    stretch_OG: FloatArray | None = None
    later_EOG: FloatArray | None = None

    @classmethod
    def of(cls, operations: Sequence[Operation]) -> Operations:
        """The same; themselves if they are arrays already."""
        if isinstance(operations, Operations):
            return operations
        ranks = len(operations[0].busy_G)
        transfers = [each.transfer for each in operations if each.transfer is not None]
        none_CGG = np.zeros((0, ranks, ranks))
        stretched = any(each.stretch_G is not None for each in operations)
        even_G = np.ones(ranks)
        changes = max(len(each.later_EG) for each in operations)
        return cls(
            tuple((each.phase, each.layer, each.micro_batch) for each in operations),
            np.array([each.communicates for each in operations]),
            np.array([each.busy_G for each in operations]),
            np.array([each.wire_G for each in operations]),
            np.array([each.overhead_s for each in operations]),
            np.array([each.assignments_G for each in operations]),
            np.array([each.unique_G for each in operations]),
            Transfer(
                np.array([each.first_GG for each in transfers]) if transfers else none_CGG,
                np.array([each.second_GG for each in transfers]) if transfers else none_CGG,
            ),
            np.array([even_G if each.stretch_G is None else each.stretch_G for each in operations])
            if stretched
            else None,
            np.array(
                [
                    [
                        each.later_EG[epoch] if each.later_EG else each.busy_G + each.wire_G
                        for each in operations
                    ]
                    for epoch in range(changes)
                ]
            )
            if changes
            else None,
        )

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def _transfer_O(self) -> IntArray:
        return np.cumsum(self.collective_O) - 1

    def of_phase(self, *phases: Phase) -> IntArray:
        """Those of some phases."""
        return np.flatnonzero([key[0] in phases for key in self.keys])

    def without_transfers(self) -> Operations:
        """The same where nothing is transferred."""
        none_CGG = np.zeros((0, *self.transfers.first_GG.shape[1:]))
        return replace(self, collective_O=np.zeros(len(self), bool), transfers=Transfer(none_CGG, none_CGG))

    @overload
    def __getitem__(self, at: int) -> Operation: ...
    @overload
    def __getitem__(self, at: slice) -> list[Operation]: ...
    def __getitem__(self, at: int | slice) -> Operation | list[Operation]:
        if isinstance(at, slice):
            return [self[each] for each in range(*at.indices(len(self)))]
        phase, layer, micro_batch = self.keys[at]
        transfer = None
        if self.collective_O[at]:
            number = self._transfer_O[at]
            transfer = Transfer(self.transfers.first_GG[number], self.transfers.second_GG[number])
        return Operation(
            phase,
            layer,
            self.busy_OG[at],
            self.wire_OG[at],
            float(self.overhead_O[at]),
            self.assignments_OG[at],
            self.unique_OG[at],
            transfer,
            micro_batch,
            () if self.later_EOG is None or transfer is not None else tuple(self.later_EOG[:, at]),
            None if self.stretch_OG is None else self.stretch_OG[at],
        )

    @property
    def seconds_EOG(self) -> FloatArray:
        """Seconds on each GPU, transfers apart, before the first change of the hardware and after each."""
        work_EOG = (self.busy_OG + self.wire_OG)[None]
        if self.later_EOG is not None:
            work_EOG = np.concatenate([work_EOG, self.later_EOG])
        seconds_EOG = work_EOG + self.overhead_O[:, None]
        return seconds_EOG if self.stretch_OG is None else seconds_EOG * self.stretch_OG


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
) -> Operations:
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
    work, tokens_G, links, G = part.work, part.tokens.tokens_G, kernels.links, len(part.tokens.tokens_G)
    frame = _frame(busy.layout)
    there_O, experts_O, back_O = frame.experts_O - 1, frame.experts_O, frame.experts_O + 1
    O = len(frame.keys)
    sent_LGG, relayed_LGG = work.sent_LGG.astype(np.float64), work.relayed_LGG.astype(np.float64)
    there = dispatch_transfer(sent_LGG, relayed_LGG, copy.dispatch)
    if work.returned_LGG is None:
        back = combine_transfer(sent_LGG, relayed_LGG, copy.combine, fabric.gpus_per_node)
    else:
        back = Transfer(work.returned_LGG.astype(np.float64) * copy.combine, np.zeros_like(sent_LGG))
    if reduces_to_all:
        back = back.then(dispatch_transfer(sent_LGG, relayed_LGG, copy.combine))
    busy_OG, wire_OG, overhead_O = np.zeros((O, G)), np.zeros((O, G)), np.zeros(O)
    busy_OG[frame.place_X] = busy.seconds_XG
    busy_OG[there_O], busy_OG[back_O] = (
        kernels.arrange(work.served_LG.astype(np.float64), each) for each in (copy.dispatch, copy.combine)
    )
    wire_OG[there_O] = busiest_s(there, links, copy.dispatch)
    wire_OG[back_O] = busiest_s(back, links, copy.combine)
    for phase, wire_G in (("attention", attention_group_s(kernels, tokens_G)), ("router", exchange_s)):
        if phase in busy.layout.rows:
            wire_OG[frame.place_X[busy.layout.rows[phase]]] = wire_G  # type: ignore[index]
    overhead_O[frame.place_X] = [kernels.launch_s(*key) for key in busy]
    overhead_O[there_O], overhead_O[back_O] = kernels.launch_s("dispatch"), kernels.launch_s("combine")
    if ("other", -1) in busy:
        overhead_O[-1] += host_s
    assignments_OG = np.zeros((O, G), work.served_LG.dtype)
    unique_OG = np.empty((O, G), np.result_type(work.unique_LG, tokens_G))
    unique_OG[:] = tokens_G
    for own_O in (there_O, experts_O, back_O):
        assignments_OG[own_O], unique_OG[own_O] = work.served_LG, work.unique_LG
    hops = (
        np.stack([out_LGG, in_LGG], axis=1).reshape(-1, G, G)
        for out_LGG, in_LGG in ((there.first_GG, back.first_GG), (there.second_GG, back.second_GG))
    )
    return Operations(
        frame.keys,
        frame.collective_O,
        busy_OG,
        wire_OG,
        overhead_O,
        assignments_OG,
        unique_OG,
        Transfer(*hops),
    )


@dataclass(frozen=True)
class _Frame:
    """Where kernels stand among operations: a dispatch before the experts of each layer, a combine after."""

    keys: tuple[tuple[Phase, int, int], ...]
    place_X: IntArray
    experts_O: IntArray
    collective_O: NDArray[np.bool_]


@lru_cache(maxsize=16)
def _frame(layout: Layout) -> _Frame:
    keys: list[tuple[Phase, int, int]] = []
    place_X = []
    for phase, layer in layout.keys:
        if phase == "experts":
            keys.append(("dispatch", layer, 0))
        place_X.append(len(keys))
        keys.append((phase, layer, 0))
        if phase == "experts":
            keys.append(("combine", layer, 0))
    collective_O = np.array([phase in ("dispatch", "combine") for phase, _, _ in keys])
    experts_O = np.flatnonzero([phase == "experts" for phase, _, _ in keys])
    return _Frame(tuple(keys), np.array(place_X), experts_O, collective_O)
