"""From clocks and counts to the two tables that everything after a run reads: timeline and work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.simulation.engine import StepClock
from moesim.simulation.operations import Bytes, Operation
from moesim.simulation.work import Work
from traces.timeline import HOPS, PHASES, STREAMS, Timeline, WorkTable

_WAIT = PHASES.index("wait")
_COMPUTE, _COMMUNICATION = STREAMS.index("compute"), STREAMS.index("communication")

Columns = dict[str, NDArray[np.generic]]


class Recording:
    """Collects steps; ``timeline`` and ``work`` join them."""

    def __init__(self, run: str, moe_layers: Sequence[int]) -> None:
        self._run = run
        self._layers = np.array(moe_layers, np.int32)
        self._spans: list[Columns] = []
        self._work: list[Work] = []

    def add_step(self, step: int, clock: StepClock, operations: Sequence[Operation]) -> None:
        """Spans of one step; waiting is a span of its own, and one of zero length is left out."""
        O, G = clock.end_OG.shape
        # Every operation may be preceded by a wait; one more wait closes the step.
        shape = (G, O + 1, 2)
        start, end = np.empty(shape), np.empty(shape)
        before_OG = np.vstack([np.full((1, G), clock.start_s), clock.end_OG])
        start[:, :, 0] = before_OG.T
        end[:, :O, 0] = start[:, :O, 1] = clock.start_OG.T
        end[:, :O, 1] = clock.end_OG.T
        end[:, O, 0] = start[:, O, 1] = end[:, O, 1] = clock.end_s

        def spread(values_O: Sequence[int], last: int) -> NDArray[np.int32]:
            return np.broadcast_to(np.array([*values_O, last], np.int32)[None, :, None], shape)

        phase = spread([PHASES.index(operation.phase) for operation in operations], _WAIT).copy()
        phase[:, :, 0] = _WAIT
        collective = spread([operation.transfer is not None for operation in operations], True)
        # A rank that waits for others waits on its communication stream.
        stream = np.where((phase == _WAIT) | (collective > 0), _COMMUNICATION, _COMPUTE)
        counts = np.zeros((3, *shape), np.int64)
        for o, operation in enumerate(operations):
            counts[0, :, o, 1] = operation.assignments_G
            counts[1, :, o, 1] = operation.unique_G
            if operation.transfer is not None:
                counts[2, :, o, 1] = operation.transfer.received_G
        kept = end > start
        kept[:, :O, 1] = True
        self._spans.append(
            {
                "step_N": np.full(int(kept.sum()), step, np.int32),
                "layer_N": spread([operation.layer for operation in operations], -1)[kept],
                "rank_N": np.broadcast_to(np.arange(G, dtype=np.int32)[:, None, None], shape)[kept],
                "stream_N": stream[kept].astype(np.int8),
                "phase_N": phase[kept].astype(np.int8),
                "start_s_N": start[kept],
                "end_s_N": end[kept],
                "assignments_N": counts[0][kept],
                "unique_tokens_N": counts[1][kept],
                "bytes_N": counts[2][kept],
            }
        )

    def add_work(self, work: Work) -> None:
        """Counts of one step, in the order of steps."""
        self._work.append(work)

    def timeline(self) -> Timeline:
        """All spans, by step, then rank, then time."""
        spans = _join(self._spans)
        zeros = np.zeros(len(spans["step_N"]), np.int32)
        return Timeline(self._run, repeat_N=zeros, micro_batch_N=zeros, **spans)

    def slots(self) -> WorkTable:
        """Tokens of each slot: the rows of phase ``experts`` alone."""
        return WorkTable(**_join([self._slot_rows(step, work) for step, work in enumerate(self._work)]))

    def work(self, copy: Bytes) -> WorkTable:
        """All counts that are not zero: tokens of slots, and copies over each hop, out and mirrored back.

        Many rows where ranks are many, so made only when they are to be written.
        """
        blocks: list[Columns] = []
        for step, work in enumerate(self._work):
            blocks.append(self._slot_rows(step, work))
            for hop, copies_LGG in (("first", work.sent_LGG), ("relay", work.relayed_LGG)):
                layer, here, there = np.nonzero(copies_LGG)
                copies = copies_LGG[layer, here, there]
                out, back = copies * copy.dispatch, copies * copy.combine
                blocks.append(self._rows(step, "dispatch", hop, layer, here, there, copies, out))
                blocks.append(self._rows(step, "combine", hop, layer, there, here, copies, back))
        return WorkTable(**_join(blocks))

    def _slot_rows(self, step: int, work: Work) -> Columns:
        layer, slot = np.nonzero(work.tokens_LS)
        tokens, none = work.tokens_LS[layer, slot], np.zeros(len(layer))
        return self._rows(step, "experts", "first", layer, none - 1, slot, tokens, none)

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


def _join(blocks: Sequence[Columns]) -> dict[str, NDArray[np.generic]]:
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
