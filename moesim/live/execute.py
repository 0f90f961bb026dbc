"""A real run from start to end: plan, ranks, timeline."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesim.deployment.deployment import Deployment
from moesim.errors import SpecError
from moesim.live.launch import launch
from moesim.live.plan import write_plan
from traces.base.files import check_format
from traces.base.input_file import read_json
from traces.timeline import Timeline, WorkTable, read_timeline, read_work

USUAL = {"cpu": "loop", "cuda": "grouped_mm"}
"""The back end that the executor takes on each kind of device where none is named."""


_TOLD = ("device", "backend", "threads", "repeats", "serial", "torch")
"""By the executor, of every run."""


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
        deployment: of a scenario that ``moesim.live.scenario`` made executable.
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
    return read_execution(folder)


def read_execution(folder: Path) -> Execution:
    """What ``python -m executor`` wrote into a folder, on whatever machine.

    Raises:
        MoesimError: a file is missing or damaged.
    """
    file = folder / "run.json"
    run = read_json(file, "what the executor wrote", SpecError)
    check_format(run.get("format"), "run", 1, file=file, error=SpecError)
    missing = [name for name in _TOLD if name not in run]
    if missing:
        raise SpecError("lacks a field", file=file, field=missing[0])
    counts = folder / "work.parquet"
    work = read_work(counts) if counts.exists() else None
    return Execution(read_timeline(folder / "timeline.parquet"), work, run)
