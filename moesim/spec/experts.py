"""The routed experts of a MoE layer: how many, how wide, and which of them are of which kind."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from moesim.spec.base import Count, Flag, Index, Strict, Text, fault
from moesim.spec.dtypes import Dtype

MAX_EXPERTS = 65_536
MAX_KINDS = 256
"""Far above any model: they keep a slip of the pen from filling the memory."""

REST = "default"
"""The name of the kind of all experts that belong to none that is listed."""

_Indices = Annotated[tuple[Index, ...], Field(min_length=1)]


@dataclass(frozen=True)
class Kind:
    """What all experts of one kind have in common: their inner width, and the dtype of their weights."""

    name: str
    width: int
    dtype: Dtype


class ExpertKind(Strict):
    """A kind of experts as a model lists it, with those that belong to it.

    ``width`` and ``dtype`` are the model's unless they are given. The kind has the ``experts`` in each of
    the ``layers`` (true indices of MoE layers), all of them where either is not given.
    """

    name: Text
    width: Count | None = None
    dtype: Dtype | None = None
    layers: _Indices | None = None
    experts: _Indices | None = None


class Experts(Strict):
    """The routed experts of a MoE layer, and the shared ones that every token passes through.

    ``shared_width`` is the sum of the widths of the shared experts. ``gated`` experts have three matrices
    (SwiGLU: gate, up, down), others two. With ``groups`` > 1 a token chooses ``top_groups`` groups first,
    then its ``top_k`` experts inside them. Experts of no kind of ``kinds`` have ``width`` and the model's
    ``expert_dtype``.
    """

    count: Count
    top_k: Count
    width: Count
    shared_width: Index = 0
    gated: Flag = True
    groups: Count = 1
    top_groups: Count = 1
    kinds: Annotated[tuple[ExpertKind, ...], Field(max_length=MAX_KINDS)] = ()

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.count > MAX_EXPERTS:
            raise fault(f"must be at most {MAX_EXPERTS}", "count", got=self.count)
        if self.top_k > self.count:
            raise fault(f"must be at most count ({self.count})", "top_k", got=self.top_k)
        if self.count % self.groups:
            raise fault(f"must divide count ({self.count})", "groups", got=self.groups)
        if self.top_groups > self.groups:
            raise fault(f"must be at most groups ({self.groups})", "top_groups", got=self.top_groups)
        if self.top_k > self.count // self.groups * self.top_groups:
            raise fault(
                f"must fit into top_groups ({self.top_groups}) groups of {self.count // self.groups} experts",
                "top_k",
                got=self.top_k,
            )
        self._check_kinds()
        return self

    def _check_kinds(self) -> None:
        """Their names tell them apart, and they name experts that there are."""
        names = {REST}
        for i, kind in enumerate(self.kinds):
            if kind.name in names:
                raise fault("is the name of another kind", "kinds", i, "name", got=kind.name)
            names.add(kind.name)
            for name in ("layers", "experts"):
                named = getattr(kind, name) or ()
                if len(set(named)) < len(named):
                    raise fault("names one twice", "kinds", i, name, got=list(named))
            for expert in kind.experts or ():
                if expert >= self.count:
                    raise fault(f"must be below count ({self.count})", "kinds", i, "experts", got=expert)

    @model_serializer(mode="wrap")
    def _without_a_table_of_one_kind(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialize(self)
        if not self.kinds:
            del fields["kinds"]
        return fields


@lru_cache(maxsize=16)
def listed_LE(experts: Experts, layers: tuple[int, ...]) -> NDArray[np.int16]:
    """int16 [L, E], the place of each expert's kind in the list, from 1; 0 for those of no kind. Read-only.

    Args:
        layers: true indices of the L MoE layers.

    Raises:
        PydanticCustomError: a kind names a layer without experts, or an expert that another one has.
    """
    row = {layer: i for i, layer in enumerate(layers)}
    found_LE = np.zeros((len(row), experts.count), np.int16)
    for i, kind in enumerate(experts.kinds):
        for layer in kind.layers or layers:
            if layer not in row:
                raise fault("must be a MoE layer", "experts", "kinds", i, "layers", got=layer)
            for expert in range(experts.count) if kind.experts is None else kind.experts:
                if other := int(found_LE[row[layer], expert]):
                    owner = experts.kinds[other - 1].name
                    rule = f"names expert {expert} of layer {layer}, which belongs to {owner} already"
                    raise fault(rule, "experts", "kinds", i, got=kind.name)
                found_LE[row[layer], expert] = i + 1
    found_LE.flags.writeable = False
    return found_LE
