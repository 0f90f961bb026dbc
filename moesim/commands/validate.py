"""``moesim validate``: how far a simulation is from a real run on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moesim.commands.execute import Backend, Device, Ranks, Serial, told_when_interrupted
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
    tell,
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
    measured: Annotated[
        list[Path] | None,
        typer.Option(
            "--measured",
            metavar="FOLDER",
            help="What `python -m executor` wrote of the scenario's plan, instead of running it. Repeatable.",
        ),
    ] = None,
) -> None:
    """Run a scenario for real and simulate it: how far apart, phase by phase and rank by rank."""
    from functools import partial

    from moesim.deployment.deployment import deploy
    from moesim.errors import SpecError
    from moesim.live.execute import RunOptions, read_execution
    from moesim.live.scenario import MACHINES, executable
    from moesim.output import check_folder
    from moesim.report.real_folder import write_validation
    from moesim.report.validation_table import validation_tables
    from moesim.spec.profile import load_profile
    from moesim.spec.yaml_source import Source
    from moesim.studies.measured_elsewhere import measured_elsewhere, options_of
    from moesim.studies.validate import (
        MOST_LAUNCHES,
        REPEATS,
        calibrated_around,
        measured_machine,
        run_until_steady,
        validate,
        validation_result,
    )

    if out is not None:
        check_folder(out)
    if measured and profile is None:
        raise SpecError("needs --profile, calibrated on the same machine", field="--measured")
    executions = [read_execution(folder) for folder in measured or ()]
    options = RunOptions(device, backend, REPEATS, serial=serial)
    if executions:
        options = options_of(executions)
    asked = overrides(set_)
    how = ["--ranks", str(ranks), "--device", options.device, *(["--serial"] if options.serial else [])]
    command = command_line("validate", scenario, set_, None, *how)
    machine = None if profile is None else load_profile(profile, Source(None, None, {}), ("--profile",))
    here = partial(MACHINES[device], serial=serial) if machine is None else measured_machine(machine, options)
    chosen = executable(scenario, asked, ranks, here)
    for note in chosen.notes:
        tell(f"moesim: note: {note}")
    with faults_of(scenario):
        deployment = deploy(chosen.scenario)
    what = "running" if machine else "calibrating and running"
    if executions:
        seen = measured_elsewhere(deployment, executions)
    else:
        with told_when_interrupted(), progress(what, MOST_LAUNCHES) as advance:
            if machine is None:
                machine, seen = calibrated_around(deployment, options, command, advance)
                chosen = executable(scenario, asked, ranks, measured_machine(machine, options))
                deployment = deploy(chosen.scenario)
            else:
                seen = run_until_steady(deployment, options, advance)
    done = validate(deployment, seen, options)
    result = validation_result(done, chosen, options, command)
    if out is not None:
        write_validation(out, done, result)
    show(result.plain(), lambda: validation_tables(result), as_json, out)
