"""Simulating: one scenario, every combination of values, the demo; and the report of what was simulated."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moesim.commands.terminal import (
    AsJson,
    Out,
    Samples,
    ScenarioName,
    Set,
    asked_samples,
    command_line,
    faults_of,
    overrides,
    progress,
    say,
    show,
)


def run(
    scenario: ScenarioName,
    set_: Set = None,
    samples: Samples = 0,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Simulate one scenario."""
    from moesim.analysis.result import simulate_scenario
    from moesim.output import check_folder
    from moesim.report.console import run_tables
    from moesim.report.folder import write_run
    from moesim.spec.scenario import load_scenario

    asked = load_scenario(scenario, overrides(set_))
    if out is not None:
        check_folder(out)
    with progress("simulating", 1) as advance, faults_of(scenario):
        done, result = simulate_scenario(asked, samples, advance)
    result = result.made(command=command_line("run", scenario, set_, None, *asked_samples(samples)))
    if out is not None:
        write_run(out, done, result)
    show(result.plain(), lambda: run_tables(result), as_json, out)


def whatif(
    scenario: ScenarioName,
    vary: Annotated[
        list[str], typer.Option("--vary", metavar="KEY=[V1,V2,…]", help="Values of a field; may be repeated.")
    ],
    set_: Set = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            metavar="METRIC<=VALUE",
            help="What the best point must meet, such as step_time_s.p99<=50ms; may be repeated.",
        ),
    ] = None,
    samples: Samples = 0,
    out: Out = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Worker processes.")] = 1,
    scheduler: Annotated[
        str | None,
        typer.Option(
            "--scheduler",
            metavar="ADDRESS",
            help="Simulate on the cluster of this dask scheduler, such as tcp://host:8786. Its workers need "
            "moesim\\[cluster], and the files that the scenario names.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Simulate every combination of some values, side by side against the scenario itself.

    With -o, finished points survive an interruption in OUT/points and are not run again.
    """
    from moesim.analysis.target import Target
    from moesim.output import check_folder
    from moesim.report.console import whatif_tables
    from moesim.report.folder import write_comparison
    from moesim.spec.vary import Vary
    from moesim.studies.points import plan
    from moesim.studies.store import Store
    from moesim.studies.whatif import compare

    targets = [Target.parse(text) for text in target or []]
    base, points = plan(scenario, overrides(set_), [Vary.parse(text) for text in vary])
    store = None
    if out is not None:
        check_folder(out)
        store = Store(out / "points", samples)
    with progress("simulating", 1 + len(points)) as advance, faults_of(scenario):
        comparison = compare(
            base,
            points,
            targets=targets,
            samples=samples,
            jobs=jobs,
            scheduler=scheduler,
            store=store,
            progress=advance,
        )
    asked = [part for each in targets for part in ("--target", each.text)]
    comparison = comparison.made(
        command=command_line("whatif", scenario, set_, vary, *asked, *asked_samples(samples))
    )
    if out is not None:
        write_comparison(out, comparison)
    show(comparison.plain(), lambda: whatif_tables(comparison), as_json, out)


def demo(out: Out = None) -> None:
    """The main job on built-in data: what imbalance costs on 4 x 8 GPUs, and what wins it back."""
    from moesim.analysis.result import simulate_scenario
    from moesim.output import check_folder
    from moesim.report.console import run_tables, whatif_table
    from moesim.report.folder import write_run
    from moesim.spec.scenario import load_scenario
    from moesim.studies.points import demo_points
    from moesim.studies.whatif import compare

    if out is not None:
        check_folder(out)
    base = load_scenario("demo")
    points = demo_points()
    with progress("simulating", 1 + len(points)) as advance:
        done, result = simulate_scenario(base)
        result = result.made(command="moesim demo")
        comparison = compare(base, points, baseline=result, progress=advance)
    if out is not None:
        write_run(out, done, result, comparison)
    show(result.plain(), lambda: [*run_tables(result), whatif_table(comparison)], False, out)


def report(
    folder: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A folder that -o wrote.")],
) -> None:
    """Write report.html anew from the other files of a run."""
    from moesim.report.folder import rebuild_report

    for page in rebuild_report(folder):
        say(page)
