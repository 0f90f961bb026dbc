"""From clocks and counts to the two tables that everything after a run reads: timeline and work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.dispatch.work import Counts, Work
from moesim.hardware.transfer import Bytes
from moesim.simulation.clock import StepClock
from moesim.simulation.operations import Operation, Operations
from moesim.spec.profile import Phase
from traces.timeline import HOPS, PHASES, STREAMS, Timeline, WorkTable

_WAIT = PHASES.index("wait")
# ``communicates`` as a number is the stream.
_COMMUNICATION = STREAMS.index("communication")

# Spans that are read together: enough that a step costs little more than its own.
_BLOCK = 1 << 18

Columns = dict[str, NDArray[np.generic]]


class Recording:
    """Collects steps; ``timeline`` and ``work`` join those that are kept."""

    def __init__(
        self,
        run: str,
        moe_layers: Sequence[int],
        every: int = 1,
        read: Callable[[Timeline], None] | None = None,
    ) -> None:
        """Of ``every`` so many steps one is kept; ``read`` is told of all, some at a time."""
        self._run, self._every, self._read = run, every, read
        self._layers = np.array(moe_layers, np.int32)
        self._spans: list[Columns] = []
        # Spans that nobody has read yet, and how many these are.
        self._fresh: list[Columns] = []
        self._unread = 0
        self._work: list[tuple[int, Sequence[Work]]] = []

    def add_step(self, step: int, clock: StepClock, operations: Sequence[Operation]) -> None:
        """Spans of one step; waiting for other ranks is a span of its own, one of zero length left out."""
        table = Operations.of(operations)
        O, G = clock.end_OG.shape
        # Every operation may be preceded by a wait of its own stream; one more wait closes the step.
        phase_O, layer_O, batch_O = _columns(table.keys)
        stream_O = table.collective_O.astype(np.int32)
        bytes_OG = np.zeros((O, G))
        bytes_OG[table.collective_O] = table.transfers.received_G
        counts_OG = [table.assignments_OG, table.unique_OG, bytes_OG]
        rank_OG = np.broadcast_to(np.arange(G, dtype=np.int32), (O, G))
        waits_OG = clock.start_OG > clock.entered_OG
        done_G = clock.end_OG.max(axis=0)
        idle_G = np.flatnonzero(done_G < clock.end_s)
        none = np.zeros(int(waits_OG.sum()) + len(idle_G))

        def column(of_operation: Any, closing: int) -> NDArray[Any]:
            """Operations, the waits before them, and the waits that close the step."""
            whole_OG = np.broadcast_to(np.asarray(of_operation).reshape(O, -1), (O, G))
            return np.concatenate([whole_OG.ravel(), whole_OG[waits_OG], np.full(len(idle_G), closing)])

        phase_N = column(phase_O, _WAIT)
        phase_N[O * G :] = _WAIT
        start_s_N = np.concatenate([clock.start_OG.ravel(), clock.entered_OG[waits_OG], done_G[idle_G]])
        end_s_N = np.concatenate(
            [clock.end_OG.ravel(), clock.start_OG[waits_OG], np.full(len(idle_G), clock.end_s)]
        )
        rank_N = np.concatenate([rank_OG.ravel(), rank_OG[waits_OG], idle_G])
        columns: Columns = {
            "step_N": np.full(len(rank_N), step, np.int32),
            "micro_batch_N": column(batch_O, 0).astype(np.int32),
            "layer_N": column(layer_O, -1).astype(np.int32),
            "rank_N": rank_N.astype(np.int32),
            "stream_N": column(stream_O, _COMMUNICATION).astype(np.int8),
            "phase_N": phase_N.astype(np.int8),
            "start_s_N": start_s_N,
            "end_s_N": end_s_N,
        }
        for name, values_OG in zip(("assignments_N", "unique_tokens_N", "bytes_N"), counts_OG, strict=True):
            columns[name] = np.concatenate([values_OG.ravel(), none]).astype(np.int64)
        # Along each rank in the order of time; a wait of no length could not be told from its neighbour.
        order = np.lexsort((end_s_N, start_s_N, rank_N))
        columns = {name: values[order] for name, values in columns.items()}
        if step % self._every == 0:
            self._spans.append(columns)
        if self._read is not None:
            self._fresh.append(columns)
            self._unread += len(order)
            if self._unread >= _BLOCK:
                self.end()

    def end(self) -> None:
        """Have the rest read: no step follows."""
        if self._read is not None and self._fresh:
            self._read(self._timeline(self._fresh))
            self._fresh, self._unread = [], 0

    def add_work(self, step: int, parts: Sequence[Work]) -> None:
        """Counts of the micro-batches of one step, in the order of steps."""
        if step % self._every == 0:
            self._work.append((step, parts))

    def timeline(self) -> Timeline:
        """The spans of all steps that are kept, by step, then rank, then time."""
        return self._timeline(self._spans)

    def _timeline(self, blocks: Sequence[Columns]) -> Timeline:
        spans = _join(blocks)
        zeros = np.zeros(len(spans["step_N"]), np.int32)
        return Timeline(self._run, repeat_N=zeros, **spans)

    def slots(self) -> WorkTable:
        """Tokens of each slot: the rows of phase ``experts`` alone."""
        return WorkTable(**_join([self._slot_rows(step, work) for step, work in self._counted()]))

    def work(self, copy: Bytes, *, reduces_to_all: bool = False) -> WorkTable:
        """All counts that are not zero: tokens of slots, and copies over each hop, out and back.

        A combine that leaves the sums on every GPU goes there again after it has come back. Many rows where
        ranks are many, so made only when they are to be written.
        """
        blocks: list[Columns] = []
        for step, work in self._counted():
            blocks.append(self._slot_rows(step, work))
            returned_LGG = work.returned_LGG
            for hop, copies_LGG in (("first", work.sent_LGG), ("relay", work.relayed_LGG)):
                blocks.append(self._copy_rows(step, "dispatch", hop, copies_LGG, copy.dispatch))
                if returned_LGG is None:
                    blocks.append(self._copy_rows(step, "combine", hop, copies_LGG, copy.combine, back=True))
                if reduces_to_all:
                    blocks.append(self._copy_rows(step, "combine", hop, copies_LGG, copy.combine))
            if returned_LGG is not None:
                blocks.append(self._copy_rows(step, "combine", "first", returned_LGG, copy.combine))
        return WorkTable(**_join(blocks))

    def _counted(self) -> Iterator[tuple[int, Work]]:
        return ((step, work) for step, parts in self._work for work in parts)

    def _slot_rows(self, step: int, work: Work) -> Columns:
        layer, slot = np.nonzero(work.tokens_LS)
        tokens, none = work.tokens_LS[layer, slot], np.zeros(len(layer))
        return self._rows(step, "experts", "first", layer, none - 1, slot, tokens, none)

    def _copy_rows(
        self,
        step: int,
        phase: str,
        hop: str,
        copies_LGG: Counts,
        copy_bytes: float,
        *,
        back: bool = False,
    ) -> Columns:
        """Copies from the row's GPU to the column's, or ``back`` from the column's to the row's."""
        layer, row, column = np.nonzero(copies_LGG)
        copies = copies_LGG[layer, row, column]
        ends = (column, row) if back else (row, column)
        return self._rows(step, phase, hop, layer, *ends, copies, copies * copy_bytes)

    def _rows(
        self,
        step: int,
        phase: str,
        hop: str,
        layer: Any,
        source: Any,
        destination: Any,
        count: Any,
        moved: Any,
    ) -> Columns:
        rows = len(layer)
        return {
            "step_N": np.full(rows, step, np.int32),
            "layer_N": self._layers[layer],
            "phase_N": np.full(rows, PHASES.index(phase), np.int8),
            "hop_N": np.full(rows, HOPS.index(hop), np.int8),
            "source_N": source.astype(np.int32),
            "destination_N": destination.astype(np.int32),
            "count_N": count.astype(np.int64),
            "bytes_N": np.rint(moved).astype(np.int64),
        }


@lru_cache(maxsize=16)
def _columns(keys: tuple[tuple[Phase, int, int], ...]) -> tuple[NDArray[np.int32], ...]:
    """[O] each: phase, layer and micro-batch of operations."""
    rows = np.array([(PHASES.index(phase), layer, batch) for phase, layer, batch in keys], np.int32)
    return tuple(rows.reshape(-1, 3).T)


def _join(blocks: Sequence[Columns]) -> dict[str, NDArray[np.generic]]:
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
