"""The command line. Only this module prints, and only it sets exit codes.

What a command needs is imported inside it: ``moesim --help`` must not wait for numba.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim import __version__
from traces.errors import MoesimError

if TYPE_CHECKING:
    from moesim.spec.override import Override

app = typer.Typer(
    name="moesim",
    help="Replay recorded expert routing on a model of a GPU cluster: where time goes, and what would help.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
trace_app = typer.Typer(help="Look at routing traces and convert them.", no_args_is_help=True)
app.add_typer(trace_app, name="trace")

ScenarioName = Annotated[str, typer.Argument(metavar="SCENARIO", help="A YAML file or the name of a preset.")]
Set = Annotated[
    list[str] | None, typer.Option("-s", metavar="KEY=VALUE", help="Set a field, in YAML; may be repeated.")
]
Out = Annotated[Path | None, typer.Option("-o", metavar="OUT", help="Write the files to this folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]


def main() -> None:
    """Run the command line; a user's mistake ends with one line and the exit code of its error."""
    # A terminal that cannot show × or µ gets a question mark, not a traceback.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        app()
    except MoesimError as error:
        # A name may hold line breaks or terminal codes; the message stays one harmless line.
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(error))
        print(f"moesim: {line}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:  # of the standard output; faults of other files are MoesimErrors
        print(f"moesim: the output cannot be written: {error.strerror or error}", file=sys.stderr)
        sys.exit(1)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"moesim {__version__}")
        raise typer.Exit


@app.command()
def run(scenario: ScenarioName, set_: Set = None, out: Out = None, as_json: AsJson = False) -> None:
    """Simulate one scenario."""
    from moesim.analysis.result import simulate_scenario
    from moesim.output import check_folder, write_run
    from moesim.report.console import run_tables
    from moesim.spec.scenario import load_scenario

    asked = load_scenario(scenario, _overrides(set_))
    if out is not None:
        check_folder(out)
    with _progress("simulating", 1), _faults_of(scenario):
        done, result = simulate_scenario(asked)
    result["provenance"]["command"] = _command("run", scenario, set_)
    if out is not None:
        write_run(out, done, result)
    _show(result, lambda: run_tables(result), as_json, out)


@app.command()
def whatif(
    scenario: ScenarioName,
    vary: Annotated[
        list[str], typer.Option("--vary", metavar="KEY=[V1,V2,…]", help="Values of a field; may be repeated.")
    ],
    set_: Set = None,
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
    from moesim.analysis.store import Store
    from moesim.analysis.whatif import Vary, compare, plan
    from moesim.output import check_folder, write_comparison
    from moesim.report.console import whatif_table

    base, points = plan(scenario, _overrides(set_), [Vary.parse(text) for text in vary])
    store = None
    if out is not None:
        check_folder(out)
        store = Store(out / "points")
    with _progress("simulating", 1 + len(points)) as advance, _faults_of(scenario):
        comparison = compare(base, points, jobs=jobs, scheduler=scheduler, store=store, progress=advance)
    comparison["baseline"]["provenance"]["command"] = _command("whatif", scenario, set_, vary)
    if out is not None:
        write_comparison(out, comparison)
    _show(comparison, lambda: [whatif_table(comparison)], as_json, out)


@app.command()
def demo(out: Out = None) -> None:
    """The main job on built-in data: what imbalance costs on 4 x 8 GPUs, and what wins it back."""
    from moesim.analysis.result import simulate_scenario
    from moesim.analysis.whatif import compare, demo_points
    from moesim.output import check_folder, write_run
    from moesim.report.console import run_tables, whatif_table
    from moesim.spec.scenario import load_scenario

    if out is not None:
        check_folder(out)
    base = load_scenario("demo")
    points = demo_points()
    with _progress("simulating", 1 + len(points)) as advance:
        done, result = simulate_scenario(base)
        comparison = compare(base, points, baseline=result, progress=advance)
    result["provenance"]["command"] = "moesim demo"
    if out is not None:
        write_run(out, done, result, comparison)
    _show(result, lambda: [*run_tables(result), whatif_table(comparison)], False, out)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A folder that -o wrote.")],
) -> None:
    """Write report.html anew from the other files of a run."""
    from moesim.output import rebuild_report

    rebuild_report(folder)
    typer.echo(folder / "report.html")


@trace_app.command("info")
def trace_info(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A routing trace, or a table of expert loads.")
    ],
    ep: Annotated[
        int | None,
        typer.Option("--ep", min=1, metavar="G", help="Also the balance of G GPUs, placed linearly."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What a trace or a load table holds and how skewed it is."""
    from moesim.report.trace_table import info_tables
    from traces.describe import describe

    facts = describe(file, ep=ep)
    _show(facts.to_dict(), lambda: info_tables(facts), as_json, None)


@trace_app.command("convert")
def trace_convert(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Routing recorded by something else.")],
    out: Annotated[Path, typer.Option("-o", metavar="OUT", help="The trace to write, in Parquet.")],
    from_: Annotated[
        str | None,
        typer.Option("--from", metavar="FORMAT", help="The layout; by default told by the content."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Preset or config.json of the model that was recorded.")
    ] = None,
    experts: Annotated[
        int | None, typer.Option("--experts", min=1, help="Experts of a layer, where no --model says so.")
    ] = None,
    origin: Annotated[str, typer.Option("--origin", help="Where the recording comes from.")] = "",
    licence: Annotated[str, typer.Option("--licence", help="The licence of the recording.")] = "",
) -> None:
    """Convert routing that something else recorded into a trace."""
    from moesim.convert import convert_trace

    trace = convert_trace(
        file, out, layout=from_, model=model, experts=experts, origin=origin, licence=licence
    )
    typer.echo(
        f"{out}: {trace.tokens:,} tokens of {len(trace.request_offsets) - 1:,} requests, "
        f"{len(trace.meta.layers)} layers, {trace.meta.experts} experts, top-{trace.meta.top_k}"
    )


@app.command()
def presets(
    kind: Annotated[str | None, typer.Argument(metavar="[KIND]", help="Only this kind.")] = None,
    as_json: AsJson = False,
) -> None:
    """What is built in, with sources."""
    from moesim.catalogue import catalogue
    from moesim.report.preset_table import preset_tables

    found = catalogue(kind)
    _show(found, lambda: preset_tables(found), as_json, None)


def _overrides(texts: list[str] | None) -> list[Override]:
    from moesim.spec.override import Override

    return [Override.parse(text) for text in texts or []]


def _command(name: str, scenario: str, set_: list[str] | None, vary: list[str] | None = None) -> str:
    """The command that repeats this run; where the files went does not matter to it."""
    import shlex

    options = [part for text in set_ or [] for part in ("-s", text)]
    options += [part for text in vary or [] for part in ("--vary", text)]
    return shlex.join(["moesim", name, scenario, *options])


@contextlib.contextmanager
def _faults_of(scenario: str) -> Iterator[None]:
    """Name the scenario in a fault that no single file or option has."""
    try:
        yield
    except MoesimError as error:
        error.file = error.file or scenario
        raise


@contextlib.contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr, gone when done; silent where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)


def _show(value: dict[str, Any], tables: Callable[[], list[Any]], as_json: bool, out: Path | None) -> None:
    """The result on stdout; where its files are on stderr."""
    if as_json:
        sys.stdout.write(json.dumps(value, allow_nan=False) + "\n")
    else:
        from rich.console import Console

        console = Console()
        for table in tables():
            console.print(table)
    sys.stdout.flush()
    if out is not None:
        print(f"report: {out / 'report.html'}", file=sys.stderr)
