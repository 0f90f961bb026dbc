"""From a foreign recording to a trace or load table, with what its file does not know taken from a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from moesim.deployment.reading import hints_of
from moesim.errors import MoesimError, TraceError
from moesim.spec.presets import load_model
from moesim.spec.yaml_source import Source
from traces.interop import IMPORTERS, LOAD_IMPORTERS, check_whole, detect, importer, unknown
from traces.interop.hints import Hints
from traces.interop.recording import Recording
from traces.load_table_file import write_load_table
from traces.trace_file import TraceFile


def named_hints(
    model: str | None, experts: int | None = None, *, origin: str = "", licence: str = ""
) -> Hints:
    """What options tell of a recording.

    Args:
        model: a model preset or ``config.json``, which gives the name, experts and true layer indices.
        experts: E, for a model that is neither.

    Raises:
        MoesimError: no such model, or it has another number of experts.
    """
    if model is None:
        return Hints(experts=experts, origin=origin, licence=licence)
    known = load_model(model, Source(None, None, {}), ("--model",))
    if experts not in (None, known.experts.count):
        raise TraceError(f"{known.name} has {known.experts.count} experts", field="--experts", got=experts)
    return replace(hints_of(known), origin=origin, licence=licence)


def _refuse_trace(file: Path) -> None:
    """Say so where ``file`` needs no conversion."""
    try:
        TraceFile(file).close()
    except MoesimError:
        return
    rule = "is a trace already: nothing is to be converted, and `moesim trace window` takes a part of it"
    raise TraceError(rule, file=file)


def convert_trace(file: Path, out: Path, hints: Hints, *, layout: str | None = None) -> str:
    """Read ``file`` and write it to ``out``: tokens as a routing trace, counts as a load table.

    A trace is written piece by piece where its layout can be read so.

    Args:
        layout: a key of ``IMPORTERS`` or ``LOAD_IMPORTERS``; None tells it by the content.

    Returns:
        what was left out; mostly nothing.

    Raises:
        MoesimError: no importer knows the layout, something must be named, or a rule is broken.
    """
    found = importer(layout) if layout is not None else detect(file)
    if found is None:
        check_whole(file)
        _refuse_trace(file)
        known = ", ".join((*IMPORTERS, *LOAD_IMPORTERS))
        raise unknown(file, f"of no layout that can be told by its content; name one with --from: {known}")
    opened = found.open(file, hints)
    if isinstance(opened, Recording):
        if out.suffix in (".json", ".yaml"):
            raise TraceError("must end in .parquet, as traces do: the recording holds tokens", file=out)
        opened.write(out)
        return opened.written.note
    write_load_table(opened, out)
    return ""
