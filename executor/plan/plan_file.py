"""Reading a plan from its folder. The format is described in ``docs/plan-format.md``.

Axes: as in :mod:`executor.plan.plan`.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from executor.plan.errors import PlanError
from executor.plan.plan import DTYPES, OVERLAPS, Kind, MoeShape, Others, Plan
from moesim.dispatch.modes import MODES
from moesim.routing.policies import policies_from
from moesim.routing.policy import check_needs, known_needs
from moesim.routing.replicas import REPLICA_CHOICES
from traces.base.door import require_file
from traces.base.errors import MoesimError
from traces.base.files import check_format
from traces.base.input_file import read_json
from traces.interop.npy import DAMAGED

_TIMES = 3
"""Bytes of memory for one of an array's file, while it is read and checked."""


def read_plan(folder: Path, *, imports: bool = False) -> Plan:
    """Read and validate a plan.

    Args:
        imports: whether it may name policies by import path, whose code then runs.

    Raises:
        PlanError: naming the file, the field or array, the rule and the value.
    """
    head = _Head(folder / "plan.json")
    model = head.part("model")
    shape = MoeShape(
        model.text("name"),
        model.integer("hidden", 1),
        model.integer("width", 1),
        model.flag("gated"),
        model.integer("experts", 1),
        model.integer("top_k", 1),
        model.integer("shared_width", 0),
        tuple(model.integers("layers")),
    )
    arrays = _Arrays(folder, head)
    shape = _of_kinds(shape, head, arrays)
    dispatch = head.part("dispatch")
    ranks, steps = head.integer("ranks", 1), head.integer("steps", 1)
    L, E, K = len(shape.layers), shape.experts, shape.top_k
    offsets_NG = arrays.load("offsets", np.int64, (steps, ranks + 1))
    slot_gpu_S = arrays.load("slot_gpu", np.int32, (None,))
    tokens, slots = int(offsets_NG[-1, -1]), len(slot_gpu_S)
    weighted = head.flag("weighted")
    plan = Plan(
        head.text("name"),
        shape,
        ranks,
        head.integer("ranks_per_node", 1),
        head.choice("dtype", DTYPES),
        dispatch.choice("mode", MODES),
        dispatch.flag("padded"),
        head.text("replicas"),
        head.routing(),
        head.integer("seed", 0),
        offsets_NG,
        arrays.load("ids", np.int16, (tokens, L, K)),
        arrays.load("weights", np.float32, (tokens, L, K)) if weighted else None,
        arrays.load("slot_expert", np.int16, (L, slots)),
        slot_gpu_S,
        arrays.load("replica_count", np.int32, (L, E)),
        arrays.load("replica_slots", np.int32, (L, E, None)),
        _others(head, arrays, tokens, shape),
        arrays.load("category", np.int16, (tokens,)) if "categories" in head.value else None,
        tuple(head.texts("categories")) if "categories" in head.value else (),
        tuple(head.texts("overlap")) if "overlap" in head.value else (),
    )
    _check(plan, head, imports)
    return plan


def _of_kinds(shape: MoeShape, head: _Head, arrays: _Arrays) -> MoeShape:
    """The shape with its kinds of experts, where their widths differ."""
    model = head.part("model")
    if "kinds" not in model.value:
        return shape
    listed, dtype = model.parts("kinds"), head.choice("dtype", DTYPES)
    unknown = sorted({key for kind in listed for key in kind.value} - {"name", "width", "dtype"})
    if unknown:  # what is passed over would be multiplied otherwise than it was simulated
        raise model.error("kinds", "have a field that no back end knows", got=", ".join(unknown))
    kinds = tuple(Kind(kind.text("name"), kind.integer("width", 1)) for kind in listed)
    other = [kind.text("name") for kind in listed if kind.text("dtype") != dtype]
    if other:
        rule = f"must have weights in {dtype}, the dtype of all that the plan multiplies"
        raise model.error("kinds", rule, got=", ".join(other))
    widest = max(kind.width for kind in kinds)
    if widest != shape.width:
        raise model.error("width", f"must be that of the widest kind, {widest}", got=shape.width)
    kind_LE = arrays.load("expert_kind", np.int16, (len(shape.layers), shape.experts))
    head.check_range("expert_kind", kind_LE, 0, len(kinds))
    if len({kind.width for kind in kinds}) == 1:
        return shape
    return replace(shape, kinds=kinds, kind_LE=tuple(map(tuple, kind_LE.tolist())))


def _others(head: _Head, arrays: _Arrays, tokens: int, shape: MoeShape) -> Others | None:
    if "candidates" not in head.value:
        return None
    described = head.part("candidates")
    size = (tokens, len(shape.layers), described.integer("count", 1))
    return Others(
        arrays.load("candidate_ids", np.int16, size),
        arrays.load("candidate_scores", np.float32, size),
        described.flag("logits"),
    )


def _check(plan: Plan, head: _Head, imports: bool) -> None:
    """What shapes alone do not say."""
    E, S, R = plan.model.experts, len(plan.slot_gpu_S), plan.slots_LER.shape[2]
    if plan.ranks % plan.ranks_per_node:
        raise head.error(
            "ranks_per_node", f"must divide the plan's {plan.ranks} ranks", got=plan.ranks_per_node
        )
    unknown = [name for name in plan.overlap if name not in OVERLAPS]
    if unknown:
        raise head.error("overlap", f"must be of: {', '.join(OVERLAPS)}", got=unknown[0])
    flat_N = plan.offsets_NG.ravel()
    if (
        flat_N[0] != 0
        or (np.diff(flat_N) < 0).any()
        or (plan.offsets_NG[1:, 0] != plan.offsets_NG[:-1, -1]).any()
    ):
        raise head.error("arrays.offsets", "must ascend from 0, each step from where the one before it ends")
    for name, array, low, high in (
        ("ids", plan.ids_TLK, 0, E),
        ("slot_expert", plan.slot_expert_LS, -1, E),
        ("slot_gpu", plan.slot_gpu_S, 0, plan.ranks),
        ("replica_count", plan.count_LE, 1, R + 1),
        ("replica_slots", plan.slots_LER, -1, S),
        ("category", plan.category_T, -1, len(plan.categories)),
        ("candidate_ids", None if plan.others is None else plan.others.ids_TLC, 0, E),
    ):
        if array is None:
            continue
        head.check_range(name, array, low, high)
    for name, values in (
        ("weights", plan.weights_TLK),
        ("candidate_scores", None if plan.others is None else plan.others.scores_TLC),
    ):
        if values is not None and not np.isfinite(values).all():
            raise head.error(f"arrays.{name}", "must be finite")
    held_LER = plan.slot_expert_LS[np.arange(len(plan.count_LE))[:, None, None], plan.slots_LER]
    counted_LER = np.arange(R) < plan.count_LE[:, :, None]
    wrong_LER = (plan.slots_LER < 0) | (held_LER != np.arange(E)[:, None])
    if (counted_LER & wrong_LER).any():
        raise head.error("arrays.replica_slots", "must name slots that hold the expert")
    _check_routing(plan, head, imports)


def _check_routing(plan: Plan, head: _Head, imports: bool) -> None:
    """The policy and the choice of replicas are known here, and have what they need."""
    if plan.replicas not in REPLICA_CHOICES:
        raise head.error("replicas", f"must be one of: {', '.join(REPLICA_CHOICES)}", got=plan.replicas)
    try:
        known = known_needs(
            weights=plan.weights_TLK is not None,
            candidates=plan.others is not None,
            categories=plan.category_T is not None,
        )
        check_needs(policies_from(plan.routing, imports=imports), known)
    except MoesimError as error:
        raise PlanError(error.rule, file=head.file, field=error.field, got=error.got) from error


class _Head:
    """Typed access to plan.json, or to one of its objects."""

    def __init__(self, file: Path, value: dict[str, Any] | None = None, at: str = "") -> None:
        self.file, self.at = file, at
        self.value = self._read() if value is None else value

    def _read(self) -> dict[str, Any]:
        value = read_json(self.file, "a plan", PlanError)
        check_format(value.get("format"), "plan", 2, file=self.file, error=PlanError, oldest=1)
        return value

    def error(self, field: str, rule: str, got: Any = ...) -> PlanError:
        return PlanError(rule, file=self.file, field=f"{self.at}{field}", got=got)

    def check_range(self, name: str, array: npt.NDArray[Any], low: int, high: int) -> None:
        """Refuse an array with values below ``low``, or from ``high`` on."""
        wrong = (array < low) | (array >= high)
        if wrong.any():
            got = int(array[wrong][0])
            raise self.error(f"arrays.{name}", f"must be from {low} to {high - 1}", got=got)

    def _get(self, field: str, kind: type | tuple[type, ...], what: str) -> Any:
        if field not in self.value:
            raise self.error(field, "is missing")
        value = self.value[field]
        # JSON's true is no number, though Python's is.
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.error(field, f"must be {what}", got=value)
        return value

    def text(self, field: str) -> str:
        return str(self._get(field, str, "text"))

    def flag(self, field: str) -> bool:
        return bool(self._get(field, bool, "true or false"))

    def mapping(self, field: str) -> dict[str, Any]:
        value: dict[str, Any] = self._get(field, dict, "an object")
        return value

    def routing(self) -> Mapping[str, Any] | Sequence[Any]:
        value: Mapping[str, Any] | Sequence[Any] = self._get("routing", (dict, list), "an object or a list")
        return value

    def texts(self, field: str) -> list[str]:
        value: list[Any] = self._get(field, list, "a list of texts")
        if not all(isinstance(each, str) for each in value):
            raise self.error(field, "must be a list of texts", got=value)
        return value

    def part(self, field: str) -> _Head:
        return _Head(self.file, self.mapping(field), f"{self.at}{field}.")

    def parts(self, field: str) -> list[_Head]:
        value: list[Any] = self._get(field, list, "a list of objects")
        if not value or not all(isinstance(each, dict) for each in value):
            raise self.error(field, "must be a list of objects", got=value)
        return [_Head(self.file, each, f"{self.at}{field}[{i}].") for i, each in enumerate(value)]

    def integer(self, field: str, low: int) -> int:
        value: int = self._get(field, int, "an integer")
        if not low <= value < 1 << 63:
            raise self.error(field, f"must be at least {low} and fit 64 bits", got=value)
        return value

    def integers(self, field: str) -> list[int]:
        value = self._get(field, list, "a list")
        ascending = all(type(x) is int for x in value) and all(a < b for a, b in itertools.pairwise(value))
        if not value or not ascending or value[0] < 0:
            raise self.error(field, "must be ascending integers from 0 on", got=value)
        return [int(x) for x in value]

    def choice(self, field: str, known: Collection[str]) -> str:
        value = self.text(field)
        if value not in known:
            raise self.error(field, f"must be one of: {', '.join(known)}", got=value)
        return value


class _Arrays:
    """The plan's ``NAME.npy`` files."""

    def __init__(self, folder: Path, head: _Head) -> None:
        self.folder, self.head = folder, head

    def load(self, name: str, dtype: Any, shape: tuple[int | None, ...]) -> npt.NDArray[Any]:
        """An array of just this dtype and shape; None stands for any length."""
        file = self.folder / f"{name}.npy"
        require_file(file, "a .npy array", PlanError, times=_TIMES)
        try:
            # Mapped first: a header may claim any shape, the file's size holds it to what is there.
            with warnings.catch_warnings(action="error"):  # of a header that Python 2 wrote, as no plan has
                array = np.lib.format.open_memmap(file, mode="r")
        except OSError as error:
            raise PlanError(f"cannot be read: {error.strerror or error}", file=file) from error
        except (*DAMAGED, UserWarning) as error:
            raise PlanError(f"is not a .npy array: {error}", file=file) from error
        fits = len(array.shape) == len(shape) and all(
            want in (None, have) for want, have in zip(shape, array.shape, strict=True)
        )
        if array.dtype != dtype or not fits or 0 in array.shape[:1]:
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise PlanError(
                f"must hold {np.dtype(dtype).name} of shape ({wanted})",
                file=file,
                got=f"{array.dtype} of shape {array.shape}",
            )
        return np.array(array, order="C")
