"""The attention of a layer: its parameters, and what its tokens attend to, scan and keep."""

from __future__ import annotations

from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import SerializerFunctionWrapHandler, model_serializer, model_validator

from moesim.spec.base import Count, Flag, Index, Strict, Text, fault

FloatArray = NDArray[np.float64]

STATE_BYTES = 4
"""Of one value of a recurrent state, which is kept in fp32."""

INDEX_BYTES = 1
"""Of one value that an indexer caches, which is fp8 (DeepSeek-V3.2-Exp, section 2.1)."""

_LATENT = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
_GROUPED = ("kv_heads", "head_dim")
_INDEX = ("index_heads", "index_dim", "index_top_k")
_RARE = ("value_dim", "projections", "shared_kv", "compress", "state", *_INDEX)


class Attention(Strict):
    """Grouped-query (``gqa``), multi-head latent (``mla``) or recurrent (``linear``) attention.

    ``gqa`` needs ``kv_heads`` and ``head_dim``; values may have another width, ``value_dim``. ``mla``
    (DeepSeek-V2, arXiv 2405.04434, section 2.1) needs ``kv_lora_rank``, ``qk_nope_head_dim``,
    ``qk_rope_head_dim``, ``v_head_dim``, and has ``q_lora_rank`` where queries are compressed too. ``linear``
    (Mamba, gated delta rules, lightning attention) needs ``projections`` and ``state``, the values that it
    keeps for each sequence however long that is.

    Of each ``full_every`` layers the last one attends to the whole context and the others slide over
    the last ``window`` tokens; without ``full_every`` all layers slide, without ``window`` none does.

    An indexer (DeepSeek-V3.2) of ``index_heads`` heads of ``index_dim`` values scores every key, and the
    attention reads the ``index_top_k`` best of them. With ``compress`` (DeepSeek-V4) so many tokens are one
    key beyond the window. With ``shared_kv`` one vector is key and value. ``projections`` are the parameters
    of one layer where the shapes above do not give them.
    """

    kind: Literal["gqa", "mla", "linear"] = "gqa"
    heads: Count
    kv_heads: Count | None = None
    head_dim: Count | None = None
    q_lora_rank: Count | None = None
    kv_lora_rank: Count | None = None
    qk_nope_head_dim: Count | None = None
    qk_rope_head_dim: Count | None = None
    v_head_dim: Count | None = None
    window: Count | None = None
    full_every: Count | None = None
    value_dim: Count | None = None
    projections: Count | None = None
    shared_kv: Flag = False
    compress: Count | None = None
    index_heads: Count | None = None
    index_dim: Count | None = None
    index_top_k: Count | None = None
    state: Count | None = None

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        needed = {"gqa": _GROUPED, "mla": _LATENT, "linear": ("projections", "state")}[self.kind]
        only_gqa, only_mla = ("value_dim", "compress"), (*_LATENT, "q_lora_rank")
        foreign = {
            "gqa": (*only_mla, "state"),
            "mla": (*_GROUPED, *only_gqa, "state"),
            "linear": (*_GROUPED, *only_gqa, *only_mla, *_INDEX, "window", "full_every"),
        }[self.kind]
        for name in needed:
            if getattr(self, name) is None:
                raise fault(f"is missing: attention of kind {self.kind} needs it", name)
        for name in foreign:
            if getattr(self, name) is not None:
                raise fault(
                    f"does not belong to attention of kind {self.kind}", name, got=getattr(self, name)
                )
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise fault(f"must divide heads ({self.heads})", "kv_heads", got=self.kv_heads)
        if self.full_every is not None and self.window is None:
            raise fault("needs window", "full_every", got=self.full_every)
        given = [name for name in _INDEX if getattr(self, name) is not None]
        if given and len(given) < len(_INDEX):
            raise fault(f"needs {', '.join(name for name in _INDEX if name not in given)} too", given[0])
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_rare(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialize(self)
        return {name: value for name, value in fields.items() if name not in _RARE or value}

    def in_layer(self, layer: int) -> Attention:
        """The attention of one layer: with its window, or without one."""
        if self.full_every is None:
            return self
        own = {"full_every": None} | ({"window": None} if (layer + 1) % self.full_every == 0 else {})
        return self.model_copy(update=own)

    # Parameters and cost.

    def params(self, hidden: int) -> int:
        """Parameters of one layer's projections, for a model of width ``hidden``."""
        if self.projections is not None:
            return self.projections
        if self.kind == "gqa":
            kv_heads, head_dim = _known(self.kv_heads), _known(self.head_dim)
            value_dim = self.value_dim or head_dim
            return hidden * (self.heads + kv_heads) * (head_dim + value_dim)  # Q and K; V and output
        nope, rope = _known(self.qk_nope_head_dim), _known(self.qk_rope_head_dim)
        value, rank = _known(self.v_head_dim), _known(self.kv_lora_rank)
        queries = self.heads * (nope + rope)
        query = hidden * queries if self.q_lora_rank is None else self.q_lora_rank * (hidden + queries)
        down = hidden * (rank + rope)
        up = rank * self.heads * (nope + value)
        return query + down + up + self.heads * value * hidden

    @property
    def score_flops_per_key(self) -> int:
        """FLOP of one query token against one cached key, QKᵀ and PV, all heads.

        MLA in its absorbed form, which decoding uses: queries are brought into the latent space, so each
        head works on ``kv_lora_rank + qk_rope_head_dim`` values for QKᵀ and on ``kv_lora_rank`` for PV.
        """
        if self.kind == "linear":
            return 0
        if self.kind == "gqa":
            head_dim = _known(self.head_dim)
            return 2 * self.heads * (head_dim + (self.value_dim or head_dim))
        rank, rope = _known(self.kv_lora_rank), _known(self.qk_rope_head_dim)
        return 2 * self.heads * (rank + rope) + 2 * self.heads * rank

    @property
    def expanded_score_flops_per_key(self) -> int:
        """As :attr:`score_flops_per_key`, for prefill: MLA there works on its expanded heads."""
        if self.kind != "mla":
            return self.score_flops_per_key
        query_key = _known(self.qk_nope_head_dim) + _known(self.qk_rope_head_dim)
        return 2 * self.heads * (query_key + _known(self.v_head_dim))

    @property
    def kv_values_per_token(self) -> int:
        """Values that one layer caches for one key."""
        if self.kind == "linear":
            return 0
        if self.kind == "gqa":
            kv_heads, head_dim = _known(self.kv_heads), _known(self.head_dim)
            return kv_heads * (head_dim + (0 if self.shared_kv else self.value_dim or head_dim))
        return _known(self.kv_lora_rank) + _known(self.qk_rope_head_dim)

    def kv_share(self, tp: int) -> float:
        """Part of the KV cache that each of ``tp`` ranks holds.

        Whole KV heads are dealt to the ranks, and repeated where ranks outnumber them; the latent of MLA
        belongs to all heads, so every rank holds it whole.
        """
        if self.kind != "gqa":
            return 1.0
        kv_heads = _known(self.kv_heads)
        return -(-kv_heads // tp) / kv_heads

    # Of an attention of one layer, for tokens with so many tokens before them, themselves included.

    def attended(self, keys: FloatArray) -> FloatArray:
        """Keys that each of the tokens attends to."""
        if self.kind == "linear":
            return np.zeros_like(keys)
        near = keys if self.window is None else np.minimum(keys, self.window)
        most = np.inf if self.index_top_k is None else self.index_top_k
        if self.compress is None:
            return np.minimum(near, most)
        return near * (self.window is not None) + np.minimum(keys / self.compress, most)

    def cached(self, keys: FloatArray) -> FloatArray:
        """Keys in the cache of a sequence that ends with such a token."""
        if self.kind == "linear":
            return np.zeros_like(keys)
        near = keys if self.window is None else np.minimum(keys, self.window)
        if self.compress is None:
            return near
        return near * (self.window is not None) + keys / self.compress

    def scanned(self, keys: FloatArray) -> FloatArray:
        """Keys that the indexer scores, and caches."""
        return np.zeros_like(keys) if self.index_heads is None else keys / (self.compress or 1)


class AttentionKind(Attention):
    """The attention of some ``layers`` that have another than the model's ``attention``."""

    name: Text
    layers: tuple[Index, ...]

    def plain(self) -> Attention:
        """Without the layers that have it."""
        fields = {name: getattr(self, name) for name in Attention.model_fields}
        return Attention.model_construct(**fields)


def _known(value: int | None) -> int:
    """A field that the kind of attention guarantees."""
    assert value is not None
    return value
