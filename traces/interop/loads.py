"""From the counts of a serving system to a load table."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from traces.base.errors import LoadTableError
from traces.interop.hints import Hints
from traces.load_table import Loads, LoadTable, drop_idle_layers


def to_table(
    load_WLE: Loads,
    hints: Hints,
    *,
    file: Path,
    origin: str,
    layers: tuple[int, ...] | None = None,
    hidden_layers: int | None = None,
) -> LoadTable:
    """The load table of ``load_WLE``; windows without any load are left out.

    Args:
        load_WLE: a row for each of ``layers``.
        layers: true indices of the rows; None = the MoE layers of the model that was named, where there
            are as many, else all hidden layers, of which those without any load are dense and left out.
        hidden_layers: all layers of the model, where the file tells them and ``layers`` are given.

    Raises:
        LoadTableError: nothing was counted, or the counts do not fit what the user said.
    """
    if layers is None:
        if hints.layers is not None and load_WLE.shape[1] == len(hints.layers):
            layers = hints.layers
        else:
            hidden_layers = load_WLE.shape[1]
    used_WLE = load_WLE[load_WLE.any(axis=(1, 2))]
    if not len(used_WLE):
        raise LoadTableError("has no load in any window", file=file)
    rows, used_WLE = drop_idle_layers(used_WLE)
    found = rows if layers is None else tuple(layers[row] for row in rows)
    experts = load_WLE.shape[2]
    if hints.experts not in (None, experts):
        raise LoadTableError(f"{hints.name} has {hints.experts} experts", file=file, got=experts)
    if hints.layers is not None and found != hints.layers:
        rule = (
            f"needs a row for each MoE layer of {hints.name} ({len(hints.layers)}, from {hints.layers[0]} to "
            f"{hints.layers[-1]}), or for each hidden layer with zeros in the dense ones"
        )
        got = f"load in {len(found)} of {load_WLE.shape[1]} rows, from {found[0]} to {found[-1]}"
        raise LoadTableError(rule, file=file, got=got)
    table = LoadTable(
        hints.model,
        experts,
        found,
        np.ascontiguousarray(used_WLE),
        hints.origin or origin,
        hints.licence,
        hints.hidden_layers or hidden_layers,
    )
    table.validate(file=file)
    return table
