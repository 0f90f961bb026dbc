"""The kernels on a GPU: all dtypes, and sizes that the interpreter is too slow for."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from executor.experts.weights import ExpertWeights
from executor.kernels.eight_bits import from_eight_bits, to_eight_bits
from executor.kernels.graph import GraphedLayer
from executor.kernels.layer import moe_layer
from executor.kernels.order import sort_by_slot
from executor.kernels.tiles import Tile, Tiles
from tests.executor.exact_layers import exact_layer

pytestmark = [pytest.mark.executor, pytest.mark.gpu]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def layer_inputs(
    T: int, K: int, S: int, H: int, F: int, dtype: torch.dtype = torch.bfloat16, *, gated: bool = True
) -> tuple[Tensor, ...]:
    torch.manual_seed(T + S)
    return (
        torch.randn(T, H, device="cuda").to(dtype),
        torch.randint(-1, S, (T, K), device="cuda"),
        torch.rand(T, K, device="cuda") / K,
        (torch.randn(S, F * (1 + gated), H, device="cuda") * H**-0.5).to(dtype),
        (torch.randn(S, H, F, device="cuda") * F**-0.5).to(dtype),
    )


def assert_layer(found_TH: Tensor, inputs: tuple[Tensor, ...], *, gated: bool = True) -> None:
    x_TH, ids_TK, weight_TK, up_SNH, down_SHF = (tensor.cpu() for tensor in inputs)
    wanted = exact_layer(x_TH, ids_TK, weight_TK, ExpertWeights(up_SNH, down_SHF, gated))
    assert wanted.error(found_TH) <= 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [0, 1, 6, 123, 431])
def test_a_layer_equals_the_reference(dtype: torch.dtype, tokens: int) -> None:
    shapes = [(1, 1, 16, 16), (2, 3, 40, 20), (8, 8, 33, 65), (4, 32, 288, 288), (8, 512, 64, 48)]
    for (K, S, H, F), gated in itertools.product(shapes, (True, False)):
        inputs = layer_inputs(tokens, K, S, H, F, dtype, gated=gated)
        assert_layer(moe_layer(*inputs, gated=gated), inputs, gated=gated)


@pytest.mark.parametrize("rows", [16, 32, 64, 128])
@pytest.mark.parametrize("by_group", [True, False])
def test_a_layer_is_the_same_whatever_the_tiles(rows: int, by_group: bool) -> None:
    inputs = layer_inputs(300, 2, 5, 200, 168)
    for columns, depth, warps in ((16, 32, 4), (64, 64, 4), (128, 64, 8)):
        tile = Tile(columns, depth, warps, 3)
        assert_layer(moe_layer(*inputs, tiles=Tiles(rows, by_group, tile, tile)), inputs)


@pytest.mark.parametrize("tokens", [1, 23, 431, 2000])
@pytest.mark.parametrize(("H", "F"), [(256, 384), (200, 168)])
def test_weights_of_eight_bits_are_multiplied_by_their_factors(tokens: int, H: int, F: int) -> None:
    """Every height of tiles; widths that blocks divide, and others."""
    x_TH, ids_TK, weight_TK, *wide = layer_inputs(tokens, 4, 8, H, F)
    uneven = [weight * torch.linspace(0.1, 1, weight.shape[2], device="cuda").bfloat16() for weight in wide]
    (up_SNH, up_factor), (down_SHF, down_factor) = map(to_eight_bits, uneven)
    factors = (up_factor, down_factor)
    found_TH = moe_layer(x_TH, ids_TK, weight_TK, up_SNH, down_SHF, factors=factors)
    exact = (from_eight_bits(up_SNH, up_factor), from_eight_bits(down_SHF, down_factor))
    assert_layer(found_TH, (x_TH, ids_TK, weight_TK, *exact))
    if tokens < 100:
        graphed = GraphedLayer(tokens, 4, up_SNH, down_SHF, factors=factors)
        assert torch.equal(graphed(x_TH, ids_TK, weight_TK), found_TH)


def test_all_tokens_at_one_expert() -> None:
    x_TH, ids_TK, *rest = layer_inputs(431, 2, 16, 128, 96)
    inputs = (x_TH, torch.full_like(ids_TK, 7), *rest)
    assert_layer(moe_layer(*inputs), inputs)


@pytest.mark.parametrize(("assignments", "slots"), [(2049, 3), (100_000, 512), (1_000_003, 128)])
def test_many_assignments_are_sorted(assignments: int, slots: int) -> None:
    ids_A = torch.randint(-1, slots, (assignments,), device="cuda")
    key_A = torch.where(ids_A >= 0, ids_A, slots)
    found = sort_by_slot(ids_A, slots)
    served = int(found.end_S[-1])
    assert torch.equal(found.assignment_A[:served], torch.argsort(key_A, stable=True)[:served].int())
    assert torch.equal(found.end_S, torch.bincount(key_A, minlength=slots + 1)[:slots].cumsum(0).int())


def test_equal_inputs_give_equal_bits() -> None:
    inputs = layer_inputs(4096, 8, 64, 512, 256)
    first_TH = moe_layer(*inputs)
    assert all(torch.equal(moe_layer(*inputs), first_TH) for _ in range(20))


def test_rows_that_begin_beyond_2_to_the_31() -> None:
    inputs = layer_inputs(4097, 1, 2, 64, 64)
    apart_TH = torch.empty(4097, (1 << 19) + 64, dtype=torch.bfloat16, device="cuda")[:, :64]
    assert torch.equal(moe_layer(apart_TH.copy_(inputs[0]), *inputs[1:]), moe_layer(*inputs))


def test_weights_that_begin_beyond_2_to_the_31() -> None:
    up_SNH = torch.empty(1025, 2048, 1024, dtype=torch.bfloat16, device="cuda")
    down_SHF = torch.empty(1025, 1024, 1024, dtype=torch.bfloat16, device="cuda")
    x_TH, ids_TK, weight_TK, *last = layer_inputs(3, 1, 1, 1024, 1024)
    up_SNH[-1], down_SHF[-1] = last[0][0], last[1][0]
    found_TH = moe_layer(x_TH, torch.full_like(ids_TK, 1024), weight_TK, up_SNH, down_SHF)
    assert_layer(found_TH, (x_TH, torch.zeros_like(ids_TK), weight_TK, *last))


def test_a_graph_replays_the_layer_for_fewer_tokens_too() -> None:
    inputs = layer_inputs(64, 8, 128, 256, 96)
    layer = GraphedLayer(64, 8, *(weights.clone() for weights in inputs[3:]))
    # Would lie where the clones lay, if the graph did not keep them.
    others = [torch.full_like(weights, float("nan")) for weights in inputs[3:]]
    for tokens in (64, 1, 23, 64):
        given = [tensor[:tokens] for tensor in inputs[:3]]
        assert_layer(layer(*given), (*given, *inputs[3:]))
    with pytest.raises(ValueError, match=r"at most 64 tokens \(got 65\)"):
        layer(*(torch.cat([tensor, tensor[:1]]) for tensor in inputs[:3]))
    with pytest.raises(ValueError, match=r"of shape \(64, 8\) here \(got \(64, 1\)\)"):
        layer(inputs[0], inputs[1][:, :1], inputs[2])
    assert all(other.isnan().all() for other in others)
