"""The layers that are compared: ours, and what others offer for the same weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn.functional import grouped_mm, silu

from benchmarks.gpu.cases import Shape
from executor.kernels.eight_bits import from_eight_bits, to_eight_bits
from executor.kernels.layer import moe_layer

Layer = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From tokens, experts and gate weights to tokens."""


@dataclass(frozen=True)
class Weights:
    """Of all experts.

    Attributes:
        up_ENH: the gate first.
        down_EHF: the way back.
        factors: of each block of either, where they have eight bits.
    """

    shape: Shape
    up_ENH: Tensor
    down_EHF: Tensor
    factors: tuple[Tensor, Tensor] | None = None

    @classmethod
    def random(
        cls, shape: Shape, dtype: torch.dtype = torch.bfloat16, device: torch.device | str = "cuda"
    ) -> Weights:
        """Normal, of variance 1 / inputs."""
        E, H, F = shape.experts, shape.hidden, shape.width
        up_ENH = torch.empty(E, 2 * F, H, dtype=dtype, device=device).normal_(std=H**-0.5)
        return cls(shape, up_ENH, torch.empty(E, H, F, dtype=dtype, device=device).normal_(std=F**-0.5))

    def eight_bits(self) -> Weights:
        """The same, rounded."""
        up_ENH, up_factor = to_eight_bits(self.up_ENH)
        down_EHF, down_factor = to_eight_bits(self.down_EHF)
        return Weights(self.shape, up_ENH, down_EHF, (up_factor, down_factor))

    def expert(self, expert: int) -> tuple[Tensor, Tensor]:
        """float64: one expert's up and down as they are meant to be multiplied with."""
        up_NH, down_HF = self.up_ENH[expert], self.down_EHF[expert]
        if self.factors is None:
            return up_NH.double(), down_HF.double()
        up_BC, down_BC = (factor_EBC[expert] for factor_EBC in self.factors)
        return from_eight_bits(up_NH, up_BC, torch.float64), from_eight_bits(down_HF, down_BC, torch.float64)


def ours(weights: Weights) -> Layer:
    """One call."""
    return lambda x_TH, ids_TK, weight_TK: moe_layer(
        x_TH, ids_TK, weight_TK, weights.up_ENH, weights.down_EHF, factors=weights.factors
    )


def torch_grouped_mm(weights: Weights) -> Layer:
    """``torch.nn.functional.grouped_mm`` twice, with the torch operations that it needs around it."""
    up_EHN, down_EFH = weights.up_ENH.transpose(1, 2), weights.down_EHF.transpose(1, 2)
    expert_E = torch.arange(weights.shape.experts, device=up_EHN.device)
    # The gate weight goes to whichever rows are narrower: fewer bytes, and the sum is the same.
    early = weights.shape.width < weights.shape.hidden

    def layer(x_TH: Tensor, ids_TK: Tensor, weight_TK: Tensor) -> Tensor:
        T, K = ids_TK.shape
        key_A, order_A = ids_TK.flatten().sort(stable=True)
        ends_E = torch.searchsorted(key_A, expert_E, right=True, out_int32=True)
        weight_A1 = weight_TK.to(x_TH.dtype).flatten()[order_A, None]
        gate_AF, up_AF = grouped_mm(x_TH[order_A // K], up_EHN, offs=ends_E).chunk(2, dim=1)
        inner_AF = silu(gate_AF).mul_(up_AF)
        if early:
            inner_AF.mul_(weight_A1)
        out_AH = grouped_mm(inner_AF, down_EFH, offs=ends_E)
        if not early:
            out_AH.mul_(weight_A1)
        back_AH = torch.empty_like(out_AH).index_copy_(0, order_A, out_AH)
        return back_AH.view(T, K, -1).sum(1)

    return layer


def transformers_experts(weights: Weights) -> Layer:
    """The experts of a model class of transformers 5, with its ``grouped_mm`` implementation.

    Raises:
        ImportError: it is not installed, or has no such class.
    """
    from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    shape = weights.shape
    config = Qwen3MoeConfig(
        num_experts=shape.experts, hidden_size=shape.hidden, moe_intermediate_size=shape.width
    )
    config._experts_implementation = "grouped_mm"
    with torch.device("meta"):
        experts = Qwen3MoeExperts(config)  # type: ignore[no-untyped-call]
    experts.gate_up_proj = torch.nn.Parameter(weights.up_ENH, requires_grad=False)
    experts.down_proj = torch.nn.Parameter(weights.down_EHF, requires_grad=False)
    return lambda x_TH, ids_TK, weight_TK: experts(x_TH, ids_TK, weight_TK.to(x_TH.dtype))


def liger_fused_moe(weights: Weights) -> Layer:
    """Liger-Kernel's fused experts.

    Raises:
        ImportError: it is not installed, or is too old to have them.
    """
    from liger_kernel.ops import fused_moe  # type: ignore[import-not-found]

    # It tunes itself to the first batch of a shape and keeps to that: here to each batch, when it is checked.
    for kernel in (fused_moe._fused_up_proj_swiglu_kernel, fused_moe._fused_down_proj_kernel):
        kernel.cache.clear()

    def layer(x_TH: Tensor, ids_TK: Tensor, weight_TK: Tensor) -> Tensor:
        out_TH: Tensor = fused_moe.LigerFusedMoEFunction.apply(
            x_TH, weights.up_ENH, weights.down_EHF, ids_TK.int(), weight_TK.to(x_TH.dtype)
        )
        return out_TH

    return layer


@dataclass(frozen=True)
class Rival:
    """How to make a layer, and whether a CUDA graph can hold it: not where the host waits for a number."""

    make: Callable[[Weights], Layer]
    graph: bool


LAYERS: Mapping[str, Rival] = MappingProxyType(
    {
        "ours": Rival(ours, graph=True),
        "torch": Rival(torch_grouped_mm, graph=True),
        "transformers": Rival(transformers_experts, graph=True),
        "liger": Rival(liger_fused_moe, graph=False),
    }
)


RIVALS = tuple(name for name in LAYERS if name != "ours")


def reference_rows(x_XH: Tensor, ids_XK: Tensor, weight_XK: Tensor, weights: Weights) -> Tensor:
    """float64 [X, H]: token by token, choice by choice."""
    y_XH = torch.zeros_like(x_XH, dtype=torch.float64)
    for x, (ids, chosen) in enumerate(zip(ids_XK.tolist(), weight_XK.tolist(), strict=True)):
        for expert, weight in zip(ids, chosen, strict=True):
            up_NH, down_HF = weights.expert(expert)
            gate_F, up_F = (up_NH @ x_XH[x].double()).chunk(2)
            y_XH[x] += weight * (down_HF @ (silu(gate_F) * up_F))
    return y_XH
