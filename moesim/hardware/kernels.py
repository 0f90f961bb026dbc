"""Seconds of kernels by a roofline (Williams et al. 2009, doi 10.1145/1498765.1498785) over whole tiles.

Axes: G GPUs, L MoE layers, S slots. All results are busy seconds without launch costs, which are
``launch_s(phase)`` for each phase. Every time grows with each input, element by element: a minimum over
tile heights of growing functions grows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.hardware.profile import Phase, Profile, Roof
from moesim.spec.cluster import Gpu
from moesim.spec.model import DTYPE_BYTES, Model
from traces.jit import jit

FloatArray = NDArray[np.float64]

# Dtypes a tensor core multiplies directly; narrower weights are widened to the activations' dtype first.
_MULTIPLIED = ("fp32", "bf16", "fp16", "fp8")

# Queries of a prefill tile, which stream a key once together (FlashAttention-2, arXiv 2307.08691: 128 rows).
_QUERY_TILE = 128


@dataclass(frozen=True)
class Kernels:
    """The kernels of one model on one GPU of a group with tensor parallelism ``tp`` in attention."""

    model: Model
    gpu: Gpu
    profile: Profile
    tp: int = 1

    def launch_s(self, phase: Phase) -> float:
        """Seconds spent on launching the kernels of a phase."""
        return self.profile.launch * self.profile.kernels.get(phase, 0)

    def attention(
        self, tokens_G: FloatArray, decode_keys_G: FloatArray, prefill_keys_G: FloatArray
    ) -> FloatArray:
        """Projections of all tokens; scores and values of decoding and of prefill, each its own kernel.

        The tp GPUs of an attention group each compute all its tokens with 1/tp of the heads. A latent
        (MLA) cache is shared by all heads, so that each GPU streams it whole.

        Args:
            tokens_G: tokens at home on each GPU.
            decode_keys_G: keys that their decoding tokens attend to, summed; each is streamed once.
            prefill_keys_G: the same for tokens of chunks, of which a tile shares what it streams.
        """
        model, attention, tp = self.model, self.model.attention, self.tp
        stored = model.kv_bytes_per_token * attention.kv_share(tp)
        seconds_G = self._dense(
            self._grouped(tokens_G), model.attention_params / tp, 2 * model.hidden, model.weight_dtype
        )
        for keys_G, flops_per_key, shared_by in (
            (self._grouped(decode_keys_G), attention.score_flops_per_key, 1),
            (self._grouped(prefill_keys_G), attention.expanded_score_flops_per_key, _QUERY_TILE),
        ):
            seconds_G = seconds_G + self._roofline(
                keys_G * flops_per_key / tp,
                keys_G * stored / shared_by,
                self.profile.attention,
                model.activation_dtype,
            )
        return seconds_G

    def _grouped(self, values_G: FloatArray) -> FloatArray:
        """The sum over each attention group, on every GPU of it."""
        return np.repeat(values_G.reshape(-1, self.tp).sum(axis=1), self.tp)

    def router(self, tokens_G: FloatArray) -> FloatArray:
        """The gate's GEMM; its top-k and sort are launches."""
        model = self.model
        width = model.hidden + model.experts.count
        return self._dense(tokens_G, model.router_params, width, model.activation_dtype)

    def shared_expert(self, tokens_G: FloatArray) -> FloatArray:
        """The experts that every token visits on its home GPU."""
        width = self._ffn_width(self.model.experts.shared_width)
        return self._dense(tokens_G, self.model.shared_expert_params, width, self.model.weight_dtype)

    def dense(self, tokens_G: FloatArray) -> FloatArray:
        """The feed-forward network of a layer without experts, whole on every GPU."""
        width = self._ffn_width(self.model.dense_width or 0)
        return self._dense(tokens_G, self.model.dense_params, width, self.model.weight_dtype)

    def head(self, tokens_G: FloatArray) -> FloatArray:
        """The language-model head, one row of logits per token."""
        model = self.model
        return self._dense(
            tokens_G, model.embedding_params, model.hidden + model.vocab, model.activation_dtype
        )

    def experts(self, tokens_LS: NDArray[np.int32], slot_gpu_S: NDArray[np.int32], gpus: int) -> FloatArray:
        """[L, G]: a grouped GEMM over the GPU's slots, which streams the weights of those with tokens."""
        model = self.model
        rows_MLG, active_LG, tokens_LG = group_rows(tokens_LS, slot_gpu_S, gpus, self._tile_rows())
        moved = DTYPE_BYTES[model.activation_dtype] * self._ffn_width(model.experts.width)
        return self._tiled(
            rows_MLG,
            model.expert_params,
            active_LG * model.expert_bytes + tokens_LG * moved,
            self.profile.grouped_gemm,
            model.expert_dtype,
        )

    def _dense(self, tokens_G: FloatArray, params: float, width: float, dtype: str) -> FloatArray:
        """GEMMs with ``params`` weights over all tokens, moving ``width`` activations per token."""
        rows_M1 = self._tile_rows()[:, None].astype(np.float64)
        rows_MG = np.ceil(tokens_G / rows_M1) * rows_M1
        moved_G = (tokens_G > 0) * params * DTYPE_BYTES[dtype]
        moved_G = moved_G + tokens_G * width * DTYPE_BYTES[self.model.activation_dtype]
        return self._tiled(rows_MG, params, moved_G, self.profile.gemm, dtype)

    def _tiled(
        self, rows_MX: FloatArray, params: float, bytes_X: FloatArray, roof: Roof, dtype: str
    ) -> FloatArray:
        """Least time over the tile heights M; padded rows are multiplied like real ones."""
        seconds_MX = [
            self._roofline(2.0 * params * rows_X / tile.efficiency, bytes_X, roof, dtype)
            for rows_X, tile in zip(rows_MX, self.profile.tiles, strict=True)
        ]
        least_X: FloatArray = np.minimum.reduce(seconds_MX)
        return least_X

    def _roofline(self, flop_X: FloatArray, bytes_X: FloatArray, roof: Roof, dtype: str) -> FloatArray:
        compute_X = flop_X / (self._peak(dtype) * roof.compute)
        memory_X = bytes_X / (self.gpu.memory_bandwidth * roof.memory)
        hidden_X = np.minimum(compute_X, memory_X)
        return np.maximum(compute_X, memory_X) + (1.0 - roof.overlap) * hidden_X

    def _peak(self, dtype: str) -> float:
        """FLOP/s of GEMMs with weights of this dtype."""
        direct = dtype in _MULTIPLIED and dtype in self.gpu.flops
        return self.gpu.peak_flops(dtype if direct else self.model.activation_dtype)

    def _tile_rows(self) -> NDArray[np.int64]:
        return np.array([tile.rows for tile in self.profile.tiles], np.int64)

    def _ffn_width(self, width: int) -> float:
        """Activations read and written per token: input, up (and gate), their product, output."""
        return 2 * self.model.hidden + (6 if self.model.experts.gated else 4) * width


def group_rows(
    tokens_LS: NDArray[np.int32], slot_gpu_S: NDArray[np.int32], gpus: int, tiles_M: NDArray[np.int64]
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Rows of a grouped GEMM per GPU: padded to each tile height [M, L, G], slots with tokens, tokens [L, G].

    A tile never spans slots. Example: slots with 1, 20 and 0 tokens on one GPU, tiles of 16 rows:
    16 + 32 padded rows, 2 active slots, 21 tokens.

    >>> rows, active, tokens = group_rows(np.array([[1, 20, 0]], np.int32), np.zeros(3, np.int32), 1,
    ...                                   np.array([16]))
    >>> rows.ravel().tolist(), active.ravel().tolist(), tokens.ravel().tolist()
    ([48.0], [2.0], [21.0])
    """
    shape = (len(tokens_LS), gpus)
    rows_MLG = np.zeros((len(tiles_M), *shape))
    active_LG, tokens_LG = np.zeros(shape), np.zeros(shape)
    _group_rows(tokens_LS, slot_gpu_S, tiles_M, rows_MLG, active_LG, tokens_LG)
    return rows_MLG, active_LG, tokens_LG


@jit
def _group_rows(
    tokens_LS: Any, slot_gpu_S: Any, tiles_M: Any, rows_MLG: Any, active_LG: Any, tokens_LG: Any
) -> None:
    for layer in range(len(tokens_LS)):
        for slot in range(len(slot_gpu_S)):
            tokens = tokens_LS[layer, slot]
            if tokens == 0:
                continue
            gpu = slot_gpu_S[slot]
            active_LG[layer, gpu] += 1.0
            tokens_LG[layer, gpu] += tokens
            for m in range(len(tiles_M)):
                tile = tiles_M[m]
                rows_MLG[m, layer, gpu] += (tokens + tile - 1) // tile * tile
