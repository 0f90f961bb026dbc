"""``moesim execute``: run the MoE part of a scenario for real."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from moesim.commands.signals import exit_code
from moesim.commands.terminal import (
    AsJson,
    Out,
    ScenarioName,
    Set,
    command_line,
    faults_of,
    overrides,
    progress,
    say,
    show,
    tell,
)

if TYPE_CHECKING:
    from moesim.deployment.deployment import Deployment
    from moesim.live.execute import RunOptions

Ranks = Annotated[int, typer.Option("--ranks", min=1, metavar="N", help="Ranks; replaces parallelism.ep.")]
Device = Annotated[Literal["cpu", "cuda"], typer.Option("--device", help="What ranks compute on.")]
Backend = Annotated[
    str | None, typer.Option("--backend", metavar="NAME", help="What multiplies the experts' matrices.")
]
Serial = Annotated[
    bool, typer.Option("--serial", help="One process, rank after rank: kernels alone, no dispatch.")
]


def execute(
    scenario: ScenarioName,
    ranks: Ranks,
    set_: Set = None,
    out: Out = None,
    as_json: AsJson = False,
    plan_only: Annotated[
        bool,
        typer.Option("--plan-only", help="Only write the plan, to OUT or ./plan, and say how to run it."),
    ] = False,
    device: Device = "cpu",
    backend: Backend = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Measured runs of all steps.")] = 5,
    count: Annotated[bool, typer.Option("--count", help="Also count what arrives, to work.parquet.")] = False,
    serial: Serial = False,
) -> None:
    """Run the MoE part of a scenario for real, on ranks of this machine."""
    from moesim.deployment.deployment import deploy
    from moesim.live.execute import RunOptions
    from moesim.live.execute import execute as run_for_real
    from moesim.live.measured import execution_result
    from moesim.live.scenario import MACHINES, crowded, executable, own_cluster
    from moesim.output import check_folder
    from moesim.report.execution_table import execution_tables
    from moesim.report.real_folder import execution_folder, write_execution
    from moesim.spec.question import plural

    options = RunOptions(device, backend, repeats, count=count, serial=serial)
    if count and serial:
        raise typer.BadParameter(
            "needs ranks that send to each other, --serial has none", param_hint="--count"
        )
    if plan_only and out is None:
        out = Path("plan")
    if out is not None:
        check_folder(out)
    machine = own_cluster if plan_only else partial(MACHINES[device], serial=serial)
    chosen = executable(scenario, overrides(set_), ranks, machine)
    notes = [*chosen.notes]
    if device == "cpu" and not plan_only and (crowd := crowded(options.processes(ranks))):
        notes.append(crowd)
    with faults_of(scenario):
        deployment = deploy(chosen.scenario)
    for note in notes:
        tell(f"moesim: note: {note}")
    if plan_only:
        assert out is not None  # set above
        _write_plan(deployment, options, notes, out, as_json)
        return
    runs = f"{options.warmup} runs to warm up, {options.repeats} that are measured"
    tell(f"moesim: {plural(ranks, 'rank')}: making weights, then {runs}")
    with execution_folder(out) as folder:
        with told_when_interrupted(), progress("running", 1):
            done = run_for_real(deployment, options, folder)
        result = execution_result(deployment, done, notes, command_line("execute", scenario, set_))
        if out is not None:
            write_execution(folder, deployment, done, result)
    show(result.plain(), lambda: execution_tables(result), as_json, out)


@contextlib.contextmanager
def told_when_interrupted() -> Iterator[None]:
    """Say what becomes of a real run that the user ends."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        tell("moesim: interrupted: all ranks have ended, nothing was written")
        raise typer.Exit(exit_code(interrupt)) from None


def _write_plan(
    deployment: Deployment, options: RunOptions, notes: list[str], folder: Path, as_json: bool
) -> None:
    from moesim.live.launch import torchrun
    from moesim.live.plan import write_plan

    write_plan(deployment, folder)
    ranks, cluster = deployment.scenario.parallelism.ep, deployment.scenario.cluster
    nodes = 1 if options.serial else -(-ranks // cluster.gpus_per_node)
    processes = options.processes(ranks)
    line = torchrun(processes, "executor", [folder, "-o", "OUT", *options.arguments(deployment)], nodes=nodes)
    if as_json:
        said = {"plan": str(folder), "nodes": nodes, "command": line, "notes": notes}
        show(said, list, as_json, None)
    else:  # as one line, however narrow the terminal
        say(line)
