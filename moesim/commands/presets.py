"""``moesim presets``: what is built in, and what a model is."""

from __future__ import annotations

from typing import Annotated

import typer

from moesim.commands.terminal import AsJson, show


def presets(
    kind: Annotated[
        str | None, typer.Argument(metavar="[KIND]", help="Only this kind; or model, to look at one.")
    ] = None,
    path: Annotated[
        str | None,
        typer.Argument(
            metavar="[PATH]", help="With model: a preset, a config.json or the folder of one, or YAML."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What is built in, with sources; with model PATH what is read of a model."""
    from moesim.errors import SpecError

    if kind == "model":
        from moesim.report.model_table import model_tables
        from moesim.studies.model_facts import model_at, model_facts

        if path is None:
            rule = "needs a PATH: a preset's name, a config.json or its folder, or YAML of your own"
            raise SpecError(rule, field="presets model")
        facts = model_facts(model_at(path))
        show(facts, lambda: model_tables(facts), as_json, None)
        return
    if path is not None:
        raise SpecError("takes no path; only model does", field="presets", got=path)
    from moesim.report.preset_table import preset_tables
    from moesim.studies.presets import catalogue

    found = catalogue(kind)
    show(found, lambda: preset_tables(found), as_json, None)
