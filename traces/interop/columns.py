"""What the columns of routing and of counts are called: our names, and plain synonyms in use elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from traces.base.errors import MoesimError, named

ROUTING: Mapping[str, tuple[str, ...]] = {
    "token": ("position", "pos", "token_idx", "token_index", "token_pos", "token_position", "token"),
    "layer": ("layer", "layer_id", "layer_idx", "layer_index"),
    "experts": (
        *("experts", "expert_ids", "expert_indices", "topk_ids", "top_k_ids", "topk_idx", "topk_indices"),
        *("topk_experts", "selected_experts", "selected_expert_ids"),
        *("activated_experts", "activated_expert_ids"),
    ),
    "weights": (
        *("weights", "expert_weights", "gate_weights", "router_weights", "routing_weights"),
        *("topk_weights", "top_k_weights"),
    ),
    "request": (
        *("request", "request_id", "req_id", "sequence", "sequence_id", "seq_id", "prompt_id"),
        *("batch_number", "batch_id"),
    ),
}
"""Columns of rows with a token's choice in one layer, the surest name first: a token may also be a word."""

COUNTS: Mapping[str, tuple[str, ...]] = {
    "layer": ROUTING["layer"],
    "expert": ("expert", "expert_id", "expert_idx", "expert_index", "logical_expert_id"),
    "count": ("count", "counts", "load", "token_count", "num_tokens", "tokens"),
}
"""Columns of rows with the count of one expert."""


def found_columns(names: Iterable[str], known: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Which of ``names`` is which column; those that are none are left out.

    >>> found_columns(["Layer ID", "Token", "Activated Expert IDs", "text"], ROUTING)
    {'token': 'Token', 'layer': 'Layer ID', 'experts': 'Activated Expert IDs'}
    """
    theirs = {re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_"): name for name in names}
    columns = {}
    for ours, synonyms in known.items():
        match = next((theirs[each] for each in synonyms if each in theirs), None)
        if match is not None:
            columns[ours] = match
    return columns


def require_columns(
    columns: Mapping[str, str],
    needed: Iterable[str],
    names: Iterable[str],
    known: Mapping[str, tuple[str, ...]],
    error: type[MoesimError],
    file: Path,
) -> None:
    """Refuse rows that lack a column, with what it may be called and what is there.

    Raises:
        MoesimError: of class ``error``: a column of ``needed`` is not among ``columns``.
    """
    for ours in needed:
        if ours not in columns:
            also = ", ".join(each for each in known[ours] if each != ours)
            rule = f"lacks column {ours} (or {also}); it has {named(names)}"
            raise error(rule, file=file)
