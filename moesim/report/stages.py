"""What each of several policies did to what the router chose, on the page of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from moesim.report.breakdown import table
from moesim.report.findings import percent
from moesim.report.markup import Markup, tag

SHARES: Final = ("kept", "rerouted", "dropped", "added", "gate_mass_lost")
"""Of a stage, as fractions; the last is None without gate weights."""


def stage_table(stages: Sequence[Mapping[str, Any]]) -> Markup:
    """A row for each policy, in the order in which they are applied: shares after it."""
    rows = [
        tag(
            "tr",
            tag("td", stage["policy"]),
            *(tag("td", "–" if stage[name] is None else percent(stage[name]), class_="n") for name in SHARES),
        )
        for stage in stages
    ]
    return table(["after policy"], [name.replace("_", " ") for name in SHARES], rows)
