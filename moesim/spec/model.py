"""A mixture-of-experts transformer by its shape, and what follows from it: parameters, FLOPs, bytes.

Parameters are counted in matrices only. Norms, biases, attention sinks and the gate of a shared expert
are left out: below 0.1 % of every preset.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from moesim.spec.attention import Attention, AttentionKind
from moesim.spec.base import Count, Flag, Index, Strict, Text, fault
from moesim.spec.dtypes import DTYPE_BYTES, Dtype
from moesim.spec.experts import MAX_KINDS, REST, Experts, Kind, listed_LE

MAX_LAYERS = 4096
"""Far above any model: it keeps a slip of the pen from filling the memory."""


@dataclass(frozen=True)
class WeightBytes:
    """Bytes of weights on one GPU, all layers together."""

    attention: float
    dense: float
    shared: float
    routers: float
    embeddings: float
    experts: float

    @property
    def total(self) -> float:
        return self.attention + self.dense + self.shared + self.routers + self.embeddings + self.experts


class Model(Strict):
    """A decoder-only transformer with mixture-of-experts layers.

    Layer ``i`` (from 0) is a MoE layer when ``i >= first_dense`` and ``(i + 1) % moe_every == 0``, or where
    it is one of ``moe_at``; the others are dense, of width ``dense_width``. Layers of no ``attention_kinds``
    have ``attention``. ``weight_dtype`` is that of attention, dense and shared weights; routers, embeddings
    and the LM head stay in ``activation_dtype``, as released models keep them. ``active_includes`` says which
    of the two vocabulary matrices the published number of active parameters counts: papers differ.
    """

    name: Text
    hidden: Count
    layers: Count
    vocab: Count
    attention: Attention
    experts: Experts
    first_dense: Index = 0
    moe_every: Count = 1
    moe_at: Annotated[tuple[Index, ...], Field(min_length=1)] | None = None
    attention_kinds: Annotated[tuple[AttentionKind, ...], Field(max_length=MAX_KINDS)] = ()
    dense_width: Count | None = None
    tied_embeddings: Flag = False
    weight_dtype: Dtype = "bf16"
    expert_dtype: Dtype = "bf16"
    kv_dtype: Dtype = "bf16"
    activation_dtype: Dtype = "bf16"
    active_includes: tuple[Literal["embedding", "head"], ...] = ("embedding", "head")
    source: Text = ""

    @model_validator(mode="after")
    def _has_its_layers(self) -> Self:
        if self.layers > MAX_LAYERS:
            raise fault(f"must be at most {MAX_LAYERS}", "layers", got=self.layers)
        self._check_named_layers()
        if not self.moe_layers:
            name = "first_dense" if self.first_dense >= self.layers else "moe_every"
            raise fault("leaves no MoE layer", name, got=getattr(self, name))
        if self.dense_layers and self.dense_width is None:
            raise fault(f"is missing: {len(self.dense_layers)} layers are dense", "dense_width")
        if self.experts.kinds:
            listed_LE(self.experts, self.moe_layers)
        return self

    def _check_named_layers(self) -> None:
        """Layers that are named one by one exist, once."""
        if self.moe_at is not None and (self.first_dense or self.moe_every != 1):
            raise fault("takes the place of first_dense and moe_every: name one", "moe_at")
        names: set[str] = set()
        owner: dict[int, str] = {}
        for at, named in (
            (("moe_at",), self.moe_at or ()),
            *((("attention_kinds", i, "layers"), kind.layers) for i, kind in enumerate(self.attention_kinds)),
        ):
            if any(a >= b for a, b in pairwise(named)):
                raise fault("must ascend, each layer once", *at, got=list(named))
            if named and named[-1] >= self.layers:
                raise fault(f"must be below layers ({self.layers})", *at, got=named[-1])
        for i, kind in enumerate(self.attention_kinds):
            if kind.name in names:
                raise fault("is the name of another kind", "attention_kinds", i, "name", got=kind.name)
            names.add(kind.name)
            for layer in kind.layers:
                if owner.setdefault(layer, kind.name) != kind.name:
                    rule = f"names layer {layer}, which is of kind {owner[layer]} already"
                    raise fault(rule, "attention_kinds", i, "layers", got=kind.name)

    @model_serializer(mode="wrap")
    def _without_what_is_rare(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialize(self)
        for name in ("moe_at", "attention_kinds"):
            if not getattr(self, name):
                fields.pop(name, None)
        return fields

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Indices of the MoE layers among all ``layers``."""
        if self.moe_at is not None:
            return self.moe_at
        every = self.moe_every
        return tuple(layer for layer in range(self.first_dense, self.layers) if (layer + 1) % every == 0)

    @property
    def dense_layers(self) -> tuple[int, ...]:
        """Indices of the other layers."""
        moe = set(self.moe_layers)
        return tuple(layer for layer in range(self.layers) if layer not in moe)

    # Kinds of routed experts. Axes: L MoE layers, E experts of a layer, S slots.

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Those that are listed, after the kind of the experts that belong to none of them, if there are."""
        experts = self.experts
        listed = tuple(
            Kind(kind.name, kind.width or experts.width, kind.dtype or self.expert_dtype)
            for kind in experts.kinds
        )
        if listed and listed_LE(self.experts, self.moe_layers).all():
            return listed
        return (Kind(REST, experts.width, self.expert_dtype), *listed)

    @property
    def kind_LE(self) -> NDArray[np.int16]:
        """int16 [L, E], the kind of each expert, an index into ``kinds``."""
        found_LE = listed_LE(self.experts, self.moe_layers)
        return found_LE - 1 if found_LE.all() else found_LE

    def kinds_in(self, layer: int) -> int:
        """How many kinds of experts a MoE layer has, by its true index."""
        return len(np.unique(self.kind_LE[self.moe_layers.index(layer)])) if len(self.kinds) > 1 else 1

    def kind_LS(self, slot_expert_LS: NDArray[np.int16]) -> NDArray[np.int16] | None:
        """int16 [L, S], the kind of the expert in each slot, 0 for an empty one; None where all are of one.

        Args:
            slot_expert_LS: of all MoE layers, -1 for an empty slot.
        """
        if len(self.kinds) == 1:
            return None
        kind_LS = np.take_along_axis(self.kind_LE, np.maximum(slot_expert_LS, 0).astype(np.intp), axis=1)
        return np.where(slot_expert_LS >= 0, kind_LS, np.int16(0))

    # Parameters: numbers of weights, not bytes.

    def attention_in(self, layer: int) -> Attention:
        """The attention of a layer, with its window."""
        return _attention_in(self.attention, self.attention_kinds, layer)

    @property
    def attention_layers(self) -> Counter[Attention]:
        """How many layers have which attention."""
        return Counter(self.attention_in(layer) for layer in range(self.layers))

    @property
    def attention_params(self) -> int:
        """Projections of one layer's attention, that of layers of no other kind."""
        return self.attention.params(self.hidden)

    @property
    def all_attention_params(self) -> int:
        """Projections of all layers."""
        return sum(count * each.params(self.hidden) for each, count in self.attention_layers.items())

    def kind_params(self, kind: Kind) -> int:
        """One routed expert of one layer."""
        return self._ffn_params(kind.width)

    @property
    def routed_params(self) -> int:
        """All routed experts of all layers."""
        of_kind = [self.kind_params(kind) for kind in self.kinds]
        if len(of_kind) == 1:
            return len(self.moe_layers) * self.experts.count * of_kind[0]
        count_K = np.bincount(self.kind_LE.ravel()).tolist()
        return sum(count * params for count, params in zip(count_K, of_kind, strict=True))

    @property
    def shared_expert_params(self) -> int:
        """All shared experts of one MoE layer."""
        return self._ffn_params(self.experts.shared_width)

    @property
    def router_params(self) -> int:
        """The router of one MoE layer."""
        return self.hidden * self.experts.count

    @property
    def dense_params(self) -> int:
        """The feed-forward network of one dense layer; 0 without dense layers."""
        return self._ffn_params(self.dense_width or 0)

    @property
    def embedding_params(self) -> int:
        """One vocabulary matrix: the input embedding, and as large again the LM head."""
        return self.vocab * self.hidden

    @property
    def total_params(self) -> int:
        """All parameters; tied embeddings count once."""
        vocabulary = self.embedding_params * (1 if self.tied_embeddings else 2)
        return self._body_params() + self.routed_params + vocabulary

    @property
    def active_params(self) -> int:
        """Parameters that one token uses: its ``top_k`` experts and what ``active_includes`` names.

        Where experts differ, those of a token that chooses all of them equally often, rounded down.
        """
        included = set(self.active_includes)
        matrices = min(len(included), 1) if self.tied_embeddings else len(included)
        routed = self.routed_params * self.experts.top_k // self.experts.count
        return self._body_params() + routed + self.embedding_params * matrices

    def _body_params(self) -> int:
        """All layers without their routed experts."""
        return (
            self.all_attention_params
            + len(self.moe_layers) * (self.shared_expert_params + self.router_params)
            + len(self.dense_layers) * self.dense_params
        )

    def _ffn_params(self, width: int) -> int:
        return (3 if self.experts.gated else 2) * self.hidden * width

    # What a token costs in attention.

    @property
    def score_flops_per_key(self) -> int:
        """See :attr:`Attention.score_flops_per_key`."""
        return self.attention.score_flops_per_key

    def attention_context(self, layer: int, context: float) -> float:
        """Keys that a token attends to in ``layer`` when ``context`` tokens precede it, itself included."""
        return float(self.attention_in(layer).attended(np.array([context]))[0])

    @property
    def kv_bytes_per_token(self) -> float:
        """Bytes of KV cache for one token in one layer, over all ranks of a tensor-parallel group."""
        return self.attention.kv_values_per_token * DTYPE_BYTES[self.kv_dtype]

    # What lies in memory.

    def kind_bytes(self, kind: Kind) -> float:
        """Bytes of one routed expert of one layer."""
        return self.kind_params(kind) * DTYPE_BYTES[kind.dtype]

    @property
    def expert_bytes_LE(self) -> NDArray[np.float64]:
        """float64 [L, E], bytes of each routed expert."""
        return np.array([self.kind_bytes(kind) for kind in self.kinds])[self.kind_LE]

    def weight_bytes(self, ep: int, tp: int = 1, slots: int | None = None) -> WeightBytes:
        """Weights on one GPU of an expert-parallel group of ``ep``, attention split over ``tp``.

        ``slots`` is the number of experts that a GPU holds in each MoE layer, copies included; without it
        ⌈count / ep⌉. Where experts differ, all are taken to be of the heaviest kind. Attention is split over
        the ``tp`` ranks of a group. All else runs where a token has its home, so that every rank holds it
        whole.
        """
        moe, held = len(self.moe_layers), -(-self.experts.count // ep) if slots is None else slots
        weight, activation = DTYPE_BYTES[self.weight_dtype], DTYPE_BYTES[self.activation_dtype]
        vocabulary = self.embedding_params * (1 if self.tied_embeddings else 2)
        return WeightBytes(
            attention=self.all_attention_params * weight / tp,
            dense=len(self.dense_layers) * self.dense_params * weight,
            shared=moe * self.shared_expert_params * weight,
            routers=moe * self.router_params * activation,
            embeddings=vocabulary * activation,
            experts=moe * held * max(self.kind_bytes(kind) for kind in self.kinds),
        )


@lru_cache(maxsize=4096)
def _attention_in(attention: Attention, kinds: tuple[AttentionKind, ...], layer: int) -> Attention:
    own = next((kind.plain() for kind in kinds if layer in kind.layers), attention)
    return own.in_layer(layer)
