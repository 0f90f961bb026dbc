"""Seconds of a model's kernels by a roofline (Williams et al. 2009, doi 10.1145/1498765.1498785).

Axes: G GPUs, L MoE layers, S slots. All results are busy seconds without launch costs, which are
``launch_s(phase)`` for each phase. Every time grows with each input, element by element.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.hardware.gemm import Matrix, Rates, Rows, gemm_seconds, roofline
from moesim.hardware.small_kernels import RowsOf, SmallKernel
from moesim.spec.attention import INDEX_BYTES, STATE_BYTES, Attention
from moesim.spec.cluster import Gpu
from moesim.spec.dtypes import DTYPE_BYTES, Dtype
from moesim.spec.experts import Kind
from moesim.spec.links import Links
from moesim.spec.model import Model
from moesim.spec.profile import Phase, Profile, Roof
from traces.base.jit import jit

FloatArray = NDArray[np.float64]

# Dtypes whose weights meet inputs of their own dtype; what narrower ones meet is up to the profile.
_MULTIPLIED = ("fp32", "bf16", "fp16", "fp8")

_PEAK = Links(nvlink=1, nic=1)

# Queries of a prefill tile, which stream a key once together (FlashAttention-2, arXiv 2307.08691: 128 rows).
_QUERY_TILE = 128

# FLOP of a token for each value of a state: a multiplication and an addition to decay and update it, and to
# correct and to read it (gated delta rule, arXiv 2412.06464, eq. 10).
_STATE_FLOPS = 6


@dataclass(frozen=True)
class Kernels:
    """The kernels of one model on one GPU of a group with tensor parallelism ``tp`` in attention.

    ``links`` is what its dispatch mode reaches. ``clock_G`` is the part of full speed at which each GPU
    computes; its memory is as fast as ever. ``group_share`` is the part of its NVLink bandwidth that a GPU
    reaches inside its attention group. ``small`` are the kernels between the matrices.
    """

    model: Model
    gpu: Gpu
    profile: Profile
    tp: int = 1
    links: Links = _PEAK
    clock_G: FloatArray | float = 1.0
    group_share: float = 1.0
    small: Sequence[SmallKernel] = ()

    def beside(self, sms: int) -> Kernels:
        """The same kernels while transfer kernels occupy ``sms`` of the multiprocessors, not all of them."""
        left = self.gpu.sms - sms
        gpu = self.gpu.model_copy(update={"sms": left})
        return replace(self, gpu=gpu, clock_G=self.clock_G * (left / self.gpu.sms))

    def without_arithmetic(self) -> Kernels:
        """The same kernels where arithmetic takes no time: their memory traffic is left."""
        return replace(self, clock_G=np.inf)

    def launches(self, phase: Phase, layer: int = -1) -> int:
        """Kernels of a phase.

        Args:
            layer: true index of the layer, whose kinds of experts are launched one after the other. What is
                ``other`` in a layer is the host, that waits for the counts of its dispatch.
        """
        if (phase, layer) not in self._launches:
            self._launches[phase, layer] = self._counted_launches(phase, layer)
        return self._launches[phase, layer]

    def _counted_launches(self, phase: Phase, layer: int) -> int:
        if phase == "other" and layer >= 0:
            return 0
        count = self.profile.kernels.get(phase, 0)
        attention = self.model.attention_in(layer) if phase == "attention" else None
        count += sum(each.launches for each in self._small.get((phase, attention), ()))
        if phase == "experts" and not self.profile.loop:
            count *= self.model.kinds_in(layer)
        return count

    def hosted_s(self, phase: Phase, layer: int = -1) -> float:
        """Seconds that a phase takes at least, its launches apart, where the host launches one by one."""
        waits_s = (self.profile.eager_launch or 0.0) - self.profile.launch
        return self.launches(phase, layer) * max(waits_s, 0.0)

    def launch_s(self, phase: Phase, layer: int = -1) -> float:
        """Fixed seconds of a phase: launching its kernels, and what else no work explains.

        Args:
            layer: as for ``launches``.
        """
        if phase == "other" and layer >= 0:
            return self.links.host
        launches_s = self.profile.launch * self.launches(phase, layer)
        return launches_s + self.links.floor_s(phase) if phase in ("dispatch", "combine") else launches_s

    def between(
        self, phase: Phase, rows: Mapping[RowsOf, FloatArray], attention: Attention | None = None
    ) -> FloatArray | float:
        """The small kernels of a phase: bytes of their rows through memory.

        Args:
            rows: how many there are on each GPU.
            attention: of the layer, of phase ``attention``.
        """
        own = [each for each in self._small.get((phase, attention), ()) if each.row_bytes]
        share = self.profile.small_kernels
        if not own or share is None:
            return 0.0
        rate = self.gpu.memory_bandwidth * share
        return sum(rows[each.rows] * (each.row_bytes / rate) for each in own)

    @cached_property
    def _launches(self) -> dict[tuple[Phase, int], int]:
        """What has been counted so far."""
        return {}

    @cached_property
    def _small(self) -> dict[tuple[Phase, Attention | None], list[SmallKernel]]:
        found: dict[tuple[Phase, Attention | None], list[SmallKernel]] = {}
        for each in self.small:
            found.setdefault((each.phase, each.attention), []).append(each)
        return found

    def arrange(self, served_G: FloatArray, copy_bytes: float) -> FloatArray:
        """Putting the rows of served assignments in order around a dispatch or a combine."""
        if self.links.arrange is None:
            return np.zeros(served_G.shape)
        return served_G * (2 * copy_bytes / (self.gpu.memory_bandwidth * self.links.arrange))

    def attention(
        self,
        tokens_G: FloatArray,
        decode_keys_G: FloatArray,
        prefill_keys_G: FloatArray,
        attention: Attention | None = None,
    ) -> FloatArray:
        """Projections of all tokens; scores and values of decoding and of prefill, each its own kernel.

        The tp GPUs of an attention group each compute all its tokens with 1/tp of the heads. A latent
        (MLA) cache is shared by all heads, so that each GPU streams it whole.

        Args:
            tokens_G: tokens at home on each GPU.
            decode_keys_G: keys that their decoding tokens attend to, summed; each is streamed once.
            prefill_keys_G: the same for tokens of chunks, of which a tile shares what it streams.
            attention: of the layer; by default that of layers of no other kind.
        """
        model, tp = self.model, self.tp
        attention = attention or model.attention
        stored = attention.kv_values_per_token * DTYPE_BYTES[model.kv_dtype] * attention.kv_share(tp)
        width = attention.params(model.hidden) / tp / model.hidden
        seconds_G = self._dense(self.grouped(tokens_G), width, model.hidden, model.weight_dtype)
        for keys_G, flops_per_key, shared_by in (
            (self.grouped(decode_keys_G), attention.score_flops_per_key, 1),
            (self.grouped(prefill_keys_G), attention.expanded_score_flops_per_key, _QUERY_TILE),
        ):
            seconds_G = seconds_G + roofline(
                keys_G * flops_per_key / tp,
                keys_G * stored / shared_by,
                self.profile.attention,
                self._rates(model.activation_dtype),
            )
        return seconds_G

    def index(self, keys_G: FloatArray, attention: Attention) -> FloatArray:
        """An indexer's scores, whole on each GPU of an attention group.

        Args:
            keys_G: keys that it scores for the tokens of each GPU, summed.
        """
        heads, width = attention.index_heads or 0, attention.index_dim or 0
        keys_G = self.grouped(keys_G)
        rates = self._rates(self.model.activation_dtype)
        return roofline(
            keys_G * (2 * heads * width), keys_G * (width * INDEX_BYTES), self.profile.attention, rates
        )

    def recurrence(self, tokens_G: FloatArray, sequences_G: FloatArray, attention: Attention) -> FloatArray:
        """The states of a linear attention: decayed, updated and read for each token, streamed once.

        Args:
            sequences_G: sequences of each GPU, each with a state that is read and written.
        """
        state = (attention.state or 0) / self.tp
        return roofline(
            self.grouped(tokens_G) * (_STATE_FLOPS * state),
            self.grouped(sequences_G) * (2 * STATE_BYTES * state),
            self.profile.attention,
            self._rates(self.model.activation_dtype),
        )

    def grouped(self, values_G: FloatArray) -> FloatArray:
        """The sum over each attention group, on every GPU of it."""
        return np.repeat(values_G.reshape(-1, self.tp).sum(axis=1), self.tp)

    def router(self, tokens_G: FloatArray) -> FloatArray:
        """The gate's GEMM."""
        model, roof = self.model, self.profile.router
        return self._dense(tokens_G, model.experts.count, model.hidden, model.activation_dtype, roof)

    def shared_expert(self, tokens_G: FloatArray) -> FloatArray:
        """The experts that every token visits on its home GPU."""
        rows, width = Rows.of(tokens_G, self.profile), self.model.experts.shared_width
        return self._feed_forward(rows, width, self.model.weight_dtype, self.profile.gemm)

    def dense(self, tokens_G: FloatArray) -> FloatArray:
        """The feed-forward network of a layer without experts, whole on every GPU."""
        rows, width = Rows.of(tokens_G, self.profile), self.model.dense_width or 0
        return self._feed_forward(rows, width, self.model.weight_dtype, self.profile.gemm)

    def head(self, tokens_G: FloatArray) -> FloatArray:
        """The language-model head, one row of logits per token."""
        model = self.model
        return self._dense(tokens_G, model.vocab, model.hidden, model.activation_dtype)

    def experts(
        self,
        tokens_LS: NDArray[np.int32],
        slot_gpu_S: NDArray[np.int32],
        gpus: int,
        kind_LS: NDArray[np.int16] | None = None,
    ) -> FloatArray:
        """[L, G]: grouped GEMMs over the GPU's slots, which stream the weights of those with tokens.

        Experts of each kind have grouped GEMMs of their own, one kind after the other.

        Args:
            tokens_LS: rows of each slot.
            slot_gpu_S: the GPU of each slot.
            gpus: G.
            kind_LS: the kind of the expert in each slot, an index into the model's ``kinds``; not needed
                where there is one.
        """
        kinds = self.model.kinds
        if len(kinds) == 1:
            return self._of_kind(kinds[0], tokens_LS, slot_gpu_S, gpus)
        assert kind_LS is not None  # what an expert takes depends on its kind
        seconds_LG = np.zeros((len(tokens_LS), gpus))
        for number, kind in enumerate(kinds):
            own_LS = np.where(kind_LS == number, tokens_LS, np.int32(0))
            seconds_LG += self._of_kind(kind, own_LS, slot_gpu_S, gpus)
        return seconds_LG

    def even_experts(self, rows_LC: FloatArray, active_LC: FloatArray) -> FloatArray:
        """[L]: the same on a GPU whose active slots have equal rows; both may be fractions.

        Args:
            rows_LC: rows of all slots with experts of each kind.
            active_LC: these slots.
        """
        seconds_L = np.zeros(len(rows_LC))
        for kind, rows_L, active_L in zip(self.model.kinds, rows_LC.T, active_LC.T, strict=True):
            each_L = rows_L / np.where(active_L, active_L, 1.0)
            if self.profile.loop:
                rows = Rows.of(each_L, self.profile)
                slot_s_L = self._feed_forward(rows, kind.width, kind.dtype, self.profile.grouped_gemm)
                seconds_L += active_L * slot_s_L
                continue
            aligned_L = np.ceil(each_L / self.links.align) * self.links.align
            padded_ML = np.array(
                [active_L * np.ceil(aligned_L / tile.rows) * tile.rows for tile in self.profile.tiles]
            )
            rows = Rows.padded(padded_ML, active_L, rows_L, self.profile)
            seconds_L += self._feed_forward(rows, kind.width, kind.dtype, self.profile.grouped_gemm)
        return seconds_L

    def _of_kind(
        self, kind: Kind, tokens_LS: NDArray[np.int32], slot_gpu_S: NDArray[np.int32], gpus: int
    ) -> FloatArray:
        """[L, G]: experts of one kind."""
        if self.profile.loop:
            return self._in_turn(kind, tokens_LS, slot_gpu_S, gpus)
        height_M = np.array([tile.rows for tile in self.profile.tiles], np.int64)
        rows_MLG, active_LG, tokens_LG = group_rows(tokens_LS, slot_gpu_S, gpus, height_M, self.links.align)
        rows = Rows.padded(rows_MLG, active_LG, tokens_LG, self.profile)
        return self._feed_forward(rows, kind.width, kind.dtype, self.profile.grouped_gemm)

    def _in_turn(
        self, kind: Kind, tokens_LS: NDArray[np.int32], slot_gpu_S: NDArray[np.int32], gpus: int
    ) -> FloatArray:
        """[L, G]: GEMMs of one slot after the other."""
        own = replace(self, clock_G=np.broadcast_to(self.clock_G, gpus)[slot_gpu_S])
        rows = Rows.of(tokens_LS.astype(np.float64), self.profile)
        seconds_LS = own._feed_forward(rows, kind.width, kind.dtype, self.profile.grouped_gemm)
        seconds_LG = np.zeros((len(tokens_LS), gpus))
        np.add.at(seconds_LG.T, slot_gpu_S, seconds_LS.T)
        return seconds_LG

    def _feed_forward(self, rows: Rows, width: int, dtype: Dtype, roof: Roof) -> FloatArray:
        """Up (and gate), the activation unless the first GEMM has it fused, and down."""
        gated, hidden = self.model.experts.gated, self.model.hidden
        up = 2 * width if gated else width
        values = DTYPE_BYTES[self.model.activation_dtype]
        inputs, weights = self.input_bytes(dtype), DTYPE_BYTES[dtype]
        fused = self.profile.fused_activation
        # A fused activation writes its product, in the dtype that the second GEMM multiplies.
        first = Matrix(up, hidden, inputs, weights, inputs * (0.5 if gated else 1.0) if fused else values)
        second = Matrix(hidden, width, inputs, weights, values)
        seconds_X = self._gemm(rows, first, dtype, roof) + self._gemm(rows, second, dtype, roof)
        if not fused:
            bytes_X = rows.rows_X * (up * values + width * inputs)
            seconds_X = seconds_X + bytes_X / (self.gpu.memory_bandwidth * roof.memory)
        return seconds_X

    def _dense(
        self, tokens_G: FloatArray, n: float, k: float, dtype: Dtype, roof: Roof | None = None
    ) -> FloatArray:
        """A GEMM over all tokens."""
        outputs = DTYPE_BYTES[self.model.activation_dtype]
        matrix = Matrix(n, k, self.input_bytes(dtype), DTYPE_BYTES[dtype], outputs)
        return self._gemm(Rows.of(tokens_G, self.profile), matrix, dtype, roof or self.profile.gemm)

    def _gemm(self, rows: Rows, matrix: Matrix, dtype: Dtype, roof: Roof) -> FloatArray:
        return gemm_seconds(rows, matrix, roof, self.profile, self._rates(dtype))

    def _rates(self, dtype: Dtype) -> Rates:
        """The data sheet, for GEMMs with weights of this dtype."""
        flops = self.gpu.peak_flops(self._multiplied(dtype)) * self.clock_G
        return Rates(flops, self.gpu.memory_bandwidth, self.gpu.sms)

    def _multiplied(self, dtype: Dtype) -> Dtype:
        """The dtype of what meets weights of this dtype; never narrower than they are, so its rate binds."""
        widened, known = self.model.activation_dtype, self.gpu.flops
        inputs = self.profile.inputs.get(dtype, dtype if dtype in _MULTIPLIED else widened)
        return inputs if inputs in known and dtype in known else widened

    def input_bytes(self, dtype: Dtype) -> float:
        """Bytes of one value that enters a GEMM with weights of this dtype."""
        return DTYPE_BYTES[self._multiplied(dtype)]


def group_rows(
    tokens_LS: NDArray[np.int32],
    slot_gpu_S: NDArray[np.int32],
    gpus: int,
    tiles_M: NDArray[np.int64],
    align: int = 1,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Rows of a grouped GEMM per GPU: padded to each tile height [M, L, G], slots with tokens, tokens [L, G].

    The rows of a slot are laid out in whole multiples of ``align``, and a tile never spans slots.

    Example: slots with 1, 20 and 0 tokens on one GPU, tiles of 16 rows: 16 + 32 padded rows, 2 active slots,
    21 tokens.

    >>> rows, active, tokens = group_rows(np.array([[1, 20, 0]], np.int32), np.zeros(3, np.int32), 1,
    ...                                   np.array([16]))
    >>> rows.ravel().tolist(), active.ravel().tolist(), tokens.ravel().tolist()
    ([48.0], [2.0], [21.0])
    """
    shape = (len(tokens_LS), gpus)
    rows_MLG = np.zeros((len(tiles_M), *shape))
    active_LG, tokens_LG = np.zeros(shape), np.zeros(shape)
    _group_rows(tokens_LS, slot_gpu_S, tiles_M, align, rows_MLG, active_LG, tokens_LG)
    return rows_MLG, active_LG, tokens_LG


@jit
def _group_rows(
    tokens_LS: Any,
    slot_gpu_S: Any,
    tiles_M: Any,
    align: int,
    rows_MLG: Any,
    active_LG: Any,
    tokens_LG: Any,
) -> None:
    for layer in range(len(tokens_LS)):
        for slot in range(len(slot_gpu_S)):
            tokens = tokens_LS[layer, slot]
            if tokens == 0:
                continue
            gpu = slot_gpu_S[slot]
            active_LG[layer, gpu] += 1.0
            tokens_LG[layer, gpu] += tokens
            aligned = (tokens + align - 1) // align * align
            for m in range(len(tiles_M)):
                tile = tiles_M[m]
                rows_MLG[m, layer, gpu] += (aligned + tile - 1) // tile * tile
