"""``moesim trace``: look at routing traces, bring them in, record them, generate more like them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moesim.commands.terminal import AsJson, faults_of, progress, say, show, trace_path
from moesim.spec.question import plural
from traces.base.errors import MoesimError

app = typer.Typer(help="Look at routing traces, convert, record and generate them.", no_args_is_help=True)

RecordedModel = Annotated[
    str | None, typer.Option("--model", help="Preset or config.json of the model that was recorded.")
]
RecordedExperts = Annotated[
    int | None, typer.Option("--experts", min=1, help="Experts of a layer, where no --model says so.")
]


@app.command("info")
def trace_info(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A trace, a load table, or a serving system's file; sample is the built-in trace.",
            parser=trace_path,
        ),
    ],
    ep: Annotated[
        int | None,
        typer.Option("--ep", min=1, metavar="G", help="Also the balance of G GPUs, placed linearly."),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Also who meets whom, what changes, what repeats; of a trace.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("-o", metavar="OUT", help="With --full: write a page with pictures (HTML).")
    ] = None,
    model: RecordedModel = None,
    experts: RecordedExperts = None,
    as_json: AsJson = False,
) -> None:
    """What a trace or a load table holds and how skewed it is."""
    from moesim.studies.convert import named_hints
    from traces.interop.describe import describe, describe_fully

    if out is not None and not full:
        raise MoesimError("belongs to --full", field="-o", got=str(out))
    hints = named_hints(model, experts)
    if not full:
        from moesim.report.trace_table import info_tables

        facts = describe(file, ep=ep, hints=hints)
        show(facts.to_dict(), lambda: info_tables(facts), as_json, None)
        return
    from moesim.output import check_file
    from moesim.report.trace_page import trace_page
    from moesim.report.trace_table import full_tables
    from traces.base.files import write_text

    if out is not None:
        check_file(out, reads=[file])
    found = describe_fully(file, ep=ep, hints=hints)
    if out is not None:
        write_text(out, trace_page(found))
    show(found.to_dict(), lambda: full_tables(found), as_json, None)


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
    from moesim.output import check_file
    from moesim.studies.convert import convert_trace, named_hints

    check_file(out, reads=[file])
    hints = named_hints(model, experts, origin=origin, licence=licence)
    note = convert_trace(file, out, hints, layout=from_)
    _say_what_is_in(out)
    if note:
        say(note)


@app.command("window")
def trace_window(
    file: Annotated[Path, typer.Argument(metavar="TRACE", help="A trace, or sample.", parser=trace_path)],
    out: Annotated[Path, typer.Option("-o", metavar="OUT", help="The trace to write (Parquet).")],
    requests: Annotated[
        str | None, typer.Option("--requests", metavar="A:B", help="The requests from A on, before B.")
    ] = None,
    tokens: Annotated[
        str | None, typer.Option("--tokens", metavar="A:B", help="The tokens from A on, before B.")
    ] = None,
    layers: Annotated[
        str | None, typer.Option("--layers", metavar="L,L,…", help="These layers, by their true index.")
    ] = None,
) -> None:
    """Cut a part out of a trace, of which nothing else is read."""
    from moesim.output import check_file
    from traces.trace_file import TraceFile
    from traces.trace_writer import write_trace

    if requests is not None and tokens is not None:
        raise MoesimError("takes the place of --requests: name one", field="--tokens", got=tokens)
    check_file(out, reads=[file])
    some = None if layers is None else _layers(layers)
    with TraceFile(file) as trace:
        if requests is None:
            part = trace.read(None if tokens is None else _range(tokens, "--tokens"), some)
        else:
            wanted = _range(requests, "--requests")
            stop = trace.requests if wanted.stop is None else wanted.stop
            part = trace.read_requests(wanted.start, stop, some)
    write_trace(part, out)
    _say_what_is_in(out)


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
    from moesim.studies.record import record_texts

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
    _say_what_is_in(out)


@app.command("fit")
def trace_fit(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="TRACE", help="A trace, sample, or a recording by something else.", parser=trace_path
        ),
    ],
    out: Annotated[Path, typer.Option("-o", metavar="OUT", help="The generator to write (YAML).")],
    topics: Annotated[
        int, typer.Option("--topics", min=1, metavar="C", help="Kinds of tokens, at most.")
    ] = 64,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the random numbers in the fit.")] = 0,
    model: RecordedModel = None,
    experts: RecordedExperts = None,
) -> None:
    """Fit a generator to a trace: it makes routing of the same structure, in any model's shape."""
    from moesim.output import check_file
    from moesim.spec.generator_file import write_generator
    from moesim.studies.convert import named_hints
    from traces.fitting import fitted
    from traces.interop import load_any

    check_file(out, reads=[file])
    with faults_of(str(file)):
        generator = fitted(load_any(file, named_hints(model, experts)), topics=topics, seed=seed)
    write_generator(generator, out)
    meta, found = generator.meta, len(generator.log_weight_CLE)
    shape = f"{_shape(meta.layers, meta.experts)}, top-{meta.top_k}"
    say(f"{out}: {plural(found, 'topic')}, {shape}; {meta.origin}")


@app.command("synth")
def trace_synth(
    file: Annotated[
        Path, typer.Argument(metavar="GENERATOR", help="A generator that moesim trace fit has written.")
    ],
    out: Annotated[Path, typer.Option("-o", metavar="OUT", help="The trace to write (Parquet).")],
    requests: Annotated[int, typer.Option("--requests", min=1, metavar="R", help="Requests.")] = 64,
    tokens: Annotated[int, typer.Option("--tokens", min=1, metavar="T", help="Tokens of each request.")] = 64,
    model: Annotated[
        str | None, typer.Option("--model", help="Preset or config.json of a model to take the shape of.")
    ] = None,
    layers: Annotated[
        int | None, typer.Option("--layers", min=1, help="MoE layers, numbered from 0.")
    ] = None,
    experts: Annotated[int | None, typer.Option("--experts", min=1, help="Experts of a layer.")] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", min=1, help="Experts of a token.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another seed, another trace.")] = 0,
) -> None:
    """Generate a trace with a fitted generator, in the shape it was fitted to or another."""
    from moesim.output import check_file
    from moesim.spec.generator_file import read_generator, shaped
    from moesim.spec.presets import load_model
    from moesim.spec.yaml_source import Source
    from traces.generator import generate
    from traces.trace_writer import write_trace

    check_file(out, reads=[file])
    generator = read_generator(file)
    if model is not None:
        if (layers, experts, top_k) != (None, None, None):
            raise MoesimError(
                "has a shape: name it, or --layers, --experts and --top-k", field="--model", got=model
            )
        generator = shaped(generator, load_model(model, Source(None, None, {}), ("--model",)))
    elif (layers, experts, top_k) != (None, None, None):
        meta = generator.meta
        indices = meta.layers if layers in (None, len(meta.layers)) else tuple(range(layers or 0))
        generator = generator.scaled(indices, experts or meta.experts, top_k or meta.top_k)
    write_trace(generate(generator, requests, tokens, seed), out)
    _say_what_is_in(out)


def _say_what_is_in(out: Path) -> None:
    """One line on what was written."""
    from traces.load_table_file import is_load_table, read_load_table
    from traces.trace_file import TraceFile

    if is_load_table(out):
        table = read_load_table(out)
        windows = plural(table.windows, "window")
        say(f"{out}: a load table of {windows}, {_shape(table.layers, table.experts)}")
        return
    with TraceFile(out) as trace:
        shape = f"{_shape(trace.meta.layers, trace.meta.experts)}, top-{trace.meta.top_k}"
        say(f"{out}: {plural(trace.tokens, 'token')} of {plural(trace.requests, 'request')}, {shape}")


def _shape(layers: tuple[int, ...], experts: int) -> str:
    return f"{plural(len(layers), 'layer')}, {plural(experts, 'expert')}"


def _range(text: str, option: str) -> slice:
    """``A:B``, ``A:`` or ``:B``."""
    first, colon, last = text.partition(":")
    if not colon or not (first + last).isdecimal():
        raise MoesimError("must be a range such as 0:1000", field=option, got=text)
    return slice(int(first or 0), int(last) if last else None)


def _layers(text: str) -> list[int]:
    """Numbers with commas between them."""
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts):
        raise MoesimError("must be layers such as 3,4,5", field="--layers", got=text)
    return [int(part) for part in parts]
