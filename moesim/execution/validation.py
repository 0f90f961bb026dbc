"""A scenario run for real and simulated, and how far apart the two are."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numba
import numpy as np

from moesim import __version__
from moesim.analysis.counts import same_counts
from moesim.analysis.notes import notes
from moesim.analysis.result import trace_facts
from moesim.analysis.validation import Validation, compare
from moesim.calibration.design import Settings
from moesim.calibration.files import calibrated, write_profile
from moesim.errors import SpecError
from moesim.execution.execute import RunOptions, execute
from moesim.execution.on_network import on_simulated_network
from moesim.execution.plan import write_plan
from moesim.execution.repeats import join_repeats
from moesim.execution.scenario import MACHINES, Executable, Machine, crowded, executable
from moesim.hardware.profile import Profile
from moesim.output import to_json, whole_folder
from moesim.report.validation_page import validation_page
from moesim.simulation.deployment import Deployment
from moesim.simulation.run import Run, run
from moesim.spec.override import Override
from moesim.spec.presets import preset_names
from moesim.spec.scenario import Scenario
from traces.files import write_text
from traces.timeline import Timeline, write_timeline

REPEATS = 8
"""Of a launch."""

MOST_LAUNCHES = 4
"""Of the real run, until its medians hold. Each makes processes and weights anew, so that what differs
between launches (where memory lies, what else the machine does) counts as noise too."""

# What ranks do together, which is simulated where they run one after another.
_TOGETHER = ("dispatch", "combine")


@dataclass(frozen=True)
class Validated:
    """A validation and what it rests on.

    Attributes:
        measured: all repeats of all launches.
        counts_equal: whether what arrived is what was simulated; None where nothing was sent.
        run: what the executor says of the real run.
    """

    simulation: Run
    measured: Timeline
    found: Validation
    launches: int
    counts_equal: bool | None
    run: dict[str, Any]


def calibrated_for(scenario: str, overrides: Sequence[Override], ranks: int, options: RunOptions) -> Profile:
    """The profile of this machine for experts and ranks like a scenario's, by a calibration.

    Experts that are no preset's are taken to be like those of ``cpu-ep2``.

    Raises:
        MoesimError: the scenario breaks a rule, the ranks failed, or the machine is too noisy.
    """
    here = partial(MACHINES[options.device], serial=options.serial)
    model = executable(scenario, overrides, ranks, here).scenario.model
    settings = Settings(
        device="cuda" if options.device == "cuda" else "cpu",
        ranks=options.processes(ranks),
        backend=options.backend or "loop",
        dtype=model.activation_dtype,
        model=model.name if model.name in preset_names("models") else None,
    )
    profile, _ = calibrated(settings)
    return profile


def measured_machine(profile: Profile, options: RunOptions) -> Machine:
    """The machine that a calibration measured, as the place where a scenario runs.

    Raises:
        SpecError: the profile does not describe its machine.
    """
    machine = profile.machine
    if machine is None:
        rule = "does not describe the machine it was measured on, as those of `moesim calibrate` do"
        raise SpecError(rule, file="--profile", got=profile.name)

    def on_machine(_: Scenario, ranks: int) -> Sequence[Override]:
        # The ranks of a CPU share its memory, or have it in turns.
        parts = options.processes(ranks) / machine.gpus if options.device == "cpu" else 1
        cluster = machine.model_dump(mode="json") | {
            "gpu": machine.gpu.model_dump(mode="json") | {"memory": machine.gpu.memory / parts},
            "nodes": 1,
            "gpus_per_node": ranks,
        }
        named = profile.model_dump(mode="json")
        return [Override(("profile",), named, "--profile"), Override(("cluster",), cluster, "--profile")]

    return on_machine


def validate(
    deployment: Deployment, options: RunOptions, progress: Callable[[], None] = lambda: None
) -> Validated:
    """Simulate a deployment, and run it until its medians hold, at most ``MOST_LAUNCHES`` times.

    Args:
        progress: called after each launch.

    Raises:
        ExecutionError: with rank, phase and cause, if a rank fails.
    """
    simulation = run(deployment)
    launched: list[Timeline] = []
    counts_equal = None
    while True:
        count = not options.serial and not launched
        with tempfile.TemporaryDirectory(prefix="moesim-") as folder:
            execution = execute(deployment, replace(options, count=count), Path(folder))
        if execution.work is not None:
            counts_equal = same_counts(execution.work, simulation.work())
        timeline = execution.timeline
        launched.append(on_simulated_network(deployment, timeline) if options.serial else timeline)
        progress()
        measured = join_repeats(launched)
        found = compare(measured, simulation.timeline)
        if found.steady or len(launched) == MOST_LAUNCHES:
            return Validated(simulation, measured, found, len(launched), counts_equal, execution.run)


def validation_result(validated: Validated, asked: Executable, options: RunOptions) -> dict[str, Any]:
    """The content of ``validation.json``."""
    simulation, deployment = validated.simulation, validated.simulation.deployment
    scenario = deployment.scenario
    return {
        "format": "moesim.validation/1",
        "scenario": scenario.resolved(),
        "device": options.device,
        **validated.found.summary(),
        "counts_equal": validated.counts_equal,
        "simulated_phases": list(_TOGETHER) if options.serial else [],
        "notes": [*asked.notes, *_notes(simulation, options)],
        "trace": trace_facts(deployment),
        "provenance": {
            "moesim": __version__,
            "numpy": np.__version__,
            "numba": numba.__version__,
            **{key: validated.run[key] for key in ("torch", "device", "backend", "threads")},
            "launches": validated.launches,
            "seed": scenario.seed,
            "trace_sha256": deployment.trace.digest(),
            "profile": f"{scenario.profile.name}: {scenario.profile.origin}",
            "network": deployment.network_name,
            "placement": deployment.placement.origin,
        },
    }


def write_validation(folder: Path, validated: Validated, result: dict[str, Any]) -> None:
    """Write what ``moesim validate -o`` promises.

    Raises:
        OutputError: the folder cannot be written.
    """
    deployment = validated.simulation.deployment
    simulated = validated.simulation.timeline
    with whole_folder(folder) as part:
        write_text(part / "scenario.yaml", deployment.scenario.to_yaml())
        write_profile(deployment.scenario.profile, part / "profile.yaml")
        write_text(part / "validation.json", to_json(result))
        write_timeline(validated.measured, part / "measured.parquet")
        write_timeline(simulated, part / "simulated.parquet")
        write_plan(deployment, part / "plan")
        write_text(part / "report.html", validation_page(result, validated.measured, simulated))


def _notes(simulation: Run, options: RunOptions) -> list[str]:
    deployment = simulation.deployment
    scenario = deployment.scenario
    ranks, machine = scenario.parallelism.ep, scenario.profile.machine
    found = notes(
        deployment, float(simulation.timeline.end_s_N.max()), simulation.tokens / scenario.workload.steps
    )
    if machine is not None and machine.gpus != options.processes(ranks):
        found.append(
            f"The profile was measured with {machine.gpus} ranks at once, this run has "
            f"{options.processes(ranks)}: what ranks take from each other differs."
        )
    if options.device == "cpu" and (crowd := crowded(options.processes(ranks))):
        found.append(crowd)
    return found
