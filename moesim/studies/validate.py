"""A scenario run for real and simulated, and how far apart the two are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numba
import numpy as np

from moesim import __version__
from moesim.analysis.counts import same_counts
from moesim.analysis.notes import notes
from moesim.analysis.result import trace_facts
from moesim.analysis.validation import Validation, compare
from moesim.analysis.validation_file import ValidationResult
from moesim.calibration.assembly import measured_model
from moesim.calibration.calibrate import Calibrating
from moesim.calibration.design import Settings
from moesim.calibration.files import profile_of
from moesim.deployment.deployment import Deployment
from moesim.errors import SpecError
from moesim.live.execute import USUAL, RunOptions, execute
from moesim.live.on_network import on_simulated_network
from moesim.live.repeats import join_repeats
from moesim.live.scenario import Executable, Machine, crowded
from moesim.live.simulated import simulated_repeats
from moesim.simulation.run import Run, run
from moesim.spec.model import Model
from moesim.spec.override import Override
from moesim.spec.presets import preset_names
from moesim.spec.profile import Profile
from moesim.spec.scenario import Scenario
from traces.base.parts import scratch_folder
from traces.timeline import Timeline, WorkTable

REPEATS = 16
"""Of a launch."""

MOST_LAUNCHES = 3
"""Of the real run, until its medians hold. Each makes processes and weights anew, so that what differs
between launches (where memory lies, what else the machine does) counts as noise too."""

_STRETCH_S = 20.0
"""Of calibrating, before a launch and after it: with ``MOST_LAUNCHES`` under two minutes in all."""

# What ranks do together, which is simulated where they run one after another.
_TOGETHER = ("dispatch", "combine")


@dataclass(frozen=True)
class Measured:
    """What real runs of a deployment left behind, before anything is simulated.

    Attributes:
        launched: the timeline of each launch.
        work: what arrived at the first one; None where nothing was sent.
        run: what the executor says of the last one.
        doubts: of the calibration around them; empty where it is sure, or was another day's.
    """

    launched: Sequence[Timeline]
    work: WorkTable | None
    run: dict[str, Any]
    doubts: Sequence[str] = ()


@dataclass(frozen=True)
class Validated:
    """A validation and what it rests on.

    Attributes:
        simulated: its timeline, as often as its jitter asks for.
        measured: all repeats of all launches.
        counts_equal: whether what arrived is what was simulated; None where nothing was sent.
        run: what the executor says of the real run.
        doubts: of the calibration around it.
    """

    simulation: Run
    simulated: Timeline
    measured: Timeline
    found: Validation
    launches: int
    counts_equal: bool | None
    run: dict[str, Any]
    doubts: Sequence[str]


def calibrated_around(
    deployment: Deployment, options: RunOptions, command: str, launched: Callable[[], None] = lambda: None
) -> tuple[Profile, Measured]:
    """Run a deployment until its medians hold, and calibrate before and after each launch.

    The speed of a shared machine drifts by several percent in minutes: one fit to stretches all around the
    launches has seen the speeds that they had. Experts that are no preset's are taken to be like those of
    ``cpu-ep2``.

    Args:
        command: what is being done, for the profile's origin.
        launched: called after each launch.

    Raises:
        MoesimError: the ranks failed.
    """
    scenario = deployment.scenario
    settings = Settings(
        device="cuda" if options.device == "cuda" else "cpu",
        ranks=options.processes(scenario.parallelism.ep),
        backend=options.backend or USUAL[options.device],
        dtype=scenario.model.activation_dtype,
        model=scenario.model.name if scenario.model.name in preset_names("models") else None,
        seconds=_STRETCH_S,
    )
    with scratch_folder() as folder:
        calibrating = Calibrating(settings, folder)
        calibrating.measure()

        def after_launch() -> None:
            calibrating.measure()
            launched()

        measured = run_until_steady(deployment, options, after_launch)
        done = calibrating.fit()
        return profile_of(done, settings, command), replace(measured, doubts=done.doubts)


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


def run_until_steady(
    deployment: Deployment, options: RunOptions, launched: Callable[[], None] = lambda: None
) -> Measured:
    """Run a deployment until its medians hold, at most ``MOST_LAUNCHES`` times.

    Args:
        launched: called after each launch.

    Raises:
        ExecutionError: with rank, phase and cause, if a rank fails.
    """
    timelines: list[Timeline] = []
    work = None
    while True:
        count = not options.serial and not timelines
        with scratch_folder() as folder:
            execution = execute(deployment, replace(options, count=count), folder)
        work = execution.work if count else work
        timelines.append(execution.timeline)
        launched()
        seen = _joined(deployment, timelines, options)
        # A measurement's noise is its own, whatever it is compared with.
        if compare(seen, seen).steady or len(timelines) == MOST_LAUNCHES:
            return Measured(timelines, work, execution.run)


def validate(deployment: Deployment, measured: Measured, options: RunOptions) -> Validated:
    """Simulate a deployment and compare it with its real runs."""
    simulation, simulated = run(deployment), simulated_repeats(deployment)
    seen = _joined(deployment, measured.launched, options)
    return Validated(
        simulation,
        simulated,
        seen,
        compare(seen, simulated),
        len(measured.launched),
        None if measured.work is None else same_counts(measured.work, simulation.work()),
        measured.run,
        measured.doubts,
    )


def _joined(deployment: Deployment, launched: Sequence[Timeline], options: RunOptions) -> Timeline:
    """All repeats; what ranks did one after another meets on the simulated network."""
    if options.serial:
        launched = [on_simulated_network(deployment, timeline) for timeline in launched]
    return join_repeats(launched)


def validation_result(
    validated: Validated, asked: Executable, options: RunOptions, command: str
) -> ValidationResult:
    """The content of ``validation.json``."""
    simulation, deployment = validated.simulation, validated.simulation.deployment
    scenario = deployment.scenario
    return ValidationResult(
        format="moesim.validation/1",
        scenario=scenario.resolved(),
        device=options.device,
        verdict="ok" if validated.found.steady and not validated.doubts else "noisy",
        **validated.found.summary(),
        counts_equal=validated.counts_equal,
        simulated_phases=list(_TOGETHER) if options.serial else [],
        notes=[
            *asked.notes,
            *_notes(simulation, options),
            *(f"Of the calibration: {doubt}." for doubt in validated.doubts),
        ],
        trace=trace_facts(deployment),
        provenance={
            "moesim": __version__,
            "numpy": np.__version__,
            "numba": numba.__version__,
            **{key: validated.run[key] for key in ("torch", "device", "backend", "threads")},
            "launches": validated.launches,
            "seed": scenario.seed,
            "trace_sha256": deployment.trace.digest(),
            "profile": f"{scenario.profile.name}: {scenario.profile.origin}",
            "network": deployment.pricing.network_name,
            "placement": deployment.placement.origin,
            "command": command,
        },
    )


def _notes(simulation: Run, options: RunOptions) -> list[str]:
    deployment = simulation.deployment
    scenario = deployment.scenario
    ranks, machine = scenario.parallelism.ep, scenario.profile.machine
    found = notes(simulation, float(simulation.timeline.end_s_N.max()))
    if machine is not None and machine.gpus != options.processes(ranks):
        found.append(
            f"The profile was measured with {machine.gpus} ranks at once, this run has "
            f"{options.processes(ranks)}: what ranks take from each other differs."
        )
    like, model = measured_model(scenario.profile), scenario.model
    if like is not None and _shape(like) != _shape(model):
        found.append(
            f"The profile was measured with experts like those of {like.name} ({_shape(like)}), "
            f"{model.name} has others ({_shape(model)}): what a kernel reaches depends on its "
            "shape. Calibrate with --model."
        )
    if options.device == "cpu" and (crowd := crowded(options.processes(ranks))):
        found.append(crowd)
    return found


def _shape(model: Model) -> str:
    """Of an expert, on which the speed of its kernels depends."""
    gated = "gated" if model.experts.gated else "not gated"
    widths = " and ".join(str(width) for width in sorted({kind.width for kind in model.kinds}))
    return f"hidden {model.hidden}, width {widths}, {gated}"
