"""``moesim trace``: look at routing traces, and bring them in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moesim.commands.terminal import AsJson, show

app = typer.Typer(help="Look at routing traces and convert them.", no_args_is_help=True)


@app.command("info")
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
    show(facts.to_dict(), lambda: info_tables(facts), as_json, None)


@app.command("convert")
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
