"""The back ends against a loop over rows, and weights that replicas share."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from executor.experts.backends import BACKENDS
from executor.experts.loop import LoopExperts, SharedExpert
from executor.experts.weights import ExpertWeights, UnequalWeights, Weights
from executor.plan.errors import PlanError
from executor.plan.plan import Kind, MoeShape
from tests.examples import examples
from tests.executor.exact_layers import Exact, exact_layer

pytestmark = pytest.mark.executor

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def shape(hidden: int = 16, width: int = 8, *, gated: bool = True) -> MoeShape:
    return MoeShape("m", hidden, width, gated, 8, 2, width, (0, 1))


def exact_rows(weights: Weights, rows_AH: Tensor, counts: list[int]) -> Exact:
    """Each row as a token that has its slot alone, of weight 1."""
    slot_A = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return exact_layer(rows_AH, slot_A[:, None], torch.ones(len(rows_AH), 1), weights)


@given(
    counts=st.lists(st.sampled_from([0, 1, 2, 6, 43]), min_size=5, max_size=5),
    gated=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=examples(15))
def test_the_loop_multiplies_each_expert_at_its_own_width(counts: list[int], gated: bool, seed: int) -> None:
    """Slots of experts 8, 3 and 20 wide, and an empty one."""
    kinds = (Kind("a", 8), Kind("b", 3), Kind("c", 20))
    of_kinds = replace(
        shape(width=20, gated=gated), kinds=kinds, kind_LE=((0,) * 8, (0, 1, 2, 0, 1, 2, 0, 1))
    )
    counts[3] = 0
    weights = UnequalWeights.random(of_kinds, 1, [1, 2, 3, -1, 1], seed=seed)
    assert [up_NH.shape[0] // (2 if gated else 1) for up_NH, _ in weights.slots] == [3, 20, 8, 0, 3]
    torch.testing.assert_close(weights.slot(0), weights.slot(4), rtol=0, atol=0)
    alone = ExpertWeights.random(shape(width=20, gated=gated), 1, [2], seed=seed)
    torch.testing.assert_close(weights.slot(1), alone.slot(0), rtol=0, atol=0)
    rows_AH = torch.randn(sum(counts), 16, generator=torch.Generator().manual_seed(seed))
    out_AH = LoopExperts(weights)(rows_AH, torch.tensor(counts))
    assert exact_rows(weights, rows_AH, counts).error(out_AH) <= 1


@pytest.mark.parametrize("backend", ["loop", "grouped_mm"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(
    counts=st.lists(st.sampled_from([0, 1, 2, 6, 43]), min_size=1, max_size=5),
    gated=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=examples(15))
def test_a_back_end_equals_the_loop_over_rows(
    backend: str, dtype: torch.dtype, counts: list[int], gated: bool, seed: int
) -> None:
    experts = range(len(counts))
    weights = ExpertWeights.random(shape(gated=gated), 0, experts, seed=seed, dtype=dtype)
    rows_AH = torch.randn(sum(counts), 16, generator=torch.Generator().manual_seed(seed)).to(dtype)
    before_AH = rows_AH.clone()
    out_AH = BACKENDS[backend](weights)(rows_AH, torch.tensor(counts))
    assert (out_AH.dtype, out_AH.shape) == (dtype, rows_AH.shape)
    assert exact_rows(weights, rows_AH, counts).error(out_AH) <= 1
    assert torch.equal(rows_AH, before_AH)


@pytest.mark.parametrize("gated", [True, False])
def test_the_shared_expert_takes_every_row(gated: bool) -> None:
    weights = ExpertWeights.random_shared(shape(gated=gated), 0, seed=1)
    x_TH = torch.randn(5, 16)
    out_TH = SharedExpert(weights)(x_TH)
    assert exact_rows(weights, x_TH, [5]).error(out_TH) <= 1


def test_replicas_hold_the_same_weights_wherever_they_are() -> None:
    here = ExpertWeights.random(shape(), 1, [3, -1, 5, 3], seed=7)
    there = ExpertWeights.random(shape(), 1, [5], seed=7)
    assert torch.equal(here.up_SNH[0], here.up_SNH[3])
    assert torch.equal(here.up_SNH[2], there.up_SNH[0])
    assert torch.equal(here.down_SHF[2], there.down_SHF[0])
    assert not here.up_SNH[1].any()
    assert not here.down_SHF[1].any()


def test_weights_differ_by_expert_layer_seed_and_matrix() -> None:
    square = shape(8, 8, gated=False)
    matrices = [
        matrix
        for seed, layer in ((0, 0), (0, 1), (1, 0))
        for weights in (
            ExpertWeights.random(square, layer, [0, 1], seed=seed),
            ExpertWeights.random_shared(square, layer, seed=seed),
        )
        for matrix in (*weights.up_SNH, *weights.down_SHF)
    ]
    assert len({tuple(matrix.flatten().tolist()) for matrix in matrices}) == len(matrices) == 18


def test_weights_have_the_variance_of_one_over_their_inputs() -> None:
    weights = ExpertWeights.random(shape(256, 64), 0, range(8), seed=0)
    assert weights.up_SNH.std().item() == pytest.approx(256**-0.5, rel=0.02)
    assert weights.down_SHF.std().item() == pytest.approx(64**-0.5, rel=0.02)


def test_grouped_mm_refuses_rows_that_torch_would() -> None:
    with pytest.raises(PlanError, match=r"model\.width: .*multiple of 16 bytes.* \(got 12\)"):
        BACKENDS["grouped_mm"](ExpertWeights.random(shape(16, 12), 0, [0], seed=0, dtype=torch.bfloat16))


def test_triton_without_a_gpu_is_refused() -> None:
    pytest.importorskip("triton")
    with pytest.raises(PlanError, match=r"backend: .*needs a GPU"):
        BACKENDS["triton"](ExpertWeights.random(shape(), 0, [0], seed=0))


@pytest.mark.gpu
def test_back_ends_on_a_gpu() -> None:
    """bf16 too, which the interpreter cannot multiply."""
    counts = [70, 0, 1, 129]
    for dtype in DTYPES:
        made = {"seed": 1, "dtype": dtype, "device": "cuda"}
        weights = ExpertWeights.random(shape(64, 48), 0, range(4), **made)  # type: ignore[arg-type]
        rows_AH = torch.randn(sum(counts), 64, device="cuda").to(dtype)
        wanted = exact_rows(weights, rows_AH, counts)
        for backend in BACKENDS.values():
            out_AH = backend(weights)(rows_AH, torch.tensor(counts, device="cuda"))
            assert wanted.error(out_AH) <= 1
