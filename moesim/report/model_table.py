"""What ``moesim presets model`` prints."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby, pairwise
from typing import Any

from rich.console import RenderableType

from moesim.report.table import Table, numbers, words
from moesim.report.terminal import bold, spaced
from moesim.units import format_bytes

_PARTS = (
    ("attention", "attention", "attention", "weights"),
    ("dense layers", "dense", "dense", "weights"),
    ("shared experts", "shared_experts", "shared", "weights"),
    ("routers", "routers", "routers", "activations"),
    ("experts", "experts", "experts", "experts"),
    ("embeddings and head", "embeddings", "embeddings", "activations"),
)
"""A part's name, its keys among parameters and bytes, and whose dtype it has."""


def model_tables(facts: Mapping[str, Any]) -> list[RenderableType]:
    """The model in a sentence, its parts, and its layers by kind."""
    parameters, experts = facts["parameters"], facts["experts"]
    groups = f", {experts['groups']} groups" if experts["groups"] > 1 else ""
    head = (
        f"{facts['name'] or 'unnamed'}: {_billions(parameters['total'])} parameters, "
        f"{_billions(parameters['active'])} active; {experts['count']} experts top-{experts['top_k']} of "
        f"width {experts['width']}{groups}; hidden {facts['hidden']}, vocabulary {facts['vocab']:,}"
    )
    cache = f"KV cache: {format_bytes(facts['kv_bytes_per_token'])} a token in {facts['dtypes']['kv']}"
    if facts["state_bytes_per_sequence"]:
        cache += f", and {format_bytes(facts['state_bytes_per_sequence'])} of states a sequence"
    return spaced(
        [
            bold(head),
            f"source: {facts['source'] or 'not stated'}",
            Table(
                [*words("part"), *numbers("parameters", "weights"), *words("dtype")],
                [
                    [
                        name,
                        _billions(parameters["by_part"][count]),
                        format_bytes(facts["weight_bytes"]["by_part"][size]),
                        facts["dtypes"][dtype],
                    ]
                    for name, count, size, dtype in _PARTS
                    if parameters["by_part"][count]
                ],
                caption=f"all weights: {format_bytes(facts['weight_bytes']['total'])}. {cache}",
            ),
            Table(
                [*words("attention", "then"), *numbers("layers"), *words("which")],
                [
                    [each["attention"], each["feed_forward"], str(each["count"]), ranges(each["layers"])]
                    for each in facts["layers"]
                ],
            ),
        ]
    )


def _billions(count: int) -> str:
    return f"{count / 1e9:,.2f} B" if count >= 1e7 else f"{count / 1e6:,.2f} M"


def ranges(layers: list[int]) -> str:
    """Ascending numbers as ranges, with a step where it is regular.

    >>> ranges([0, 1, 2, 5]), ranges([3, 7, 11, 15]), ranges([4])
    ('0-2, 5', '3, 7, … 15', '4')
    """
    steps = {after - before for before, after in pairwise(layers)}
    if len(layers) > 3 and len(steps) == 1 and steps != {1}:
        return f"{layers[0]}, {layers[1]}, … {layers[-1]}"
    parts = []
    for _, group in groupby(enumerate(layers), lambda pair: pair[1] - pair[0]):
        run = [layer for _, layer in group]
        parts.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
    most = 8
    return ", ".join(parts if len(parts) <= most else [*parts[: most - 1], f"… {parts[-1]}"])
