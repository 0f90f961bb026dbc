"""The kernels against loops, at awkward sizes, in Triton's interpreter (see ``test_kernels_interpreted.py``).

The interpreter keeps bf16 as integers and multiplies those, so bf16 is for a GPU to check.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from executor.experts.backends import BACKENDS
from executor.experts.weights import ExpertWeights
from executor.kernels import order
from executor.kernels.combine import combine
from executor.kernels.eight_bits import from_eight_bits, to_eight_bits
from executor.kernels.grouped_gemm import Activation, grouped_gemm
from executor.kernels.layer import moe_layer
from executor.kernels.order import sort_by_slot
from executor.kernels.schedule import schedule
from executor.kernels.tiles import Tile, Tiles
from executor.plan.plan import MoeShape
from tests.examples import examples
from tests.executor.exact_layers import Exact, exact_layer, inner_size, layer_rounding

FEW = settings(max_examples=examples(12))
TINY = Tile(columns=16, depth=16, warps=4, stages=2)
GROUPS = st.lists(st.sampled_from([0, 0, 1, 6, 16, 17, 43]), min_size=1, max_size=6)


def wanted_order(ids_A: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    key_A = torch.where((ids_A >= 0) & (ids_A < slots), ids_A, slots)
    end_S = torch.bincount(key_A, minlength=slots + 1)[:slots].cumsum(0)
    return torch.argsort(key_A, stable=True)[: int(end_S[-1])], end_S


def assert_sorted(ids_A: Tensor, slots: int) -> None:
    found, (assignment_A, end_S) = sort_by_slot(ids_A, slots), wanted_order(ids_A, slots)
    assert torch.equal(found.end_S, end_S.int())
    assert torch.equal(found.assignment_A[: len(assignment_A)], assignment_A.int())


@given(ids=st.lists(st.integers(-2, 7), min_size=1, max_size=150), slots=st.integers(1, 6))
@FEW
def test_few_assignments_are_sorted_in_one_launch(ids: list[int], slots: int) -> None:
    assert_sorted(torch.tensor(ids), slots)


@pytest.mark.parametrize(
    ("assignments", "slots", "dtype"),
    [
        (1, 1, torch.int64),
        (256, 3, torch.int32),
        (700, 40, torch.int64),
        (300, 9, torch.uint8),
        (513, 512, torch.int16),
    ],
)
def test_many_assignments_are_sorted_chunk_by_chunk(
    monkeypatch: pytest.MonkeyPatch, assignments: int, slots: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(order, "_SMALL", 0)
    monkeypatch.setattr(order, "_CHUNK", 256)
    monkeypatch.setattr(order, "_CELLS", 64)
    assert_sorted(torch.randint(-2, slots + 2, (assignments,)).to(dtype), slots)


@given(counts=GROUPS, rows=st.sampled_from([16, 32]), behind=st.integers(0, 3))
@FEW
def test_tiles_cover_every_group_once(counts: list[int], rows: int, behind: int) -> None:
    ends, A = torch.tensor(counts).cumsum(0).int(), max(1, sum(counts) + behind)
    found = schedule(ends, A, rows, by_group=False)
    assert found.group_M is not None
    assert found.row_M is not None
    assert found.end_M is not None
    tiles = [
        (group, first, min(first + rows, end))
        for group, (count, end) in enumerate(zip(counts, ends.tolist(), strict=True))
        for first in range(end - count, end, rows)
    ]
    of_each = (found.group_M.tolist(), found.row_M.tolist(), found.end_M.tolist())
    all_tiles = list(zip(*of_each, strict=True))
    assert all_tiles[: len(tiles)] == tiles
    assert all(first >= end for _, first, end in all_tiles[len(tiles) :])


@pytest.mark.parametrize("by_group", [True, False])
@pytest.mark.parametrize("activation", ["none", "silu", "swiglu"])
@given(
    counts=GROUPS,
    columns=st.sampled_from([1, 16, 23]),
    depth=st.sampled_from([1, 16, 40]),
    seed=st.integers(0, 99),
)
@settings(max_examples=examples(5))
def test_products_gather_scale_and_scatter(
    by_group: bool, activation: Activation, counts: list[int], columns: int, depth: int, seed: int
) -> None:
    """Both ways at once, and rows in place; what belongs to no group stays out of it."""
    torch.manual_seed(seed)
    A, Z, share = sum(counts) + 2, len(counts), 3
    matrices = 2 if activation == "swiglu" else 1
    weight_ZMK = torch.randn(Z, matrices * columns, depth)
    x_XK, order_A, scale_A = torch.randn(A, depth), torch.randperm(A), torch.rand(A)
    groups = schedule(torch.tensor(counts).cumsum(0).int(), A, 16, by_group=by_group)
    there = grouped_gemm(x_XK, weight_ZMK, groups, TINY, activation=activation)
    moved = grouped_gemm(
        x_XK,
        weight_ZMK,
        groups,
        TINY,
        activation=activation,
        order_A=order_A.int(),
        gather=share,
        scatter=True,
        scale_Y=scale_A,
    )

    def product(x_K: Tensor, group: int, scale: float = 1.0) -> Exact:
        x_K, weight_MK = x_K.double(), weight_ZMK[group].double()
        size_N = inner_size(x_K[None], weight_MK, activation == "swiglu")[0]
        sums_M = weight_MK @ x_K
        if activation != "none":
            gate_N = torch.nn.functional.silu(sums_M[:columns])
            sums_M = gate_N * sums_M[columns:] if activation == "swiglu" else gate_N
        return Exact(scale * sums_M, scale * size_N * layer_rounding(torch.float32, depth, 1))

    for a, group in enumerate(group for group, count in enumerate(counts) for _ in range(count)):
        goes = int(order_A[a])
        assert product(x_XK[a], group).error(there[a]) <= 1
        assert product(x_XK[goes // share], group, float(scale_A[goes])).error(moved[goes]) <= 1


@pytest.mark.parametrize(("by_group", "gated"), [(True, True), (False, False)])
def test_a_layer_multiplies_weights_of_eight_bits_by_their_factors(by_group: bool, gated: bool) -> None:
    """Widths of more than one block, of which the last is not whole: also where the rows of up begin."""
    x_TH, ids_TK, weight_TK, *wide = layer_inputs(9, 2, 2, 150, 140, gated=gated)
    # They grow along both axes: a neighbouring block's factor would be off by much.
    uneven = [
        weight * torch.linspace(0.1, 1, weight.shape[1])[:, None] * torch.linspace(0.1, 1, weight.shape[2])
        for weight in wide
    ]
    (up_SNH, up_factor), (down_SHF, down_factor) = map(to_eight_bits, uneven)
    tiles = Tiles(16, by_group, Tile(32, 64, 4, 2), Tile(16, 128, 4, 2))
    found_TH = moe_layer(
        x_TH,
        ids_TK,
        weight_TK,
        up_SNH,
        down_SHF,
        gated=gated,
        factors=(up_factor, down_factor),
        tiles=tiles,
    )
    exact = (from_eight_bits(up_SNH, up_factor), from_eight_bits(down_SHF, down_factor))
    assert exact_layer(x_TH, ids_TK, weight_TK, ExpertWeights(*exact, gated)).error(found_TH) <= 1


def test_rows_that_nobody_serves_are_not_read() -> None:
    ids_TK = torch.tensor([[0, 5, 1], [-1, 7, 4]])
    rows_AH = torch.full((6, 1030), float("nan"))
    rows_AH[0], rows_AH[2] = 1.5, 2.25
    assert combine(rows_AH, ids_TK, 4).tolist() == [[3.75] * 1030, [0.0] * 1030]


def layer_inputs(T: int, K: int, S: int, H: int, F: int, *, gated: bool = True) -> tuple[Tensor, ...]:
    """x, slots (of which -1 serves nobody; a token may choose one twice), gate weights, up, down."""
    torch.manual_seed(T + S)
    up_SNH = torch.randn(S, F * (1 + gated), H) * H**-0.5
    return (
        torch.randn(T, H),
        torch.randint(-1, S, (T, K)),
        torch.rand(T, K),
        up_SNH,
        torch.randn(S, H, F) * F**-0.5,
    )


def assert_layer(inputs: tuple[Tensor, ...], *, gated: bool = True, tiles: Tiles | None = None) -> None:
    x_TH, ids_TK, weight_TK, up_SNH, down_SHF = inputs
    found_TH = moe_layer(*inputs, gated=gated, tiles=tiles)
    wanted = exact_layer(x_TH, ids_TK, weight_TK, ExpertWeights(up_SNH, down_SHF, gated))
    assert (found_TH.dtype, found_TH.shape) == (x_TH.dtype, x_TH.shape)
    assert wanted.error(found_TH) <= 1


@pytest.mark.parametrize(
    ("T", "K", "S", "H", "F"),
    [(0, 2, 3, 8, 8), (1, 8, 8, 17, 9), (6, 8, 512, 16, 10), (123, 2, 3, 40, 20), (431, 1, 5, 33, 65)],
)
def test_a_layer_equals_the_reference(T: int, K: int, S: int, H: int, F: int) -> None:
    assert_layer(layer_inputs(T, K, S, H, F))


def test_a_layer_whose_tokens_all_choose_one_expert() -> None:
    x_TH, ids_TK, *rest = layer_inputs(50, 2, 6, 16, 16)
    assert_layer((x_TH, torch.full_like(ids_TK, 4), *rest))


def test_a_layer_that_serves_nobody() -> None:
    x_TH, ids_TK, *rest = layer_inputs(3, 2, 2, 16, 16)
    assert not moe_layer(x_TH, torch.full_like(ids_TK, 2), *rest).any()


def test_a_layer_without_gates_of_half_precision_and_with_rows_apart() -> None:
    halves = [tensor.half() for tensor in layer_inputs(20, 3, 4, 30, 14, gated=False)]
    x_TH = torch.cat([halves[0], halves[0]], dim=1)[:, :30]
    assert not x_TH.is_contiguous()
    assert_layer((x_TH, halves[1].int(), *halves[2:]), gated=False)


@pytest.mark.parametrize("by_group", [True, False])
def test_a_layer_is_the_same_whatever_the_tiles(by_group: bool) -> None:
    tiles = Tiles(32, by_group, Tile(32, 16, 4, 2), Tile(16, 32, 4, 2))
    assert_layer(layer_inputs(70, 2, 3, 48, 32), tiles=tiles)


def test_replicas_and_empty_slots_change_nothing() -> None:
    """Three experts in five slots: whichever copy a token goes to, its output is that of the expert."""
    x_TH, ids_TK, weight_TK, up_EMH, down_EHF = layer_inputs(30, 2, 3, 16, 16)
    expert_S, slots_ER = torch.tensor([2, 0, 1, 2, 0]), torch.tensor([[1, 4], [2, 2], [3, 0]])
    slot_TK = slots_ER[ids_TK, torch.randint(0, 2, ids_TK.shape)].where(ids_TK >= 0, -1)
    placed = moe_layer(x_TH, slot_TK, weight_TK, up_EMH[expert_S], down_EHF[expert_S])
    wanted = exact_layer(x_TH, ids_TK, weight_TK, ExpertWeights(up_EMH, down_EHF, gated=True))
    assert wanted.error(placed) <= 1


def test_equal_inputs_give_equal_bits() -> None:
    inputs = layer_inputs(40, 4, 6, 24, 16)
    assert torch.equal(moe_layer(*inputs), moe_layer(*inputs))


@pytest.mark.parametrize("gated", [True, False])
def test_the_back_end_equals_the_loop_over_experts(gated: bool) -> None:
    shape = MoeShape("m", 24, 10, gated, 3, 1, 0, (0,))
    weights = ExpertWeights.random(shape, 0, range(3), seed=1)
    counts_Z, rows_AH = torch.tensor([65, 0, 2]), torch.randn(67, 24)
    slot_A = torch.arange(3).repeat_interleave(counts_Z)
    wanted = exact_layer(rows_AH, slot_A[:, None], torch.ones(67, 1), weights)
    for backend in ("loop", "triton"):
        assert wanted.error(BACKENDS[backend](weights)(rows_AH, counts_Z)) <= 1
    assert len(BACKENDS["triton"](weights)(rows_AH[:0], counts_Z * 0)) == 0
