"""``moesim presets``: what is built in."""

from __future__ import annotations

from typing import Annotated

import typer

from moesim.commands.terminal import AsJson, show


def presets(
    kind: Annotated[str | None, typer.Argument(metavar="[KIND]", help="Only this kind.")] = None,
    as_json: AsJson = False,
) -> None:
    """What is built in, with sources."""
    from moesim.report.preset_table import preset_tables
    from moesim.studies.presets import catalogue

    found = catalogue(kind)
    show(found, lambda: preset_tables(found), as_json, None)
