"""What each of several policies did to what the router chose, on the page of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from moesim.analysis.result_file import Stage
from moesim.report.breakdown import table
from moesim.report.findings import percent
from moesim.report.markup import Markup, tag

SHARES: Final = ("kept", "rerouted", "dropped", "added", "gate_mass_lost")
"""Of a stage, as fractions; the last is None without gate weights."""


def stage_shares(stage: Stage) -> list[float | None]:
    """In the order of ``SHARES``."""
    return [getattr(stage, name) for name in SHARES]


def stage_table(stages: Sequence[Stage]) -> Markup:
    """A row for each policy, in the order in which they are applied: shares after it."""
    rows = [
        tag(
            "tr",
            tag("td", stage.policy),
            *(
                tag("td", "–" if share is None else percent(share), class_="n")
                for share in stage_shares(stage)
            ),
        )
        for stage in stages
    ]
    return table(["after policy"], [name.replace("_", " ") for name in SHARES], rows)
