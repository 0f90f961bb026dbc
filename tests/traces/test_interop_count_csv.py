"""Counts as rows of CSV: a file, and a folder with files of each rank."""

from __future__ import annotations

from pathlib import Path

import pytest

from traces.base.errors import LoadTableError
from traces.interop import LOAD_IMPORTERS, detect, open_source
from traces.interop.hints import Hints
from traces.load_table import LoadTable

ROWS = "layer_id,expert_id,count\n3,0,2499\n3,2,3924\n5,1,7\n"


def read(path: Path, experts: int | None = 4) -> LoadTable:
    found = open_source(path, Hints(experts=experts))
    assert isinstance(found, LoadTable)
    return found


def test_experts_without_a_row_have_no_load(tmp_path: Path) -> None:
    path = tmp_path / "expert_distribution_rank0_timestamp17.5.csv"
    path.write_text(ROWS)
    assert detect(path) is LOAD_IMPORTERS["count-csv"]
    table = read(path)
    assert (table.layers, table.load_WLE.tolist()) == ((3, 5), [[[2499, 0, 3924, 0], [0, 7, 0, 0]]])


def test_ranks_are_summed_and_timestamps_are_windows(tmp_path: Path) -> None:
    for rank, times in ((0, (9.5, 10.25)), (1, (9.75, 11))):
        for number, time in enumerate(times):
            path = tmp_path / f"expert_distribution_rank{rank}_timestamp{time}.csv"
            path.write_text(f"layer_id,expert_id,count\n3,{number},{10**rank}\n3,3,0.5\n")
    table = read(tmp_path)
    assert table.load_WLE.tolist() == [[[11, 0, 0, 1.0]], [[0, 11, 0, 1.0]]]
    assert table.origin == "counts in CSV, summed over 2 ranks"
    path.unlink()
    with pytest.raises(LoadTableError, match=r"as many files of each rank, .*'2 of rank 0, 1 of rank 1'"):
        read(tmp_path)
    (tmp_path / "other.csv").write_text(ROWS)
    with pytest.raises(LoadTableError, match=r"other\.csv: must be named …rank<r>_timestamp<t>\.csv"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("text", "experts", "message"),
    [
        (ROWS, None, r"does not tell the number of experts: name it \(--experts N; the largest id is 2\)"),
        (ROWS, 2, r"expert: expert id must be below 2 \(got 2\)"),
        ("layer,expert\n1,2\n", 4, r"lacks column count \(or counts, .*\); it has layer, expert"),
        ("layer,expert,count\n", 4, "count: must not be empty|layer: must not be empty"),
        ("layer,expert,count\n1,2,\n", 4, "count: must not be empty"),
        ("layer,expert,count\n1,2,-3\n", 4, r"count, row 0: must be a number from 0 \(got -3.0\)"),
        ("layer,expert,count\n1,2,nan\n", 4, "count, row 0: must be a number from 0"),
        ("layer,expert,count\n1,-2,3\n", 4, "expert, row 0: must be a number from 0 to 65535"),
        ("layer,expert,count\n9999999,2,3\n", 4, "layer, row 0: must be a number from 0 to 4095"),
        ("layer,expert,count\n1,x,3\n", 4, "is not CSV that can be read"),
        ("layer,expert,count\n1,2,0\n", 4, "has no load in any window"),
        ("\x00", 4, "names no columns"),
    ],
)
def test_bad_counts_are_refused(tmp_path: Path, text: str, experts: int | None, message: str) -> None:
    path = tmp_path / "counts.csv"
    path.write_text(text)
    with pytest.raises(LoadTableError, match=message):
        LOAD_IMPORTERS["count-csv"].open(path, Hints(experts=experts))
