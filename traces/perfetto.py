"""Export of a timeline for ui.perfetto.dev and chrome://tracing.

The Chrome trace event format, JSON, gzip: a GPU is a process, a stream a thread, a span a complete
event (``X``) named after its phase, so that the viewer's sums by name are sums by phase. An arrow
(flow events ``s`` and ``f``) leads from each layer's dispatch to the combine of the same rank.
Format: "Trace Event Format", docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from traces.base.files import whole_file
from traces.base.text import to_json
from traces.timeline import PHASES, STREAMS, Timeline

_CHUNK: Final = 1 << 15
# Level 1 writes a million spans in half the time of the default for a quarter more bytes.
_GZIP_LEVEL: Final = 1


def write_perfetto(timeline: Timeline, path: str | Path) -> None:
    """Write ``timeline`` as gzipped Chrome JSON; equal timelines give equal bytes.

    The earliest span starts at 0. Starts and ends are rounded to whole nanoseconds, which is
    monotone: spans that do not overlap in the timeline do not overlap in the file.

    Raises:
        OutputError: the file cannot be written.
    """
    # No file name and no date in the gzip header.
    with (
        whole_file(path) as partial,
        partial.open("wb") as raw,
        gzip.GzipFile("", "wb", _GZIP_LEVEL, raw, mtime=0) as out,
    ):
        _write_events(timeline, out)


def _write_events(timeline: Timeline, out: gzip.GzipFile) -> None:
    out.write(b'{"displayTimeUnit":"ns","traceEvents":[\n')
    process_N = _processes(timeline)
    out.write(",\n".join(_names(timeline, process_N)).encode())
    start_ns, end_ns = _nanoseconds(timeline)
    flow_N, leaves_N = _flows(timeline, start_ns, end_ns)
    for first in range(0, len(timeline), _CHUNK):
        rows = slice(first, first + _CHUNK)
        out.write(_events(timeline, rows, process_N, start_ns, end_ns, flow_N, leaves_N).encode())
    out.write(b"\n]}\n")


def _processes(timeline: Timeline) -> np.ndarray:
    """Process ids (axis N): one for each GPU of each repeat, repeat after repeat.

    They start at 1, because viewers take process 0 for the idle task of the operating system.
    """
    ranks = int(timeline.rank_N.max(initial=0)) + 1
    process_N: np.ndarray = timeline.repeat_N.astype(np.int64) * ranks + timeline.rank_N + 1
    return process_N


def _names(timeline: Timeline, process_N: np.ndarray) -> Iterator[str]:
    """Metadata events that name and order processes and threads."""
    repeats = len(np.unique(timeline.repeat_N)) > 1
    yield _metadata("trace_name", 0, 0, name=timeline.run)
    _, firsts = np.unique(process_N, return_index=True)
    for first in firsts.tolist():
        process = int(process_N[first])
        name = f"GPU {timeline.rank_N[first]}"
        if repeats:
            name += f", repeat {timeline.repeat_N[first]}"
        yield _metadata("process_name", process, 0, name=name)
        yield _metadata("process_sort_index", process, 0, sort_index=process)
        for stream, stream_name in enumerate(STREAMS):
            yield _metadata("thread_name", process, stream + 1, name=stream_name)
            yield _metadata("thread_sort_index", process, stream + 1, sort_index=stream)


def _metadata(kind: str, process: int, thread: int, **args: str | int) -> str:
    event = {"ph": "M", "name": kind, "pid": process, "tid": thread, "args": args}
    return to_json(event)


def _nanoseconds(timeline: Timeline) -> tuple[np.ndarray, np.ndarray]:
    """Starts and ends in whole nanoseconds after the earliest start (int64, axis N)."""
    origin = timeline.start_s_N.min() if len(timeline) else 0.0
    start_ns = np.rint((timeline.start_s_N - origin) * 1e9).astype(np.int64)
    end_ns = np.rint((timeline.end_s_N - origin) * 1e9).astype(np.int64)
    return start_ns, end_ns


def _flows(timeline: Timeline, start_ns: np.ndarray, end_ns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The arrows' ids from 1 at both of their spans, else 0, and which of them leave (axis N).

    With the same repeat, rank, step, micro batch and layer, an arrow leads from the last dispatch
    to the first combine after it. A span shorter than a nanosecond has no inside to tie an end to.
    """
    dispatch, combine = PHASES.index("dispatch"), PHASES.index("combine")
    solid = (end_ns > start_ns) & (timeline.layer_N >= 0)
    rows = np.flatnonzero(solid & np.isin(timeline.phase_N, (dispatch, combine)))
    keys = (timeline.layer_N, timeline.micro_batch_N, timeline.step_N, timeline.rank_N, timeline.repeat_N)
    rows = rows[np.lexsort((start_ns[rows], *(key[rows] for key in keys)))]
    before, after = rows[:-1], rows[1:]
    joined = (timeline.phase_N[before] == dispatch) & (timeline.phase_N[after] == combine)
    for key in keys:
        joined &= key[before] == key[after]
    # On different streams the two may overlap; an arrow must not point back in time.
    middle_ns = (start_ns + end_ns) // 2
    joined &= middle_ns[before] <= middle_ns[after]
    flow_N, leaves_N = np.zeros(len(timeline), np.int64), np.zeros(len(timeline), bool)
    flow_N[before[joined]] = flow_N[after[joined]] = np.arange(1, int(joined.sum()) + 1)
    leaves_N[before[joined]] = True
    return flow_N, leaves_N


def _events(
    timeline: Timeline,
    rows: slice,
    process_N: np.ndarray,
    start_ns: np.ndarray,
    end_ns: np.ndarray,
    flow_N: np.ndarray,
    leaves_N: np.ndarray,
) -> str:
    """The events of some spans, each after a comma: the span, then the end of an arrow inside it.

    Times are microseconds, written with all their digits: floats would round those of long runs.
    """
    parts: list[str] = []
    # Plain Python numbers format several times faster than numpy's.
    columns = (
        process_N,
        timeline.stream_N,
        timeline.phase_N,
        start_ns,
        end_ns - start_ns,
        timeline.step_N,
        timeline.micro_batch_N,
        timeline.layer_N,
        timeline.assignments_N,
        timeline.unique_tokens_N,
        timeline.bytes_N,
        flow_N,
        leaves_N,
    )
    for process, stream, phase, start, length, *args, flow, leaves in zip(
        *(column[rows].tolist() for column in columns), strict=True
    ):
        step, batch, layer, assigned, unique, size = args
        name, lane = PHASES[phase], f'"pid":{process},"tid":{stream + 1}'
        parts.append(
            f',\n{{"ph":"X","name":"{name}","cat":"{name}",{lane},'
            f'"ts":{start // 1000}.{start % 1000:03d},"dur":{length // 1000}.{length % 1000:03d},'
            f'"args":{{"step":{step},"micro_batch":{batch},"layer":{layer},'
            f'"assignments":{assigned},"unique_tokens":{unique},"bytes":{size}}}}}'
        )
        if flow:
            # Tied in the middle: an end at the border could fall to the neighbouring span.
            kind = '"s"' if leaves else '"f","bp":"e"'
            at = start + length // 2
            parts.append(
                f',\n{{"ph":{kind},"id":{flow},"name":"dispatch to combine","cat":"flow",{lane},'
                f'"ts":{at // 1000}.{at % 1000:03d}}}'
            )
    return "".join(parts)
