"""Every kernel compiled for an H100: what the interpreter accepts a GPU may not, and tiles have to fit it."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("triton")

from executor.kernels import combine, grouped_gemm, order, schedule
from executor.kernels.tiles import Tile, choose_tiles
from tests.executor.hopper import SHARED_BYTES, Compiled, compiled

pytestmark = pytest.mark.executor

GEMM: dict[str, str] = dict.fromkeys(("order", "end", "tile_group", "tile_row"), "*i32") | {
    "scale": "*fp32",
    "factor": "*fp32",
    "tiles": "i32",
    "columns": "i16",
    "depth": "i16",
    "x_stride": "i16",
}


def product(
    tile: Tile,
    rows: int,
    *,
    by_group: bool,
    up: bool,
    whole: bool = True,
    eight_bits: bool = False,
    dtype: str,
    **ones: int,
) -> Compiled:
    """One of the two products of a layer, as the layer launches it; arguments that are 1 become constants."""
    constants: dict[str, Any] = {
        "ACTIVATION": "swiglu" if up else "none",
        "GATHER": 8 if up else 0,
        "SCATTERS": not up,
        "SCALES": not up,
        "BLOCK": 128 if eight_bits else 0,
        "BY_GROUP": by_group,
        "BAND": 1 if by_group else 8,
        "WHOLE": whole,
        "ROWS": rows,
        "COLUMNS": tile.columns,
        "DEPTH": tile.depth,
    } | ones
    types = GEMM | dict.fromkeys(("x", "weight", "out"), f"*{dtype}")
    if eight_bits:
        types["weight"] = "*fp8e4nv"
    types = {name: type_ for name, type_ in types.items() if name not in ones}
    return compiled(grouped_gemm._grouped_gemm, types, constants, warps=tile.warps, stages=tile.stages)


@pytest.mark.parametrize(("assignments", "up"), [(512, True), (4096, True), (262144, True), (262144, False)])
def test_products_with_weights_of_eight_bits_fit_a_multiprocessor(assignments: int, up: bool) -> None:
    tiles = choose_tiles(assignments, 128, 2048, 768, gated=True, element_bytes=2, eight_bits=True)
    tile, by_group = tiles.up if up else tiles.down, tiles.by_group
    found = product(tile, tiles.rows, by_group=by_group, up=up, eight_bits=True, dtype="bf16")
    assert found.shared <= SHARED_BYTES // (1 if tiles.rows == 128 else 2)
    assert found.spilled == 0
    assert found.copies == {16}
    assert found.columns == ({tile.columns * (1 + up)} if tiles.rows >= 64 else set())


@pytest.mark.parametrize(
    ("assignments", "up", "dtype", "two"),
    [
        (512, True, "bf16", True),  # decode
        (4096, False, "fp16", True),
        (262144, True, "bf16", False),  # prefill
        (262144, False, "bf16", False),
        (512, True, "fp32", True),
    ],
)
def test_products_fit_a_multiprocessor(assignments: int, up: bool, dtype: str, two: bool) -> None:
    """Programs of low tiles share one; registers stay registers; rows come 16 bytes at a time."""
    element_bytes = 4 if dtype == "fp32" else 2
    tiles = choose_tiles(assignments, 128, 2048, 768, gated=True, element_bytes=element_bytes)
    tile = tiles.up if up else tiles.down
    found = product(tile, tiles.rows, by_group=tiles.by_group, up=up, dtype=dtype)
    assert found.shared <= SHARED_BYTES // (2 if two else 1)
    assert found.spilled == 0
    assert found.copies == {16}
    # From 64 rows on the four warps of a group multiply together, all columns of all matrices at once, and
    # load while they do.
    grouped = tiles.rows >= 64 and element_bytes == 2
    assert found.columns == ({tile.columns * (1 + up)} if grouped else set())
    assert found.under_way == (1 if grouped else 0)


@pytest.mark.parametrize("ones", [{}, {"columns": 1, "depth": 1, "x_stride": 1}], ids=["", "ones"])
@pytest.mark.parametrize(("by_group", "eight_bits"), [(True, False), (False, False), (False, True)])
def test_sizes_that_no_tile_divides_compile(ones: dict[str, int], by_group: bool, eight_bits: bool) -> None:
    found = product(
        Tile(16, 64, 4, 3),
        16,
        by_group=by_group,
        up=True,
        whole=False,
        eight_bits=eight_bits,
        dtype="bf16",
        **ones,
    )
    assert found.spilled == 0


@pytest.mark.parametrize(
    ("kernel", "types", "constants", "warps"),
    [
        (order._compare_all, {"ids": "*i16"}, {"QUERIES": 32, "KEYS": 128}, 4),
        (order._count, {"ids": "*i64"}, {"BINS": 1024, "KEYS": 1024}, 4),
        (order._add_up, {}, {"CHUNKS": 256, "BINS": 16}, 8),
        (order._add_up, {}, {"CHUNKS": 4, "BINS": 1024}, 8),
        (order._place, {"ids": "*u8"}, {"QUERIES": 32, "KEYS": 128}, 4),
        (schedule._map_tiles, {}, {"ROWS": 128, "GROUPS": 512, "TILES": 32}, 4),
        (
            combine._combine,
            {"rows": "*bf16", "ids": "*i64", "y": "*bf16"},
            {"CHOICES": 8, "COLUMNS": 1024},
            4,
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_kernels_around_the_products_compile(
    kernel: Any, types: dict[str, str], constants: dict[str, int], warps: int
) -> None:
    """At the largest sizes that they are launched with, and with numbers that are 1."""
    pointers = dict.fromkeys(
        ("assignment", "count", "start", "end", "tile_group", "tile_row", "tile_row_end"), "*i32"
    )
    known = pointers | types
    others = {name: known.get(name, "i32") for name in kernel.arg_names if name not in constants}
    assert compiled(kernel, others, constants, warps=warps).spilled == 0
    ones = {name: 1 for name in ("slots", "groups", "width") if name in others}
    rest = {name: type_ for name, type_ in others.items() if name not in ones}
    assert compiled(kernel, rest, constants | ones, warps=warps).spilled == 0


def test_nothing_is_compiled_anew_for_another_number_of_tokens() -> None:
    """Of an integer Triton takes whether it is 1, or a multiple of 16, as known when it compiles."""
    counts = {"assignments", "chunks", "rows_in_all", "tiles"}
    kernels = (order._compare_all, order._count, order._add_up, order._place, schedule._map_tiles)
    for kernel in (*kernels, grouped_gemm._grouped_gemm):
        found = [parameter for parameter in kernel.params if parameter.name in counts]
        assert found
        assert all(parameter.do_not_specialize for parameter in found)
    assert not counts & set(combine._combine.arg_names)
