"""``moesim place``: search a placement, judge it beside what everyone runs, write it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from moesim.commands.terminal import AsJson, Set, overrides, progress, show, spinner, tell, trace_path

if TYPE_CHECKING:
    from placement.solvers.solution import Report


def place(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="A trace, a load table, or a serving system's file; sample is the built-in trace.",
            parser=trace_path,
        ),
    ],
    gpus: Annotated[int, typer.Option("--gpus", min=1, metavar="G", help="GPUs of the group.")],
    nodes: Annotated[
        int | None, typer.Option("--nodes", min=1, metavar="N", help="Nodes; the scenario's, otherwise 1.")
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option("--slots", min=1, metavar="S", help="Slots on all GPUs; otherwise one for each expert."),
    ] = None,
    solver: Annotated[
        str,
        typer.Option(
            "--solver",
            metavar="NAME",
            help="auto is never worse than the others; see moesim presets solvers.",
        ),
    ] = "auto",
    objective: Annotated[
        Literal["tokens", "time", "copies", "mixed"],
        typer.Option(
            "--objective",
            help="Make small: tokens of the fullest GPU; its seconds in the scenario; copies to other nodes; "
            "tokens and copies.",
        ),
    ] = "tokens",
    copy_cost: Annotated[
        float,
        typer.Option("--copy-cost", min=0.0, help="mixed: tokens that sending one to another node is worth."),
    ] = 1.0,
    hold_out: Annotated[
        float | None,
        typer.Option(
            "--hold-out",
            min=0.0,
            max=1.0,
            metavar="FRACTION",
            help="Last requests or windows, kept from the solver; 0.25 where there are several.",
        ),
    ] = None,
    windows: Annotated[
        int | None,
        typer.Option(
            "--windows",
            min=1,
            metavar="W",
            help="Cut the others into so many windows; as large as what is kept back.",
        ),
    ] = None,
    worst_window: Annotated[
        bool, typer.Option("--worst-window", help="Make the worst window small, not their mean.")
    ] = False,
    hierarchical: Annotated[
        bool,
        typer.Option(
            "--hierarchical",
            help="Keep each of the model's expert groups on one node, whatever the solver; eplb does "
            "so where groups divide over nodes.",
        ),
    ] = False,
    previous: Annotated[
        Path | None,
        typer.Option(
            "--previous", metavar="FILE", help="What runs now: a placement file, or a serving system's."
        ),
    ] = None,
    max_moves: Annotated[
        int | None, typer.Option("--max-moves", min=0, metavar="M", help="Most experts to move from there.")
    ] = None,
    time_limit: Annotated[
        float | None, typer.Option("--time-limit", min=0.0, metavar="S", help="Seconds for the search.")
    ] = None,
    simulate: Annotated[
        str | None,
        typer.Option("--simulate", metavar="SCENARIO", help="Run the candidates through this scenario."),
    ] = None,
    set_: Set = None,
    out: Annotated[Path | None, typer.Option("-o", metavar="FILE", help="Write the placement.")] = None,
    format_: Annotated[
        Literal["native", "sglang", "trtllm", "vllm-ascend", "vllm"],
        typer.Option("--format", help="The system that is to read it."),
    ] = "native",
    metrics: Annotated[
        Literal["sglang", "all"], typer.Option("--metrics", help="Also the other formulas of balancedness.")
    ] = "sglang",
    model: Annotated[
        str | None, typer.Option("--model", help="Preset or config.json, where SOURCE does not tell.")
    ] = None,
    experts: Annotated[
        int | None, typer.Option("--experts", min=1, help="Experts of a layer, where no --model says so.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Search an expert placement for the loads in SOURCE, and say how good it is."""
    from moesim.output import check_file
    from moesim.report.place_table import place_tables
    from moesim.studies.convert import named_hints
    from moesim.studies.loads import known_model, read_source
    from moesim.studies.place import answer, candidates, search
    from moesim.studies.place_question import Question
    from moesim.studies.trial import trial
    from placement.files.reading import load_placement
    from placement.files.target import Target
    from placement.files.writing import check_export, check_suffix, export, how_to_load, keeps_one_copy
    from placement.solvers.solution import Search
    from placement.solvers.solvers import solver_named
    from traces.base.jit import compilation

    solver_named(solver)
    _check_options(out, format_, set_, simulate, previous, max_moves)
    if out is not None:
        check_suffix(out, format_)
        check_file(out, reads=(source, previous, simulate))
    loads = read_source(source, named_hints(model, experts), hold_out=hold_out, windows=windows)
    bench = None if simulate is None else trial(simulate, overrides(set_), loads, gpus)
    known = bench.scenario.model if bench is not None else known_model(model, loads)
    hidden_layers = loads.hidden_layers if known is None else known.layers
    target = Target(loads.experts, gpus, loads.layers, hidden_layers)
    question = Question(
        gpus,
        nodes if nodes is not None else (1 if bench is None else bench.nodes),
        slots,
        objective,
        copy_cost,
        worst_window,
        None if previous is None else load_placement(previous, target),
        max_moves,
        bench.step_cost() if bench is not None and objective == "time" else None,
        None if known is None else known.experts.groups,
        hierarchical or (bench is not None and bench.scenario.placement.hierarchical),
        keeps_one_copy(format_),
    )
    compared = candidates(question, loads, bench)
    if out is not None and "linear" in compared.others:  # before the search, what any placement would break
        check_export(compared.others["linear"], format_, hidden_layers=hidden_layers)
    with _searching(solver) as report, compilation(_say_that_it_compiles) as compiled:
        found = search(compared.problem, solver, loads.seen.what, Search(seconds=time_limit, report=report))
    if compiled.done:
        found = replace(found, wall_s=max(0.0, found.wall_s - compiled.duration))
        tell(f"compiled in {compiled.duration:.1f} s")
    if out is not None:  # before anything else can be interrupted
        note = export(found.placement, out, format_, hidden_layers=hidden_layers)
        tell(f"placement: {out}" + (f" ({note})" if note else ""))
        if load_with := how_to_load(found.placement, out, format_):
            tell(f"load it with: {load_with}")
    runs = 0 if bench is None else 1 + len(compared.others)
    with progress("simulating", runs) as advance:
        value = answer(
            question,
            loads,
            compared,
            found,
            bench=bench,
            expert_bytes_LE=None if known is None else known.expert_bytes_LE,
            progress=advance,
        )
    show(value, lambda: place_tables(value, all_metrics=metrics == "all"), as_json, None)


def _check_options(
    out: Path | None,
    format_: str,
    set_: list[str] | None,
    simulate: str | None,
    previous: Path | None,
    max_moves: int | None,
) -> None:
    """What contradicts itself."""
    from moesim.errors import SpecError

    if out is None and format_ != "native":
        raise SpecError("needs -o FILE to write to", field="--format", got=format_)
    if set_ and simulate is None:
        raise SpecError("sets a field of --simulate SCENARIO, which is not named", field="-s", got=set_[0])
    if max_moves is not None and previous is None:
        raise SpecError("needs --previous FILE to move from", field="--max-moves", got=max_moves)


def _say_that_it_compiles() -> None:
    tell("compiling the solver, once for this machine: up to a minute or two")


@contextlib.contextmanager
def _searching(solver: str) -> Iterator[Report]:
    """How near the bound the search is, on stderr; silent where stderr is no terminal."""
    with spinner(f"{solver}: searching") as shown:
        yield lambda better: shown(f"{better.solver}: at most {better.gap:.2%} above what must be")
