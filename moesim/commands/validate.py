"""``moesim validate``: how far a simulation is from a real run on this machine."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from moesim.commands.execute import Backend, Device, Ranks, Serial
from moesim.commands.terminal import (
    AsJson,
    Out,
    ScenarioName,
    Set,
    command_line,
    faults_of,
    overrides,
    progress,
    show,
)


def validate(
    scenario: ScenarioName,
    ranks: Ranks,
    set_: Set = None,
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile", metavar="FILE", help="What `moesim calibrate` wrote here; by default it runs first."
        ),
    ] = None,
    out: Out = None,
    as_json: AsJson = False,
    device: Device = "cpu",
    backend: Backend = None,
    serial: Serial = False,
) -> None:
    """Run a scenario for real and simulate it: how far apart, phase by phase and rank by rank."""
    from moesim.execution.execute import RunOptions
    from moesim.execution.scenario import executable
    from moesim.execution.validation import (
        MOST_LAUNCHES,
        REPEATS,
        calibrated_for,
        measured_machine,
        validate,
        validation_result,
        write_validation,
    )
    from moesim.hardware.profile import load_profile
    from moesim.output import check_folder
    from moesim.report.validation_table import validation_tables
    from moesim.simulation.deployment import deploy
    from moesim.spec.yaml_source import Source

    if out is not None:
        check_folder(out)
    options = RunOptions(device, backend, REPEATS, serial=serial)
    asked = overrides(set_)
    if profile is None:
        with progress("calibrating", 1):
            machine = calibrated_for(scenario, asked, ranks, options)
    else:
        machine = load_profile(profile, Source(None, None, {}), ("--profile",))
    chosen = executable(scenario, asked, ranks, measured_machine(machine, options))
    for note in chosen.notes:
        print(f"moesim: note: {note}", file=sys.stderr)
    with faults_of(scenario):
        deployment = deploy(chosen.scenario)
    with progress("running", MOST_LAUNCHES) as advance:
        done = validate(deployment, options, advance)
    result = validation_result(done, chosen, options)
    how = ["--ranks", str(ranks), "--device", device, *(["--serial"] if serial else [])]
    result["provenance"]["command"] = command_line("validate", scenario, set_, None, *how)
    if out is not None:
        write_validation(out, done, result)
    show(result, lambda: validation_tables(result), as_json, out)
