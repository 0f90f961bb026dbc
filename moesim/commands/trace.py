"""``moesim trace``: look at routing traces, bring them in, record them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moesim.commands.terminal import AsJson, progress, show

app = typer.Typer(help="Look at routing traces, convert and record them.", no_args_is_help=True)

RecordedModel = Annotated[
    str | None, typer.Option("--model", help="Preset or config.json of the model that was recorded.")
]
RecordedExperts = Annotated[
    int | None, typer.Option("--experts", min=1, help="Experts of a layer, where no --model says so.")
]


@app.command("info")
def trace_info(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A trace, a load table, or a serving system's file.")
    ],
    ep: Annotated[
        int | None,
        typer.Option("--ep", min=1, metavar="G", help="Also the balance of G GPUs, placed linearly."),
    ] = None,
    model: RecordedModel = None,
    experts: RecordedExperts = None,
    as_json: AsJson = False,
) -> None:
    """What a trace or a load table holds and how skewed it is."""
    from moesim.convert import named_hints
    from moesim.report.trace_table import info_tables
    from traces.describe import describe

    facts = describe(file, ep=ep, hints=named_hints(model, experts))
    show(facts.to_dict(), lambda: info_tables(facts), as_json, None)


@app.command("convert")
def trace_convert(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A recording by something else, or a folder.")],
    out: Annotated[
        Path,
        typer.Option(
            "-o", metavar="OUT", help="The trace (Parquet) or load table (Parquet or JSON) to write."
        ),
    ],
    from_: Annotated[
        str | None,
        typer.Option("--from", metavar="FORMAT", help="The layout; by default told by the content."),
    ] = None,
    model: RecordedModel = None,
    experts: RecordedExperts = None,
    origin: Annotated[str, typer.Option("--origin", help="Where the recording comes from.")] = "",
    licence: Annotated[str, typer.Option("--licence", help="The licence of the recording.")] = "",
) -> None:
    """Convert what something else recorded: tokens into a trace, counts into a load table."""
    from moesim.convert import convert_trace, named_hints
    from moesim.output import check_file

    check_file(out, reads=[file])
    hints = named_hints(model, experts, origin=origin, licence=licence)
    convert_trace(file, out, hints, layout=from_)
    _say(out)


@app.command("record")
def trace_record(
    model: Annotated[
        Path, typer.Option("--model", metavar="PATH", help="Folder of a Hugging Face model and tokenizer.")
    ],
    text: Annotated[
        list[Path], typer.Option("--text", metavar="FILE", help="Text to read; may be repeated.")
    ],
    out: Annotated[Path, typer.Option("-o", metavar="OUT", help="The trace to write, in Parquet.")],
    candidates: Annotated[
        int, typer.Option("--candidates", min=0, metavar="C", help="Also the C best experts' scores.")
    ] = 0,
    length: Annotated[
        int, typer.Option("--length", min=1, metavar="N", help="Tokens of a request: texts are cut.")
    ] = 1024,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, metavar="N", help="Tokens to record of each text.")
    ] = None,
    origin: Annotated[str, typer.Option("--origin", help="Where model and text come from.")] = "",
    licence: Annotated[str, typer.Option("--licence", help="The licence of the recording.")] = "",
) -> None:
    """Run texts through a model and record what its routers choose; needs torch and transformers."""
    from moesim.output import check_file
    from moesim.record import record_texts

    check_file(out, reads=text)
    record_texts(
        model,
        text,
        out,
        candidates=candidates,
        length=length,
        limit=limit,
        origin=origin,
        licence=licence,
        progress=progress,
    )
    _say(out)


def _say(out: Path) -> None:
    """One line on what was written."""
    from traces.load_table_file import is_load_table, read_load_table
    from traces.trace_file import TraceFile

    if is_load_table(out):
        table = read_load_table(out)
        typer.echo(f"{out}: a load table of {table.windows:,} windows, {_shape(table.layers, table.experts)}")
        return
    with TraceFile(out) as trace:
        shape = f"{_shape(trace.meta.layers, trace.meta.experts)}, top-{trace.meta.top_k}"
        typer.echo(f"{out}: {trace.tokens:,} tokens of {trace.requests:,} requests, {shape}")


def _shape(layers: tuple[int, ...], experts: int) -> str:
    return f"{len(layers)} layers, {experts} experts"
