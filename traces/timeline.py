"""What a run did and when: the table of spans that simulator and executor both produce.

A :class:`Timeline` holds one span per row, one array per column (axis N). A *lane* is one stream of
one rank in one repeat; spans of a lane never overlap and stand in the order of time. A
:class:`WorkTable` beside it holds the counted work: tokens of each slot, copies and bytes between
each pair of GPUs. Both are Parquet files whose schema metadata carries ``format`` under ``moesim``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from traces.base.column_file import Column, read_columns, write_columns
from traces.base.errors import TimelineError

PHASES: Final = (
    "attention",
    "router",
    "dispatch",
    "experts",
    "shared_expert",
    "combine",
    "dense",
    "other",
    "wait",
)
STREAMS: Final = ("compute", "communication")
HOPS: Final = ("first", "relay")

_TIMELINE_COLUMNS: Final = (
    Column("repeat", pa.int32(), low=0),
    Column("step", pa.int32(), low=0),
    Column("micro_batch", pa.int32(), low=0),
    Column("layer", pa.int32(), low=-1),
    Column("rank", pa.int32(), low=0),
    Column("stream", pa.int8(), names=STREAMS),
    Column("phase", pa.int8(), names=PHASES),
    Column("start_s", pa.float64()),
    Column("end_s", pa.float64()),
    Column("assignments", pa.int64(), low=0),
    Column("unique_tokens", pa.int64(), low=0),
    Column("bytes", pa.int64(), low=0),
)
_WORK_COLUMNS: Final = (
    Column("step", pa.int32(), low=0),
    Column("layer", pa.int32(), low=-1),
    Column("phase", pa.int8(), names=PHASES),
    Column("hop", pa.int8(), names=HOPS),
    Column("source", pa.int32(), low=-1),
    Column("destination", pa.int32(), low=0),
    Column("count", pa.int64(), low=0),
    Column("bytes", pa.int64(), low=0),
)


@dataclass(frozen=True, eq=False)
class Timeline:
    """N spans of one run.

    Args:
        run: the name of the run; two timelines with different names can be laid side by side.
        repeat_N, step_N, micro_batch_N: int32, from 0.
        layer_N: int32, the layer's true index in the model; −1 belongs to the step as a whole.
        rank_N: int32.
        stream_N, phase_N: int8 codes into ``STREAMS`` and ``PHASES``.
        start_s_N, end_s_N: float64, seconds; a span's end may equal the next one's start.
        assignments_N: int64, assignments computed or moved in the span.
        unique_tokens_N: int64, distinct tokens among them.
        bytes_N: int64, bytes that this rank receives in the span, those it relays included; of a dispatch or
            combine those of tokens.
    """

    run: str
    repeat_N: np.ndarray
    step_N: np.ndarray
    micro_batch_N: np.ndarray
    layer_N: np.ndarray
    rank_N: np.ndarray
    stream_N: np.ndarray
    phase_N: np.ndarray
    start_s_N: np.ndarray
    end_s_N: np.ndarray
    assignments_N: np.ndarray
    unique_tokens_N: np.ndarray
    bytes_N: np.ndarray

    def __len__(self) -> int:
        return len(self.start_s_N)

    def select(self, chosen: np.ndarray) -> Timeline:
        """The spans that a boolean mask or an index array names, in its order."""
        return replace(self, **{f"{name}_N": array[chosen] for name, array in _by_column(self).items()})

    def validate(self, file: str | Path | None = None) -> None:
        """Check every column and that no lane overlaps.

        Raises:
            TimelineError: naming the column, the row, the rule and the value.
        """
        for column in _TIMELINE_COLUMNS:
            column.check(getattr(self, f"{column.name}_N"), len(self), file)
        backward = self.end_s_N < self.start_s_N
        if backward.any():
            row = int(backward.argmax())
            raise TimelineError(
                f"must not be before its start {float(self.start_s_N[row])!r}",
                file=file,
                field=f"end_s, row {row}",
                got=float(self.end_s_N[row]),
            )
        self._check_lanes(file)

    def lanes(self) -> np.ndarray:
        """Row numbers ordered by repeat, rank and stream; rows of a lane keep their order."""
        return np.lexsort((self.stream_N, self.rank_N, self.repeat_N))

    def _check_lanes(self, file: str | Path | None) -> None:
        order = self.lanes()
        same_lane = np.ones(max(len(order) - 1, 0), bool)
        for column in (self.repeat_N, self.rank_N, self.stream_N):
            sorted_column = column[order]
            same_lane &= sorted_column[1:] == sorted_column[:-1]
        early = same_lane & (self.start_s_N[order[1:]] < self.end_s_N[order[:-1]])
        if early.any():
            at = int(early.argmax())
            before, row = int(order[at]), int(order[at + 1])
            stream = STREAMS[self.stream_N[row]]
            raise TimelineError(
                f"rank {self.rank_N[row]}'s {stream} stream is busy until {float(self.end_s_N[before])!r} "
                f"with row {before}; spans of a lane must follow each other",
                file=file,
                field=f"start_s, row {row}",
                got=float(self.start_s_N[row]),
            )


@dataclass(frozen=True, eq=False)
class WorkTable:
    """Counted work, rows that are not zero only (axis N).

    A row of phase ``experts`` holds the tokens of one slot; a row of ``dispatch`` or ``combine`` the
    copies that one GPU sends to another. What stays on its GPU is not in the table.

    Args:
        step_N, layer_N: int32; the layer's true index.
        phase_N: int8 code into ``PHASES``.
        hop_N: int8 code into ``HOPS``: the first hop, or the relay inside the node.
        source_N: int32, the sending GPU; −1 in rows of ``experts``.
        destination_N: int32, the receiving GPU; in rows of ``experts`` the slot.
        count_N: int64, assignments (``experts``) or copies of a token.
        bytes_N: int64, bytes on the wire.
    """

    step_N: np.ndarray
    layer_N: np.ndarray
    phase_N: np.ndarray
    hop_N: np.ndarray
    source_N: np.ndarray
    destination_N: np.ndarray
    count_N: np.ndarray
    bytes_N: np.ndarray

    def __len__(self) -> int:
        return len(self.step_N)

    def validate(self, file: str | Path | None = None) -> None:
        """Check every column.

        Raises:
            TimelineError: naming the column, the row, the rule and the value.
        """
        for column in _WORK_COLUMNS:
            column.check(getattr(self, f"{column.name}_N"), len(self), file)
        experts = self.phase_N == PHASES.index("experts")
        wrong = experts != (self.source_N == -1)
        if wrong.any():
            row = int(wrong.argmax())
            rule = "must be -1 in rows of experts" if experts[row] else "must name the sending GPU"
            raise TimelineError(rule, file=file, field=f"source, row {row}", got=int(self.source_N[row]))


def write_timeline(timeline: Timeline, path: str | Path) -> None:
    """Write a timeline as Parquet, whole or not at all; equal timelines give equal bytes.

    Raises:
        TimelineError: the timeline breaks a rule; nothing is written.
        OutputError: the file cannot be written.
    """
    timeline.validate()
    write_columns(path, "timeline", _TIMELINE_COLUMNS, _by_column(timeline), constant={"run": timeline.run})


def read_timeline(path: str | Path) -> Timeline:
    """Read and validate a timeline.

    Raises:
        TimelineError: naming the file, the column, the row, the rule and the value.
    """
    arrays, constant = read_columns(path, "timeline", _TIMELINE_COLUMNS, constant=("run",))
    timeline = Timeline(constant["run"], **{f"{name}_N": array for name, array in arrays.items()})
    timeline.validate(path)
    return timeline


def write_work(work: WorkTable, path: str | Path) -> None:
    """Write the counted work as Parquet; errors and guarantees as :func:`write_timeline`."""
    work.validate()
    write_columns(path, "work", _WORK_COLUMNS, _by_column(work))


def read_work(path: str | Path) -> WorkTable:
    """Read and validate counted work; errors as :func:`read_timeline`."""
    arrays, _ = read_columns(path, "work", _WORK_COLUMNS)
    work = WorkTable(**{f"{name}_N": array for name, array in arrays.items()})
    work.validate(path)
    return work


def _by_column(table: Timeline | WorkTable) -> dict[str, Any]:
    return {f.name.removesuffix("_N"): getattr(table, f.name) for f in fields(table) if f.name != "run"}
