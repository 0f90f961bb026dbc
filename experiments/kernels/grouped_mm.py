"""A bf16 MoE layer around ``torch._grouped_mm``: its GEMMs, and the copies that surround them.

Axes: E experts, X one entry.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.hardware.gemm import Matrix, Rates, Rows, gemm_seconds
from moesim.spec.profile import Profile, Roof

SOURCE = "VeOmni pull request 460: forward of 32768 tokens, bf16, H100, `torch._grouped_mm`"

_BF16 = 2
_ALIGNMENT = 8  # rows of an expert are padded to 16 bytes of bf16 (VeOmni, torch_moe_utils/utils.py)

# Reads and writes of whole arrays in VeOmni's torch_fused_moe.py and torch_moe_utils/utils.py.
# A row of the model's width: gather 2, append the padding row 2, permute into padded groups 2, permute back
# 2, clear the output 1, scatter into it 2, read it for the sum over experts 1.
_HIDDEN_PASSES = 12
# A row of the experts' width: SiLU 2, its product with the up projection 3, with the gate weight 2.
_WIDTH_PASSES = 7


@dataclass(frozen=True)
class Layer:
    """A layer of gated experts, with the TFLOPS of a published forward pass.

    ``copies`` tells whether everything around the GEMMs is a PyTorch operation of its own; otherwise all is
    fused into them but the sum over a token's experts.
    """

    name: str
    tokens: int
    hidden: int
    width: int
    experts: int
    top_k: int
    tflops: float
    copies: bool = True

    @property
    def flop(self) -> float:
        """Three matrices for each chosen expert of each token."""
        return 6.0 * self.tokens * self.top_k * self.hidden * self.width


E128 = Layer("E 128, top 8, 2048 × 768", 32768, 2048, 768, 128, 8, 242.12)
E512 = Layer("E 512, top 10, 2048 × 512", 32768, 2048, 512, 512, 10, 180.67)

# What a kernel with fused copies reaches, read off a bar chart to ± 10 TFLOPS (SonicMoE, arXiv 2512.14080).
SONIC = Layer("SonicMoE, E 64, top 4, 4096 × 1024", 32768, 4096, 1024, 64, 4, 553, copies=False)


def tflops(layer: Layer, roof: Roof, profile: Profile, rates: Rates) -> float:
    """What the benchmark would print, for evenly random routing."""
    return layer.flop / seconds(layer, roof, profile, rates) / 1e12


def seconds(layer: Layer, roof: Roof, profile: Profile, rates: Rates) -> float:
    """GEMMs one after the other, and the copies at the memory's bandwidth."""
    rows = _rows(layer, profile)
    up = Matrix(layer.width, layer.hidden, _BF16, _BF16, _BF16)
    # Fused: gate and up are one matrix, and of their outputs only the product is written.
    both = Matrix(2 * layer.width, layer.hidden, _BF16, _BF16, _BF16 / 2)
    down = Matrix(layer.hidden, layer.width, _BF16, _BF16, _BF16)
    total = sum(
        float(gemm_seconds(rows, matrix, roof, profile, rates)[0])
        for matrix in ((up, up, down) if layer.copies else (both, down))
    )
    return total + copied_bytes(layer) / (rates.bandwidth * roof.memory)


def copied_bytes(layer: Layer) -> float:
    """Bytes that the operations around the GEMMs read and write; sorting the ids is left out."""
    hidden, width = (_HIDDEN_PASSES, _WIDTH_PASSES) if layer.copies else (1, 0)
    values = layer.tokens * layer.top_k * (hidden * layer.hidden + width * layer.width)
    return _BF16 * float(values + layer.tokens * layer.hidden)  # the sum is written once for each token


def _rows(layer: Layer, profile: Profile) -> Rows:
    rng = np.random.default_rng(0)
    load_E = rng.multinomial(layer.tokens * layer.top_k, np.full(layer.experts, 1 / layer.experts))
    padded_E = -(-load_E // _ALIGNMENT) * _ALIGNMENT
    tiles_MX = np.array([[np.ceil(padded_E / tile.rows).sum()] for tile in profile.tiles])
    return Rows(tiles_MX, np.array([float((load_E > 0).sum())]), np.array([float(padded_E.sum())]))
