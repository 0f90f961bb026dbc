"""What needs neither a GPU nor the interpreter: refusals, the choice of tiles, and what is imported."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("triton")

from executor.kernels.eight_bits import from_eight_bits, to_eight_bits
from executor.kernels.graph import GraphedLayer
from executor.kernels.grouped_gemm import grouped_gemm
from executor.kernels.layer import moe_layer
from executor.kernels.schedule import Schedule
from executor.kernels.tiles import Tile, choose_tiles
from tests.executor.hopper import SHARED_BYTES
from tests.test_architecture import ROOT, imported
from tests.tolerance import rounding

pytestmark = pytest.mark.executor

T, K, S, H, F = 3, 2, 4, 8, 6


def inputs() -> dict[str, Any]:
    return {
        "x_TH": torch.zeros(T, H),
        "ids_TK": torch.zeros(T, K, dtype=torch.int64),
        "weight_TK": torch.zeros(T, K),
        "up_SNH": torch.zeros(S, 2 * F, H),
        "down_SHF": torch.zeros(S, H, F),
    }


EIGHT_BITS = {name: inputs()[name].to(torch.float8_e4m3fn) for name in ("up_SNH", "down_SHF")}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x_TH": torch.zeros(T, H, 1)}, r"x_TH must have 2 axes \(got \(3, 8, 1\)\)"),
        ({"x_TH": torch.zeros(T, H + 1)}, r"up_SNH must have shape \(4, 12, 9\) .*\(got \(4, 12, 8\)\)"),
        ({"ids_TK": torch.zeros(T + 1, K, dtype=torch.int64)}, r"ids_TK must have shape \(3, 2\)"),
        ({"ids_TK": torch.zeros(T, K)}, r"ids_TK must hold integers \(got torch.float32\)"),
        ({"ids_TK": torch.zeros(T, K, dtype=torch.bool)}, "ids_TK must hold integers"),
        ({"weight_TK": torch.zeros(T, K + 1)}, r"weight_TK must have shape \(3, 2\)"),
        ({"weight_TK": torch.zeros(T, K, dtype=torch.int32)}, "weight_TK must hold floats"),
        ({"up_SNH": torch.zeros(S, F, H)}, r"down_SHF must have shape \(4, 8, 3\)"),
        ({"up_SNH": torch.zeros(S, 3, H)}, r"up_SNH must hold gate and up, an even .*\(got 3\)"),
        ({"gated": False}, r"down_SHF must have shape \(4, 8, 12\)"),
        ({"down_SHF": torch.zeros(S, F, H)}, r"down_SHF must have shape \(4, 8, 6\) .*\(got \(4, 6, 8\)\)"),
        ({}, r"x_TH must be on a GPU, or TRITON_INTERPRET=1 set .*\(got cpu\)"),
        ({"down_SHF": torch.zeros(S, H, F).half()}, "down_SHF must be torch.float32, as x_TH"),
        ({"down_SHF": torch.zeros(S, F, H).transpose(1, 2)}, "down_SHF must be contiguous"),
        ({"x_TH": torch.zeros(H, T).T}, r"x_TH must be contiguous along H \(got \(1, 3\)\)"),
        ({"x_TH": torch.zeros(T, H, dtype=torch.float64)}, "x_TH must be float32, bfloat16 or float16"),
        ({"factors": (torch.ones(S, 1, 1),) * 2}, "up_SNH must be torch.float8_e4m3fn, with factors"),
        ({"factors": (torch.ones(S, 1, 2),) * 2}, r"up_factor_SBC must have shape \(4, 1, 1\)"),
        ({"factors": (torch.ones(S, 1, 1).half(),) * 2} | EIGHT_BITS, "up_factor_SBC must be torch.float32"),
        ({"weight_TK": torch.zeros(T, K, device="meta")}, "weight_TK must be where x_TH is, on cpu"),
    ],
)
def test_what_does_not_fit_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        moe_layer(**inputs() | changed)


@pytest.mark.parametrize("none", ["T", "K", "S", "FN"])
def test_where_there_is_nothing_to_add_the_output_is_zero(none: str) -> None:
    def cut(name: str, tensor: torch.Tensor) -> torch.Tensor:
        axes = name.rpartition("_")[2]
        return tensor[tuple(slice(0 if axis in none else None) for axis in axes)]

    given_: dict[str, Any] = {name: cut(name, tensor) for name, tensor in inputs().items()}
    assert moe_layer(**given_).tolist() == torch.zeros(len(given_["x_TH"]), H).tolist()


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_eight_bits_lose_a_sixteenth_at_most(scale: float) -> None:
    weight_ZMK = scale * torch.randn(3, 130, 300).bfloat16()
    weight_ZMK[1, :128, :128] = 0
    eight_ZMK, factor_ZBC = to_eight_bits(weight_ZMK)
    assert (eight_ZMK.dtype, factor_ZBC.shape) == (torch.float8_e4m3fn, (3, 2, 3))
    back_ZMK = from_eight_bits(eight_ZMK, factor_ZBC)
    least = factor_ZBC.repeat_interleave(128, 1)[:, :130].repeat_interleave(128, 2)[..., :300] * 2**-10
    error_ZMK = (back_ZMK - weight_ZMK.float()).abs()
    assert (
        error_ZMK <= torch.maximum(weight_ZMK.float().abs() / 16, least) * (1 + rounding(8, "float32"))
    ).all()
    assert not back_ZMK[1, :128, :128].any()
    # The largest of a block is kept.
    for rows, columns in ((slice(128), slice(128)), (slice(128, 130), slice(256, 300))):
        kept, largest = (each[0, rows, columns].abs().max() for each in (back_ZMK, weight_ZMK.float()))
        assert float(kept) == pytest.approx(float(largest), rel=rounding(8, "float32"))


def test_a_tile_that_spans_two_factors_is_refused() -> None:
    tile = Tile(columns=16, depth=256, warps=4, stages=2)
    groups = Schedule(torch.zeros(S, dtype=torch.int32), 16, S)
    with pytest.raises(ValueError, match=r"depth must divide 128 where weights have factors \(got 256\)"):
        grouped_gemm(inputs()["x_TH"], EIGHT_BITS["up_SNH"], groups, tile, factor_ZBC=torch.ones(S, 1, 1))


def test_a_graph_without_a_gpu_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a graph needs weights on a GPU \(got cpu\)"):
        GraphedLayer(4, K, inputs()["up_SNH"], inputs()["down_SHF"])


@given(
    assignments=st.integers(1, 1 << 19),
    groups=st.integers(1, 512),
    hidden=st.integers(1, 8192),
    width=st.integers(1, 16384),
    gated=st.booleans(),
    element_bytes=st.sampled_from([2, 4]),
    eight_bits=st.booleans(),
)
def test_tiles_are_ones_that_triton_takes_and_an_h100_holds(
    assignments: int,
    groups: int,
    hidden: int,
    width: int,
    gated: bool,
    element_bytes: int,
    eight_bits: bool,
) -> None:
    given_: dict[str, Any] = {"gated": gated, "element_bytes": element_bytes, "eight_bits": eight_bits}
    tiles = choose_tiles(assignments, groups, hidden, width, **given_)
    for tile, matrices in ((tiles.up, 1 + gated), (tiles.down, 1)):
        for size in (tiles.rows, tile.columns, tile.depth):
            assert size >= 16
            assert size & (size - 1) == 0
        assert tiles.rows <= 128
        assert 2 <= tile.stages <= 5
        weights = matrices * tile.columns * (1 if eight_bits else element_bytes)
        loaded = tile.depth * (tiles.rows * element_bytes + weights)
        # A factor is for 128 columns and rows.
        assert tile.depth <= 128
        assert loaded * tile.stages <= SHARED_BYTES
    busy = min(assignments, groups)
    # A group of twice the mean fits one tile, as far as tiles go.
    assert tiles.rows >= min(2 * assignments / busy, 128 if element_bytes == 2 else 64)
    # A program that takes a group has few tiles of it to take.
    assert not tiles.by_group or assignments <= 32 * busy


def test_more_tokens_never_make_tiles_lower() -> None:
    rows = [
        choose_tiles(tokens * 8, 128, 2048, 768, gated=True, element_bytes=2).rows
        for tokens in range(1, 4096, 7)
    ]
    assert rows == sorted(rows)
    assert set(rows) == {16, 32, 64, 128}


def test_the_kernels_import_torch_and_triton_alone() -> None:
    paths = sorted((ROOT / "executor" / "kernels").glob("*.py"))
    names = {name for path in paths for name in imported(path.read_text("utf-8"))}
    outside = {name.partition(".")[0] for name in names if not name.startswith("executor.kernels.")}
    assert outside - set(sys.stdlib_module_names) == {"torch", "triton"}
