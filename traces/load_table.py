"""The load table: how many tokens each expert got in each layer, in each window of time.

What serving systems report where they do not record tokens. Enough to place experts, not to replay:
which experts a token chose together is lost. Counts are whole; averages of them are loads too. Described
in ``docs/trace-format.md``.

Axes: W windows in time order, L MoE layers, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from traces.base.arrays import Array
from traces.base.errors import LoadTableError, TraceError
from traces.meta import TraceMeta

if TYPE_CHECKING:
    from pathlib import Path


HEADER = ("model", "experts", "layers", "origin", "licence")
MAX_LOAD = 2**53  # of a layer in total: float64 still counts it exactly

Loads = Array
"""Counts in int64, or float64 where some are averages."""


@dataclass(frozen=True, eq=False)
class LoadTable:
    """Assignments of each expert; every layer has at least one.

    Attributes:
        model: the model's name; may be empty where it is unknown.
        experts: E.
        layers: true indices of the MoE layers in the model, ascending.
        load_WLE: assignments, int64, or float64 where some are not whole.
        origin: where the counts come from.
        licence: under which terms they may be passed on; empty where it is unknown.
        hidden_layers: all layers of the model, dense ones included; None where nothing tells.
    """

    model: str
    experts: int
    layers: tuple[int, ...]
    load_WLE: Loads
    origin: str = ""
    licence: str = ""
    hidden_layers: int | None = None

    @property
    def windows(self) -> int:
        """W."""
        return len(self.load_WLE)

    @property
    def load_LE(self) -> Loads:
        """Assignments over all windows, [L, E]."""
        total: Loads = self.load_WLE.sum(axis=0)
        return total

    @property
    def header(self) -> dict[str, Any]:
        """All but the loads."""
        known = {} if self.hidden_layers is None else {"hidden_layers": self.hidden_layers}
        return {name: getattr(self, name) for name in HEADER} | known

    def validate(self, *, file: str | Path | None = None) -> None:
        """Check every rule of the format.

        Raises:
            LoadTableError: naming file, layer, window, expert, rule and value.
        """
        check_header(self.header, file=file)
        if self.load_WLE.dtype not in (np.int64, np.float64):
            raise LoadTableError("must be int64 or float64", file=file, field="load", got=self.load_WLE.dtype)
        shape = self.load_WLE.shape
        if shape[1:] != (len(self.layers), self.experts) or shape[0] == 0:
            rule = f"must have shape [at least 1, {len(self.layers)}, {self.experts}]"
            raise LoadTableError(rule, file=file, field="load", got=shape)
        for rule, broken_WLE in (
            ("must be finite", ~np.isfinite(self.load_WLE)),
            ("must not be negative", self.load_WLE < 0),
        ):
            if broken_WLE.any():
                window, row, expert = np.argwhere(broken_WLE)[0].tolist()
                place = f"load, window {window}, layer {self.layers[row]}, expert {expert}"
                got = self.load_WLE[window, row, expert]
                raise LoadTableError(rule, file=file, field=place, got=got)
        # Summed as floats, which cannot overflow.
        total_L = self.load_WLE.sum(axis=(0, 2), dtype=np.float64)
        for layer, total in zip(self.layers, total_L.tolist(), strict=True):
            if total == 0:
                raise LoadTableError("has no load in any window", file=file, field=f"load, layer {layer}")
            if total > MAX_LOAD:
                rule = "must sum to at most 2^53"
                raise LoadTableError(rule, file=file, field=f"load, layer {layer}", got=int(total))


def check_header(header: dict[str, Any], *, file: str | Path | None = None) -> None:
    """The rules that a load table shares with a trace's metadata.

    Raises:
        LoadTableError: a value breaks one.
    """
    try:
        TraceMeta(top_k=1, **header)
    except TraceError as error:
        raise LoadTableError(error.rule, file=file, field=error.field, got=error.got) from error


def drop_idle_layers(load_WLE: Loads) -> tuple[tuple[int, ...], Loads]:
    """The layers with any load, by index, and their loads.

    Serving systems count all hidden layers, so that dense ones are rows of zeros (DeepSeek-V3: 61
    rows, of which 0 to 2 are zero).
    """
    active = np.flatnonzero(load_WLE.any(axis=(0, 2)))
    return tuple(active.tolist()), np.ascontiguousarray(load_WLE[:, active])


def whole_where_whole(load: Array) -> Loads:
    """Loads as int64 where all of them are whole numbers that it holds, else as float64.

    >>> whole_where_whole(np.array([3.0, 0.0])), whole_where_whole(np.array([0.5]))
    (array([3, 0]), array([0.5]))
    """
    if load.dtype.kind in "iu":
        return load.astype(np.int64)
    real: Loads = load.astype(np.float64)
    if np.isfinite(real).all() and (real == np.floor(real)).all() and (np.abs(real) <= MAX_LOAD).all():
        return real.astype(np.int64)
    return real


def to_counts(found: Any, *, file: str | Path, field: str) -> Loads:
    """Nested lists, windows × layers × experts or layers × experts, as [W, L, E].

    Raises:
        LoadTableError: not such lists, of unequal lengths, or not numbers below 2^63.
    """
    windows = found if _depth(found) == 3 else [found]
    size: tuple[int, int] | None = None
    real = False
    for window, layers in enumerate(windows):
        if not isinstance(layers, list) or not layers:
            raise _not_counts(file, field)
        for row, counts in enumerate(layers):
            if not isinstance(counts, list) or not counts:
                raise _not_counts(file, field)
            size = size or (len(layers), len(counts))
            if (len(layers), len(counts)) != size:
                rule = f"every window must have {size[0]} layers, and every layer {size[1]} experts"
                at = f"{field}, window {window}, row {row}"
                raise LoadTableError(rule, file=file, field=at, got=f"{len(layers)} and {len(counts)}")
            for expert, count in enumerate(counts):
                if type(count) not in (int, float) or not -(2**63) <= count < 2**63:
                    at = f"{field}, window {window}, row {row}, expert {expert}"
                    raise LoadTableError("must be a number below 2^63", file=file, field=at, got=count)
                real = real or type(count) is float
    return whole_where_whole(np.array(windows, np.float64 if real else np.int64))


def _not_counts(file: str | Path, field: str) -> LoadTableError:
    return LoadTableError("must be lists [layers][experts] of numbers", file=file, field=field)


def _depth(found: Any) -> int:
    depth = 0
    while isinstance(found, list) and depth < 4:
        depth += 1
        found = found[0] if found else None
    return depth
