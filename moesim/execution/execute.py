"""A real run from start to end: plan, ranks, timeline."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesim.execution.launch import launch
from moesim.execution.plan import write_plan
from moesim.simulation.deployment import Deployment
from traces.timeline import Timeline, WorkTable, read_timeline, read_work

USUAL = {"cpu": "loop", "cuda": "grouped_mm"}
"""The back end that the executor takes on each kind of device where none is named."""


@dataclass(frozen=True)
class RunOptions:
    """How a plan is run, as ``python -m executor`` takes it.

    Attributes:
        device: ``cpu`` or ``cuda``.
        backend: of the experts; None for the usual one of the device.
        repeats, warmup: runs of all steps that are measured, and before them that are not.
        count: whether the work is also counted from what arrives.
        serial: whether one process runs the kernels of all ranks, rank after rank.
    """

    device: str = "cpu"
    backend: str | None = None
    repeats: int = 5
    warmup: int = 2
    count: bool = False
    serial: bool = False

    def arguments(self) -> list[str]:
        """Its part of the command line."""
        given = ["--device", self.device, "--repeats", str(self.repeats), "--warmup", str(self.warmup)]
        given += [] if self.backend is None else ["--backend", self.backend]
        return given + [f"--{name}" for name in ("count", "serial") if getattr(self, name)]

    def processes(self, ranks: int) -> int:
        """How many processes run so many ranks."""
        return 1 if self.serial else ranks


@dataclass(frozen=True)
class Execution:
    """What a real run left behind.

    Attributes:
        timeline: of all repeats.
        work: counted from what arrived, where that was asked for.
        run: device, back end, versions, as the executor tells them.
    """

    timeline: Timeline
    work: WorkTable | None
    run: dict[str, Any]


def execute(deployment: Deployment, options: RunOptions, folder: Path) -> Execution:
    """Run a deployment on this machine.

    Args:
        deployment: of a scenario that ``moesim.execution.scenario`` made executable.
        options: how to run it.
        folder: gets ``plan``, ``timeline.parquet``, ``run.json``, and ``work.parquet`` where work is counted.

    Raises:
        ExecutionError: with rank, phase and cause, if a rank fails.
        MoesimError: the plan cannot be written.
    """
    plan = folder / "plan"
    write_plan(deployment, plan)
    processes = options.processes(deployment.scenario.parallelism.ep)
    launch(processes, "executor", [plan, "-o", folder, *options.arguments()], folder)
    work = read_work(folder / "work.parquet") if options.count else None
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return Execution(read_timeline(folder / "timeline.parquet"), work, run)
