"""A placement: which expert each slot holds, and on which GPU each slot lies."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from placement.problem.errors import PlacementError
from traces.base.arrays import Floats, Int16s, Int32s, ranks

EMPTY = -1
"""Marks a slot that holds no expert."""

MAX_EXPERTS = np.iinfo(np.int16).max
"""Expert ids are int16 everywhere, as in routing traces."""

MAX_GPUS, MAX_SLOTS, MAX_LAYERS = 4_096, 65_536, 65_536
"""Far above any deployment; keep a wrong file from asking for absurd amounts of memory."""

MAX_TABLE = 1 << 27
"""Most entries of a replica table (512 MiB of int32)."""


@dataclass(frozen=True, eq=False)
class Placement:
    """The experts of every MoE layer on the slots of a group of GPUs.

    Two GPUs with three slots each, four experts, expert 1 twice, one slot left empty:

    >>> slot_expert_LS, slot_gpu_S = np.array([[0, 1, 2, 1, 3, -1]]), np.array([0, 0, 0, 1, 1, 1])
    >>> placement = Placement(slot_expert_LS, slot_gpu_S, experts=4, gpus=2, layers=(3,))
    >>> placement.replicas_LE
    array([[1, 2, 1, 1]], dtype=int32)
    >>> placement.gpu_load_LG([[30.0, 20.0, 10.0, 40.0]])
    array([[50., 50.]])

    Attributes:
        slot_expert_LS: int16 [L, S], the expert in each slot, −1 for an empty slot. Read-only.
        slot_gpu_S: int32 [S], the GPU of each slot, in any order; GPUs may hold unequal numbers of
            slots, or none. Read-only.
        experts: E, logical experts of a layer; each of them is in at least one slot of every layer.
        gpus: G, GPUs of the expert-parallel group.
        layers: the true index in the model of each of the L layers, ascending.
        origin: what made it: the solver and what it was fitted on.

    Arrays of any integer type are accepted; they are copied, never shared.

    Raises:
        PlacementError: a shape, id or GPU is out of range, or a layer lacks an expert.
    """

    slot_expert_LS: Int16s
    slot_gpu_S: Int32s
    experts: int
    gpus: int
    layers: tuple[int, ...]
    origin: str = ""

    def __post_init__(self) -> None:
        _check_count("experts", self.experts, MAX_EXPERTS)
        _check_count("gpus", self.gpus, MAX_GPUS)
        layers = _checked_layers(self.layers)
        if not isinstance(self.origin, str) or not self.origin.isprintable():
            raise PlacementError("must be one line of printable text", field="origin", got=self.origin)
        slot_gpu_S = _integers("slot_gpu", self.slot_gpu_S, "[slots]", dimensions=1)
        slot_expert_LS = _integers("slot_expert", self.slot_expert_LS, "[layers, slots]", dimensions=2)
        _check_slots(slot_gpu_S, self.gpus)
        _check_experts(slot_expert_LS, len(slot_gpu_S), self.experts, layers)
        for name, array in (
            ("slot_expert_LS", slot_expert_LS.astype(np.int16)),
            ("slot_gpu_S", slot_gpu_S.astype(np.int32)),
        ):
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        object.__setattr__(self, "layers", layers)

    def __eq__(self, other: object) -> bool:
        """Equal in every field, ``origin`` included."""
        if not isinstance(other, Placement):
            return NotImplemented
        return (
            (self.experts, self.gpus, self.layers, self.origin)
            == (other.experts, other.gpus, other.layers, other.origin)
            and np.array_equal(self.slot_expert_LS, other.slot_expert_LS)
            and np.array_equal(self.slot_gpu_S, other.slot_gpu_S)
        )

    @property
    def slots(self) -> int:
        """S, slots of all GPUs together."""
        return len(self.slot_gpu_S)

    @functools.cached_property
    def replicas_LE(self) -> Int32s:
        """int32 [L, E], in how many slots of its layer each expert is. At least 1, read-only."""
        replicas_LE = _replicas(self.slot_expert_LS, self.experts)
        replicas_LE.flags.writeable = False
        return replicas_LE

    def replica_table(self) -> tuple[Int32s, Int32s]:
        """Where the replicas of each expert are; read-only.

        Returns:
            (count_LE, slots_LER): int32 [L, E] replicas of each expert, and int32 [L, E, R] their
            slots, ascending; R is the largest count, and what lies beyond an expert's count is −1.

        Raises:
            PlacementError: one expert has so many replicas that the table would be absurdly large.
        """
        return self._table

    @functools.cached_property
    def _table(self) -> tuple[Int32s, Int32s]:
        count_LE = self.replicas_LE
        most = int(count_LE.max())
        if count_LE.size * most > MAX_TABLE:
            raise PlacementError("too many replicas of one expert for a table of replicas", got=most)
        slots_LER = np.full((*count_LE.shape, most), -1, dtype=np.int32)
        for row, slot_expert_S in enumerate(self.slot_expert_LS):
            filled_N = np.flatnonzero(slot_expert_S != EMPTY)
            expert_N = slot_expert_S[filled_N]
            slots_LER[row, expert_N, ranks(expert_N)] = filled_N
        slots_LER.flags.writeable = False
        return count_LE, slots_LER

    def gpu_load_LG(self, load_LE: npt.ArrayLike) -> Floats:
        """float64 [L, G], the load of each GPU when every expert's load divides evenly over its replicas.

        Raises:
            PlacementError: ``load_LE`` has another shape.
        """
        load = np.asarray(load_LE, dtype=np.float64)
        if load.shape != self.replicas_LE.shape:
            raise PlacementError(
                f"must have shape [{len(self.layers)} layers, {self.experts} experts]",
                field="load",
                got=load.shape,
            )
        return self.gpu_sum_LG(load / self.replicas_LE)

    def gpu_sum_LG(self, copy_LE: Floats) -> Floats:
        """float64 [L, G], the sum over a GPU's slots of what one copy of the expert in each counts."""
        bins_LS = np.arange(len(self.layers))[:, None] * self.gpus + self.slot_gpu_S
        sum_N = np.bincount(bins_LS.ravel(), self.in_slots(copy_LE).ravel(), len(self.layers) * self.gpus)
        return sum_N.astype(np.float64, copy=False).reshape(len(self.layers), self.gpus)

    def in_slots(self, copy_XLE: Floats) -> Floats:
        """float64 [..., L, S], what one copy of the expert in each slot counts, 0 where it is empty."""
        rows_L = np.arange(len(self.layers))[:, None]
        return np.where(self.slot_expert_LS == EMPTY, 0.0, copy_XLE[..., rows_L, self.slot_expert_LS])

    def check_fits(self, experts: int, gpus: int, layers: tuple[int, ...]) -> None:
        """Refuse a placement that was made for another model or another group of GPUs.

        Raises:
            PlacementError: experts, GPUs or layers differ.
        """
        for field, here, wanted in (("experts", self.experts, experts), ("gpus", self.gpus, gpus)):
            if here != wanted:
                raise PlacementError(f"the placement must be for {wanted}", field=field, got=here)
        if self.layers != layers:
            raise PlacementError(
                f"the placement must be for {_brief(layers)}", field="layers", got=_brief(self.layers)
            )


def _replicas(slot_expert_LS: Int16s, experts: int) -> Int32s:
    """int32 [L, E], occurrences of each expert in each layer's slots."""
    layers = len(slot_expert_LS)
    # Empty slots fall into a bin of their own, cut off again.
    bins_LS = np.arange(layers)[:, None] * (experts + 1) + 1 + slot_expert_LS
    counts = np.bincount(bins_LS.ravel(), minlength=layers * (experts + 1))
    return np.ascontiguousarray(counts.reshape(layers, experts + 1)[:, 1:], dtype=np.int32)


def _check_count(field: str, value: int, most: int) -> None:
    if type(value) is not int or not 1 <= value <= most:
        raise PlacementError(f"must be an integer from 1 to {most}", field=field, got=value)


def _checked_layers(layers: Iterable[int]) -> tuple[int, ...]:
    indices = tuple(layers)
    if not indices:
        raise PlacementError("must name at least one layer", field="layers")
    previous = -1
    for position, layer in enumerate(indices):
        if type(layer) is not int or not previous < layer < MAX_LAYERS:
            raise PlacementError(
                f"layer indices must be integers from 0 to {MAX_LAYERS - 1}, ascending",
                field=f"layers[{position}]",
                got=layer,
            )
        previous = layer
    return indices


def _integers(
    field: str, values: npt.NDArray[np.integer], axes: str, *, dimensions: int
) -> npt.NDArray[np.integer]:
    array = np.asarray(values)
    if array.ndim != dimensions or array.size == 0 or not np.issubdtype(array.dtype, np.integer):
        raise PlacementError(
            f"must be integers of shape {axes}, not empty",
            field=field,
            got=f"{array.dtype} {array.shape}",
        )
    return array


def _check_slots(slot_gpu_S: npt.NDArray[np.integer], gpus: int) -> None:
    if len(slot_gpu_S) > MAX_SLOTS:
        raise PlacementError(f"must be at most {MAX_SLOTS} slots", field="slot_gpu", got=len(slot_gpu_S))
    bad = (slot_gpu_S < 0) | (slot_gpu_S >= gpus)
    if bad.any():
        slot = int(bad.argmax())
        raise PlacementError(
            f"must be a GPU from 0 to {gpus - 1}", field=f"slot_gpu[{slot}]", got=slot_gpu_S[slot]
        )


def _check_experts(
    slot_expert_LS: npt.NDArray[np.integer], slots: int, experts: int, layers: tuple[int, ...]
) -> None:
    if slot_expert_LS.shape != (len(layers), slots):
        raise PlacementError(
            f"must have shape [{len(layers)} layers, {slots} slots]",
            field="slot_expert",
            got=slot_expert_LS.shape,
        )
    bad = (slot_expert_LS < EMPTY) | (slot_expert_LS >= experts)
    if bad.any():
        row, slot = (int(index) for index in np.unravel_index(bad.argmax(), bad.shape))
        raise PlacementError(
            f"must be an expert from 0 to {experts - 1}, or -1 for an empty slot",
            field=f"slot_expert, layer {layers[row]}, slot {slot}",
            got=slot_expert_LS[row, slot],
        )
    if slots < experts:
        # Asked before the experts are counted, so that memory stays in proportion to the input.
        raise PlacementError(
            "more experts than slots", field="slot_expert", got=f"{experts} on {slots} slots"
        )
    missing = _replicas(slot_expert_LS.astype(np.int16), experts) == 0
    if missing.any():
        row, expert = (int(index) for index in np.unravel_index(missing.argmax(), missing.shape))
        raise PlacementError(f"layer {layers[row]}: expert {expert} is in no slot", field="slot_expert")


def _brief(layers: tuple[int, ...]) -> str:
    """How many, and the two ends: models that differ mostly differ in these."""
    return f"{len(layers)} layers from {layers[0]} to {layers[-1]}" if layers else "no layers"
