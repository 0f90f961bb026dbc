"""What needs neither a GPU nor the interpreter: refusals, the choice of tiles, and what is imported."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("triton")

from executor.kernels.graph import GraphedLayer
from executor.kernels.layer import moe_layer
from executor.kernels.tiles import choose_tiles
from tests.executor.hopper import SHARED_BYTES
from tests.test_architecture import ROOT, imported

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


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x_TH": torch.zeros(T, H, 1)}, r"x_TH must have 2 axes \(got \(3, 8, 1\)\)"),
        ({"x_TH": torch.zeros(T, H + 1)}, r"x_TH must have shape \(3, 8\) .*\(got \(3, 9\)\)"),
        ({"ids_TK": torch.zeros(T + 1, K, dtype=torch.int64)}, r"ids_TK must have shape \(3, 2\)"),
        ({"ids_TK": torch.zeros(T, K)}, r"ids_TK must hold integers \(got torch.float32\)"),
        ({"ids_TK": torch.zeros(T, K, dtype=torch.bool)}, "ids_TK must hold integers"),
        ({"weight_TK": torch.zeros(T, K + 1)}, r"weight_TK must have shape \(3, 2\)"),
        ({"weight_TK": torch.zeros(T, K, dtype=torch.int32)}, "weight_TK must hold floats"),
        ({"up_SNH": torch.zeros(S, F, H)}, r"up_SNH must have shape \(4, 12, 8\)"),
        ({"gated": False}, r"up_SNH must have shape \(4, 6, 8\)"),
        ({"down_SHF": torch.zeros(S, H, F).half()}, "down_SHF must be torch.float32, as x_TH"),
        ({"down_SHF": torch.zeros(S, F, H).transpose(1, 2)}, "down_SHF must be contiguous"),
        ({"x_TH": torch.zeros(H, T).T}, r"x_TH must be contiguous along H \(got \(1, 3\)\)"),
        ({"x_TH": torch.zeros(T, H, dtype=torch.float64)}, "x_TH must be float32, bfloat16 or float16"),
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
)
def test_tiles_are_ones_that_triton_takes_and_an_h100_holds(
    assignments: int, groups: int, hidden: int, width: int, gated: bool, element_bytes: int
) -> None:
    tiles = choose_tiles(assignments, groups, hidden, width, gated=gated, element_bytes=element_bytes)
    for tile, matrices in ((tiles.up, 1 + gated), (tiles.down, 1)):
        for size in (tiles.rows, tile.columns, tile.depth):
            assert size >= 16
            assert size & (size - 1) == 0
        assert tiles.rows <= 128
        assert 2 <= tile.stages <= 5
        loaded = tile.depth * (tiles.rows + matrices * tile.columns) * element_bytes
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
