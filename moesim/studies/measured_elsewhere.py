"""Real runs of a plan on another machine, as a validation takes them."""

from __future__ import annotations

from collections.abc import Sequence

from moesim.deployment.deployment import Deployment
from moesim.errors import SpecError, TimelineError
from moesim.live.execute import Execution, RunOptions
from moesim.simulation.run import run
from moesim.studies.validate import Measured
from traces.timeline import PHASES, Timeline


def options_of(executions: Sequence[Execution]) -> RunOptions:
    """How they were run, all in the same way.

    Raises:
        SpecError: they were not.
    """
    first = executions[0].run
    for execution in executions[1:]:
        for key in ("device", "backend", "serial"):
            if execution.run[key] != first[key]:
                raise SpecError(
                    f"must be {first[key]}, as in the first run", field=key, got=execution.run[key]
                )
    device = "cpu" if first["device"] == "cpu" else "cuda"
    return RunOptions(device, str(first["backend"]), serial=bool(first["serial"]))


def measured_elsewhere(deployment: Deployment, executions: Sequence[Execution]) -> Measured:
    """Runs of the plan of a deployment.

    Raises:
        TimelineError: the experts of a run served others than those of the deployment would.
    """
    expected = _served(run(deployment).timeline)
    timelines = [execution.timeline for execution in executions]
    for timeline in timelines:
        found = _served(timeline)
        if found != expected:
            rule = (
                "is not a run of this scenario's plan, in which each rank's experts serve as many assignments"
            )
            raise TimelineError(rule, field=timeline.run, got=f"{sum(row[-1] for row in found)} in all")
    return Measured(timelines, executions[0].work, executions[-1].run)


def _served(timeline: Timeline) -> list[tuple[int, ...]]:
    """Step, layer, rank, micro-batch and assignments of all expert phases of the first repeat, in order."""
    columns = ("step", "layer", "rank", "micro_batch", "assignments")
    experts = timeline.select((timeline.phase_N == PHASES.index("experts")) & (timeline.repeat_N == 0))
    return sorted(zip(*(getattr(experts, f"{name}_N").tolist() for name in columns), strict=True))
