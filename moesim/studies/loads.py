"""The loads that a placement is made for, and those kept back to judge it by.

Axes: W windows, L MoE layers, E experts, T tokens of a sample, K experts of a token.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moesim.errors import SpecError
from moesim.spec.model import Model
from moesim.spec.presets import load_model, preset_names
from moesim.spec.yaml_source import Source as Text
from traces.base.arrays import Floats, Ints
from traces.interop import open_source
from traces.interop.hints import Hints
from traces.load_table import LoadTable
from traces.routing import RoutingTrace
from traces.statistics import expert_loads

HELD_OUT = 0.25
"""Kept back where nothing is said and there is more than one part to split."""

_MOST_WINDOWS = 8
"""Cut where nothing is said; more change little and take longer in proportion."""

# Solvers that look at tokens take as many; more change little and take longer in proportion.
_SAMPLE_TOKENS = 16_384


@dataclass(frozen=True, eq=False)
class Loads:
    """Loads of some requests of a trace, or of some windows of a load table.

    Attributes:
        load_WLE: float64, tokens of each expert in each window.
        sample_TLK: int64, experts of tokens spread over the trace; None where tokens are not known.
        trace: the requests themselves.
        what: in words.
    """

    load_WLE: Floats
    sample_TLK: Ints | None
    trace: RoutingTrace | None
    what: str


@dataclass(frozen=True, eq=False)
class Source:
    """A file of loads, cut in two.

    Attributes:
        model: its name, empty where the file does not tell.
        layers: true index of each MoE layer.
        hidden_layers: all layers of the model, None where the file does not tell.
        seen, unseen: what a solver gets, and what is kept back; None where nothing is.
    """

    file: Path
    model: str
    experts: int
    layers: tuple[int, ...]
    hidden_layers: int | None
    seen: Loads
    unseen: Loads | None

    def check_model(self, model: Model, *, file: str | Path, field: str) -> None:
        """Refuse a model of another shape.

        Args:
            file, field: where it was named.

        Raises:
            SpecError: its experts or MoE layers are others than those of the loads.
        """
        if (model.experts.count, model.moe_layers) != (self.experts, self.layers):
            raise SpecError(
                f"has {_shape(model.experts.count, model.moe_layers)}; the loads have "
                f"{_shape(self.experts, self.layers)}",
                file=file,
                field=field,
                got=model.name,
            )


def known_model(name: str | None, source: Source) -> Model | None:
    """The model that is named, or the preset that the source names; None where neither is.

    Raises:
        SpecError: no such model, or it is of another shape.
    """
    if name is None and source.model not in preset_names("models"):
        return None
    model = load_model(name or source.model, Text(name, None, {}))
    source.check_model(model, file=source.file, field="--model")
    return model


def read_source(
    file: Path, hints: Hints, *, hold_out: float | None = None, windows: int | None = None
) -> Source:
    """Read a trace, a load table, or a file of a serving system.

    Args:
        hints: what a foreign file does not tell.
        hold_out: fraction of the requests, or of a load table's windows, that is kept back: the last ones.
        windows: into how many windows the others are cut, of about as many requests or windows each; by
            default into windows as large as what is kept back, for that is what is to come.

    Raises:
        MoesimError: the file holds no loads, or too little for what is asked.
    """
    opened = open_source(file, hints)
    if isinstance(opened, LoadTable):
        return _table(file, opened, hold_out, windows)
    if isinstance(opened, RoutingTrace):
        return _trace(file, opened, hold_out, windows)
    with opened:
        return _trace(file, opened.read(), hold_out, windows)


def _trace(file: Path, trace: RoutingTrace, hold_out: float | None, windows: int | None) -> Source:
    cuts, rest = _cuts(file, len(trace.request_offsets) - 1, "requests", hold_out, windows)
    unseen = _of_requests(trace, rest) if rest else None
    meta = trace.meta
    seen = _of_requests(trace, cuts)
    return Source(file, meta.model, meta.experts, meta.layers, meta.hidden_layers, seen, unseen)


def _of_requests(trace: RoutingTrace, cuts: list[int]) -> Loads:
    part = trace.select_requests(cuts[0], cuts[-1])
    load_WLE = np.stack([expert_loads(trace.select_requests(*pair)) for pair in itertools.pairwise(cuts)])
    chosen_N = np.linspace(0, part.tokens - 1, min(part.tokens, _SAMPLE_TOKENS)).astype(np.int64)
    what = _span("request", cuts)
    return Loads(load_WLE.astype(np.float64), part.ids_TLK[chosen_N].astype(np.int64), part, what)


def _table(file: Path, table: LoadTable, hold_out: float | None, windows: int | None) -> Source:
    cuts, rest = _cuts(file, table.windows, "windows", hold_out, windows)
    unseen = _of_windows(table, rest) if rest else None
    seen = _of_windows(table, cuts)
    return Source(file, table.model, table.experts, table.layers, table.hidden_layers, seen, unseen)


def _of_windows(table: LoadTable, cuts: list[int]) -> Loads:
    load_WLE = np.add.reduceat(table.load_WLE[: cuts[-1]], cuts[:-1], axis=0)
    return Loads(load_WLE.astype(np.float64), None, None, _span("window", cuts))


def _span(name: str, cuts: list[int]) -> str:
    first, last, windows = cuts[0], cuts[-1] - 1, len(cuts) - 1
    span = f"{name} {first}" if first == last else f"{name}s {first} to {last}"
    return span if windows == 1 else f"{span} in {windows} parts"


def _cuts(
    file: Path, parts: int, name: str, hold_out: float | None, windows: int | None
) -> tuple[list[int], list[int]]:
    """[W + 1], where windows of about equally many parts begin and end, and what is kept back."""
    if hold_out is None:
        kept = max(1, round(parts * HELD_OUT)) if parts > 1 else 0
    else:
        kept = round(parts * hold_out)
        if hold_out > 0 and not 0 < kept < parts:
            raise SpecError(
                f"must leave something on either side of {parts} {name}",
                file=file,
                field="--hold-out",
                got=hold_out,
            )
    seen = parts - kept
    if windows is None:
        windows = min(_MOST_WINDOWS, max(1, int(seen // (kept or max(1.0, HELD_OUT * parts)))))
    if windows > seen:
        raise SpecError(f"there are only {seen} {name} to fit on", file=file, field="--windows", got=windows)
    return [part * seen // windows for part in range(windows + 1)], [seen, parts] if kept else []


def _shape(experts: int, layers: tuple[int, ...]) -> str:
    return f"{experts} experts in {len(layers)} layers from {layers[0]} to {layers[-1]}"
