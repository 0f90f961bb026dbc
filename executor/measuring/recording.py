"""From the spans of every rank to one timeline: clocks aligned, waiting told from working.

Axes: G ranks, N spans of a rank; every rank runs the same phases in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from executor.layer.spans import COLUMNS
from traces.timeline import PHASES, STREAMS, Timeline

_WAIT = PHASES.index("wait")
_COLLECTIVES = [PHASES.index(phase) for phase in ("dispatch", "combine")]
_COMMUNICATION = STREAMS.index("communication")
_INT32 = ("repeat", "step", "micro_batch", "layer", "rank")


def timeline(run: str, tables: Sequence[NDArray[np.int64]], *, together: bool = True) -> Timeline:
    """The timeline of a run, by repeat, step, rank and time; it starts at 0.

    As in a simulation, a collective begins when the last rank has entered it, and a step ends for all ranks
    together; what comes before either is a wait.

    Args:
        run: its name.
        tables: of each rank, as ``executor.layer.spans.COLUMNS`` says, all on one clock.
        together: whether the ranks ran at the same time; else nobody waits.
    """
    spans_GNC = np.stack(tables)
    column = {name: spans_GNC[:, :, place] for place, name in enumerate(COLUMNS)}
    entered_GN, end_GN = column["start_ns"], column["end_ns"]
    start_GN = entered_GN.copy()
    if together:
        meets_GN = np.isin(column["phase"], _COLLECTIVES)
        # Clocks are aligned to within an error only: a span never begins after its own end.
        met_GN = np.minimum(entered_GN.max(axis=0), end_GN)
        start_GN[meets_GN] = met_GN[meets_GN]
    stream_GN = np.where(np.isin(column["phase"], _COLLECTIVES), _COMMUNICATION, 0)
    rank_GN = np.broadcast_to(np.arange(len(tables))[:, None], start_GN.shape)
    blocks = [{**column, "rank": rank_GN, "stream": stream_GN, "start_ns": start_GN}]
    if together:
        waits = start_GN > entered_GN
        idle = {name: np.zeros_like(values_GN) for name, values_GN in blocks[0].items()}
        belongs = ("repeat", "step", "micro_batch", "layer", "rank", "stream")
        same = {name: blocks[0][name] for name in belongs}
        before = idle | same | {"start_ns": entered_GN, "end_ns": start_GN, "phase": idle["phase"] + _WAIT}
        blocks.append({name: values_GN[waits] for name, values_GN in before.items()})
        blocks.append(_closing_waits(column["repeat"], column["step"], end_GN))
    rows = {name: np.concatenate([block[name].ravel() for block in blocks]) for name in blocks[0]}
    order = np.lexsort((rows["end_ns"], rows["start_ns"], rows["rank"], rows["step"], rows["repeat"]))
    return _named(run, {name: values[order] for name, values in rows.items()})


def _closing_waits(
    repeat_GN: NDArray[np.int64], step_GN: NDArray[np.int64], end_GN: NDArray[np.int64]
) -> dict[str, NDArray[Any]]:
    """From the end of each rank's last span of a step to that of the last rank."""
    step_N, repeat_N = step_GN[0], repeat_GN[0]
    first_N = np.diff(step_N, prepend=-1) != 0
    first_N |= np.diff(repeat_N, prepend=-1) != 0
    done_GM = np.maximum.reduceat(end_GN, np.flatnonzero(first_N), axis=1)
    ended_GM = np.broadcast_to(done_GM.max(axis=0), done_GM.shape)
    idle = done_GM < ended_GM
    rank, step = np.nonzero(idle)
    rows = {name: np.zeros(len(rank), np.int64) for name in COLUMNS}
    return rows | {
        "repeat": repeat_N[first_N][step],
        "step": step_N[first_N][step],
        "layer": rows["layer"] - 1,
        "phase": rows["phase"] + _WAIT,
        "start_ns": done_GM[idle],
        "end_ns": ended_GM[idle],
        "rank": rank,
        "stream": rows["layer"] + _COMMUNICATION,
    }


def _named(run: str, rows: dict[str, NDArray[np.int64]]) -> Timeline:
    """Seconds from the first start on; the columns' own types."""
    first_ns = rows["start_ns"].min()
    return Timeline(
        run,
        **{f"{name}_N": rows[name].astype(np.int32) for name in _INT32},
        **{f"{name}_N": rows[name].astype(np.int8) for name in ("stream", "phase")},
        **{f"{name}_N": rows[name] for name in ("assignments", "unique_tokens", "bytes")},
        start_s_N=(rows["start_ns"] - first_ns) / 1e9,
        end_s_N=(rows["end_ns"] - first_ns) / 1e9,
    )
