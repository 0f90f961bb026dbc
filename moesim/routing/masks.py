"""Experts that are off: by list, by their use, or by the kind of request.

Axes: T tokens, K experts per token, E experts, Q kinds of tokens that have a mask of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from moesim.routing.errors import PolicyError
from moesim.routing.filling import INSTEAD, check_experts, restrict
from moesim.routing.parameters import EXPERTS, choice, integer
from moesim.routing.policy import Batch, Cost, Need, Outcome, Policy, categories_of, weights_of

MEASURES = ("load", "score")
GROUPS = ("all", "category")
WINDOWS = ("batch", "trace")

_LISTED = Cost(candidates=1)


@dataclass(frozen=True)
class Mask:
    """Some experts are off, for all tokens or for those of some categories.

    What remains of static expert pruning at inference (arXiv 2206.00277 for one task, 2402.14800 for all),
    whichever way the experts were found.

    Expert 1 is off; nothing takes its place.

    >>> batch = Batch(np.array([[0, 1], [2, 0]], np.int16), None, np.array([0, 2]), experts=3)
    >>> Mask((1,), instead="nothing").apply(batch).ids_TK.tolist()
    [[0, -1], [2, 0]]

    Attributes:
        experts: their ids; none changes nothing.
        layers: true indices of the layers in which they are off; None = all.
        categories: the requests for which they are off, by their names in the trace; None = all.
        instead: ``candidates``: the token's best candidates that are on and that it does not visit yet;
            ``nothing``: the assignment is dropped.

    Raises:
        PolicyError: a parameter has a wrong type or value; applied to a layer without such an expert, or to
            a trace without such a category.
    """

    name: ClassVar[str] = "mask"
    cost: ClassVar[Cost] = _LISTED

    experts: tuple[int, ...] = field(metadata=EXPERTS)
    layers: tuple[int, ...] | None = None
    categories: tuple[str, ...] | None = None
    instead: str = "candidates"

    def __post_init__(self) -> None:
        object.__setattr__(self, "experts", _integers("experts", self.experts))
        if self.layers is not None:
            object.__setattr__(self, "layers", _integers("layers", self.layers))
        if self.categories is not None:
            object.__setattr__(self, "categories", _names("categories", self.categories))
        choice("instead", self.instead, INSTEAD)

    @property
    def needs(self) -> frozenset[Need]:
        """Candidates to choose from, categories to tell requests apart."""
        return INSTEAD[self.instead] | ({"categories"} if self.categories is not None else set())

    def apply(self, batch: Batch) -> Outcome:
        """The batch without the experts that are off.

        Raises:
            PolicyError: the batch lacks what the policy needs, or what its parameters name.
        """
        check_experts("experts", self.experts, batch)
        on_QE = np.ones((2, batch.experts), np.bool_)
        if self.layers is None or batch.layer in self.layers:
            on_QE[1, list(self.experts)] = False
        row_T = np.ones(len(batch.ids_TK), np.intp)
        if self.categories is not None:
            row_T[:] = np.isin(categories_of(batch, self), self._numbers(batch))
        return restrict(batch, self, self.instead, on_QE, row_T)

    def _numbers(self, batch: Batch) -> list[int]:
        """The categories as the trace numbers them."""
        for name in self.categories or ():
            if name not in batch.categories:
                known = ", ".join(batch.categories) or "none"
                rule = f"must be categories of the trace: {known}"
                raise PolicyError(rule, field="routing.categories", got=name)
        return [batch.categories.index(name) for name in self.categories or ()]


@dataclass(frozen=True)
class MaskLeast:
    """The least used experts are off, of each batch or once and for all of a part of the trace.

    Use is what experts get in a layer: counts of assignments, or sums of gate weights. In a batch it is that
    of this step from all ranks together, which they have to tell each other. Of equally used experts the
    lower id goes first. XShare (arXiv 2602.07265) keeps the experts with the largest sums of gate weights in
    a batch; SEER-MoE (arXiv 2404.05089) prunes once by such counts, others for each task (arXiv 2206.00277).

    Attributes:
        off: how many experts of a layer; 0 changes nothing.
        by: ``load``, assignments, or ``score``, gate weights.
        among: ``all`` tokens together; ``category``: for the requests of each category those that it uses
            least. Requests of unknown category count as one more.
        protect: experts that are never off.
        instead: as for ``mask``.
        of: ``batch``: each batch anew; ``trace``: the requests that the placement was fitted on, which are
            not replayed. For a category without any of them none is off.

    Raises:
        PolicyError: a parameter has a wrong type or value; applied to a layer with too few experts, or to a
            batch where the experts of a trace have not been found.
    """

    name: ClassVar[str] = "mask_least"

    off: int
    by: str = "load"
    among: str = "all"
    protect: tuple[int, ...] = field(default=(), metadata=EXPERTS)
    instead: str = "candidates"
    of: str = "batch"

    def __post_init__(self) -> None:
        integer("off", self.off, 0)
        choice("by", self.by, MEASURES)
        choice("among", self.among, GROUPS)
        choice("of", self.of, WINDOWS)
        object.__setattr__(self, "protect", _integers("protect", self.protect))
        choice("instead", self.instead, INSTEAD)

    @property
    def cost(self) -> Cost:
        """Counting in each batch, and telling others; then as ``mask``."""
        return _LISTED if self.of == "trace" else Cost(assignments=1, candidates=1, exchanges=1)

    @property
    def needs(self) -> frozenset[Need]:
        """What experts are measured by, and what takes their place."""
        needs = set(INSTEAD[self.instead])
        if self.by == "score":
            needs.add("weights")
        if self.among == "category":
            needs.add("categories")
        return frozenset(needs)

    def apply(self, batch: Batch) -> Outcome:
        """The batch without the least used experts.

        Raises:
            PolicyError: the batch lacks what the policy needs, or experts that may be off.
        """
        if self.of == "trace":
            rule = "must be batch where no trace is replayed: what it has is not known here"
            raise PolicyError(rule, field="routing.of", got=self.of)
        kind_T = _kind_T(self, self.among, batch)
        least_QO, _ = self._least(batch, kind_T)
        on_QE = np.ones((len(least_QO), batch.experts), np.bool_)
        np.put_along_axis(on_QE, least_QO, False, axis=1)
        return restrict(batch, self, self.instead, on_QE, kind_T)

    def listed(self, layers: Iterable[Batch]) -> Listed:
        """The experts that are off for good, found in all tokens that shall tell, layer by layer.

        Raises:
            PolicyError: as :meth:`apply`.
        """
        off, numbers = [], []
        for batch in layers:
            least_QO, seen_Q = self._least(batch, _kind_T(self, self.among, batch))
            pairs = zip(least_QO.tolist(), seen_Q.tolist(), strict=True)
            off.append(tuple(tuple(sorted(least)) if seen else () for least, seen in pairs))
            numbers.append(batch.layer)
        return Listed(tuple(off), tuple(numbers), self.among, self.instead)

    def _least(
        self, batch: Batch, kind_T: npt.NDArray[np.intp]
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
        """([Q, off]: the least used experts of each kind of tokens, [Q]: whether there is any such token)."""
        check_experts("protect", self.protect, batch)
        most = batch.experts - max(1, len(set(self.protect)))
        if self.off > most:
            rule = f"must be at most {most}: {batch.experts} experts, {len(set(self.protect))} protected"
            raise PolicyError(rule, field="routing.off", got=self.off)
        use_QE = self._use(batch, kind_T)
        seen_Q = np.bincount(kind_T, minlength=len(use_QE)) > 0
        use_QE[:, list(self.protect)] = np.inf
        return np.argsort(use_QE, axis=1, kind="stable")[:, : self.off], seen_Q

    def _use(self, batch: Batch, kind_T: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
        """[Q, E]: how much each kind of tokens uses each expert."""
        kinds = 1 + int(kind_T.max(initial=0))
        taken_TK = batch.ids_TK >= 0
        cell_TK = kind_T[:, None] * batch.experts + batch.ids_TK
        weights = weights_of(batch, self)[taken_TK] if self.by == "score" else None
        use = np.bincount(cell_TK[taken_TK], weights, minlength=kinds * batch.experts)
        return use.astype(np.float64).reshape(kinds, batch.experts)


@dataclass(frozen=True)
class Listed:
    """What ``mask_least`` found in a trace: other experts are off in each layer, maybe for each category.

    Of two layers the second; its expert 2 is off.

    >>> batch = Batch(np.array([[0, 2]], np.int16), None, np.array([0, 1]), experts=3, layer=4)
    >>> Listed((((0,),), ((2,),)), (3, 4), instead="nothing").apply(batch).ids_TK.tolist()
    [[0, -1]]

    Attributes:
        off: ids, by layer and by kind of request: one for ``all``, else unknown and each category; for those
            that are missing at the end none is off.
        layers: true indices of the layers.
        among, instead: as for ``mask_least``.
    """

    name: ClassVar[str] = MaskLeast.name
    cost: ClassVar[Cost] = _LISTED

    off: tuple[tuple[tuple[int, ...], ...], ...]
    layers: tuple[int, ...]
    among: str = "all"
    instead: str = "candidates"

    def __post_init__(self) -> None:
        off = tuple(
            tuple(_integers("off", kind) for kind in _items("off", layer, "lists"))
            for layer in _items("off", self.off, "lists")
        )
        object.__setattr__(self, "off", off)
        object.__setattr__(self, "layers", _integers("layers", self.layers))
        choice("among", self.among, GROUPS)
        choice("instead", self.instead, INSTEAD)
        if len(self.layers) != len(self.off):
            raise PolicyError("must have one for each entry of off", field="routing.layers", got=self.layers)

    @property
    def needs(self) -> frozenset[Need]:
        """Candidates to choose from, categories to tell requests apart."""
        return INSTEAD[self.instead] | ({"categories"} if self.among == "category" else set())

    def apply(self, batch: Batch) -> Outcome:
        """The batch without the experts that are off.

        Raises:
            PolicyError: the batch lacks what the policy needs, or is of a layer that is not listed.
        """
        if batch.layer not in self.layers:
            raise PolicyError("must list every layer", field="routing.layers", got=f"no layer {batch.layer}")
        off = self.off[self.layers.index(batch.layer)]
        kind_T = _kind_T(self, self.among, batch)
        on_QE = np.ones((max(len(off), 1 + int(kind_T.max(initial=0))), batch.experts), np.bool_)
        for kind, experts in enumerate(off):
            check_experts("off", experts, batch)
            on_QE[kind, list(experts)] = False
        return restrict(batch, self, self.instead, on_QE, kind_T)


def _kind_T(policy: Policy, among: str, batch: Batch) -> npt.NDArray[np.intp]:
    """Which mask each token has: 0 for all, or by category, 0 for an unknown one."""
    kind_T = np.zeros(len(batch.ids_TK), np.intp)
    if among == "category":
        kind_T[:] = categories_of(batch, policy)
        kind_T += 1
    return kind_T


def _integers(name: str, value: object) -> tuple[int, ...]:
    return tuple(integer(name, each, 0) for each in _items(name, value, "whole numbers"))


def _names(name: str, value: object) -> tuple[str, ...]:
    found = _items(name, value, "names")
    for each in found:
        if not isinstance(each, str):
            raise PolicyError("must be a list of names", field=f"routing.{name}", got=value)
    return tuple(str(each) for each in found)


def _items(name: str, value: object, what: str) -> Sequence[object]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise PolicyError(f"must be a list of {what}", field=f"routing.{name}", got=value)
    return value
