"""Counts as rows of CSV: a layer, an expert and its count, as SGLang's first recorder wrote them.

It wrote ``expert_distribution_rank<r>_timestamp<t>.csv`` for each rank (sgl-project/sglang #4435), with
``layer_id,expert_id,count`` and no row for an expert that got no token.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.csv

from traces.base.arrays import Array
from traces.base.door import open_file, require_file
from traces.base.errors import LoadTableError, reason_of
from traces.base.input_file import files_in, require_files
from traces.interop.columns import COUNTS, found_columns, require_columns
from traces.interop.hints import Hints
from traces.interop.loads import to_table
from traces.interop.recording import MAX_LAYERS
from traces.interop.rows import csv_names
from traces.load_table import LoadTable, whole_where_whole
from traces.meta import MAX_EXPERTS

_RANK_FILE = re.compile(r".*rank_?([0-9]{1,6})(?:_timestamp_?([0-9.]+))?\.csv")
_EXPANSION = 24  # bytes in memory for one of a file of short rows, while they are parsed, as measured


class CountCsv:
    """Columns layer, expert and count: a file, or a folder with one or more for each rank.

    Ranks are summed. The files of a rank, by their timestamps, are windows. Experts without a row have no
    load.
    """

    summary: ClassVar[str] = "CSV with layer, expert, count, or a folder with one for each rank, as by SGLang"

    def detects(self, path: Path) -> bool:
        files = files_in(path, ".csv")
        return bool(files) and found_columns(csv_names(files[0]), COUNTS).keys() == COUNTS.keys()

    def open(self, path: Path, hints: Hints) -> LoadTable:
        rows_WF = [[_read(file) for file in files] for files in _windows(path)]
        rows = [row for rows_F in rows_WF for row in rows_F]
        largest = max(int(expert_N.max()) for _, expert_N, _ in rows)
        experts = hints.experts
        if experts is None:
            rule = f"does not tell the number of experts: name it (--experts N; the largest id is {largest})"
            raise LoadTableError(rule, file=path)
        if largest >= experts:
            rule = f"expert id must be below {experts}"
            raise LoadTableError(rule, file=path, field="expert", got=largest)
        layers = np.unique(np.concatenate([layer_N for layer_N, _, _ in rows]))
        load_WLE = np.zeros((len(rows_WF), len(layers), experts))
        for window, rows_F in enumerate(rows_WF):
            for layer_N, expert_N, count_N in rows_F:
                np.add.at(load_WLE[window], (np.searchsorted(layers, layer_N), expert_N), count_N)
        ranks = len(rows_WF[0])
        origin = "counts in CSV" + (f", summed over {ranks} ranks" if ranks > 1 else "")
        found = tuple(layers.tolist())
        return to_table(whole_where_whole(load_WLE), hints, file=path, origin=origin, layers=found)


def _windows(path: Path) -> list[list[Path]]:
    """The files of each window: of all ranks, the first, then the second by its timestamp, and so on."""
    files = require_files(path, ".csv", LoadTableError)
    if len(files) == 1:
        return [files]
    files_of: dict[int, list[tuple[float, Path]]] = defaultdict(list)
    for file in files:
        match = _RANK_FILE.fullmatch(file.name)
        if match is None:
            rule = "must be named …rank<r>_timestamp<t>.csv beside others: their counts are summed by rank"
            raise LoadTableError(rule, file=file)
        try:
            files_of[int(match[1])].append((float(match[2] or 0), file))
        except ValueError as fault:
            raise LoadTableError("has no number for a timestamp", file=file, got=match[2]) from fault
    lengths = {rank: len(found) for rank, found in files_of.items()}
    if sorted(files_of) != list(range(len(files_of))) or len(set(lengths.values())) > 1:
        got = ", ".join(f"{count} of rank {rank}" for rank, count in sorted(lengths.items()))
        rule = "must hold as many files of each rank, from rank 0 without a gap"
        raise LoadTableError(rule, file=path, got=got)
    in_order = [[file for _, file in sorted(files_of[rank])] for rank in sorted(files_of)]
    return [list(window) for window in zip(*in_order, strict=True)]


def _read(file: Path) -> tuple[Array, Array, Array]:
    """Layer, expert and count of each row."""
    require_file(file, "counts in CSV", LoadTableError)
    names = csv_names(file)
    if not names:
        raise LoadTableError("is not CSV that can be read: its first line names no columns", file=file)
    columns = found_columns(names, COUNTS)
    require_columns(columns, COUNTS, names, COUNTS, LoadTableError, file)
    types = dict.fromkeys((columns["layer"], columns["expert"]), pa.int64()) | {
        columns["count"]: pa.float64()
    }
    options = pyarrow.csv.ConvertOptions(column_types=types, include_columns=list(types), null_values=[""])
    try:
        with open_file(file, "counts in CSV", LoadTableError, times=_EXPANSION) as stream:
            table = pyarrow.csv.read_csv(stream, convert_options=options)
    except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError, MemoryError) as fault:
        raise LoadTableError(f"is not CSV that can be read: {reason_of(fault)}", file=file) from fault
    arrays = []
    for ours, most in (("layer", MAX_LAYERS - 1), ("expert", MAX_EXPERTS - 1), ("count", np.inf)):
        column = table.column(columns[ours])
        if column.null_count or not len(column):
            raise LoadTableError("must not be empty", file=file, field=columns[ours])
        values = column.to_numpy()
        wrong_N = ~((values >= 0) & (values <= most) & np.isfinite(values))
        if wrong_N.any():
            row = int(np.argmax(wrong_N))
            rule = "must be a number from 0" + (f" to {most}" if most < np.inf else "")
            raise LoadTableError(rule, file=file, field=f"{columns[ours]}, row {row}", got=values[row])
        arrays.append(values)
    return arrays[0], arrays[1], arrays[2]
