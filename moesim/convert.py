"""From a foreign recording to a trace, with what its file does not know taken from a model."""

from __future__ import annotations

from pathlib import Path

from moesim.errors import TraceError
from moesim.spec.presets import load_model
from moesim.spec.yaml_source import Source
from traces.interop import IMPORTERS, detect, importer
from traces.routing import RoutingTrace, write_trace


def convert_trace(
    file: Path,
    out: Path,
    *,
    layout: str | None = None,
    model: str | None = None,
    experts: int | None = None,
    origin: str = "",
    licence: str = "",
) -> RoutingTrace:
    """Read ``file``, write it to ``out`` as a routing trace, and return it.

    Args:
        layout: a key of ``IMPORTERS``; None tells it by the content.
        model: a model preset or ``config.json``, which gives the name, experts and true layer indices.
        experts: E, for a model that is neither.

    Raises:
        MoesimError: no importer knows the layout, something must be named, or a rule is broken.
    """
    found = importer(layout) if layout is not None else detect(file)
    if found is None:
        rule = (
            f"is of no layout that can be told by its content; name one with --from: {', '.join(IMPORTERS)}"
        )
        if not file.exists():
            rule = "no such file"
        raise TraceError(rule, file=file)
    name, layers = model or "", None
    if model is not None:
        known = load_model(model, Source(model, None, {}))
        name, layers = known.name, known.moe_layers
        if experts is not None and experts != known.experts.count:
            raise TraceError(f"{name} has {known.experts.count} experts", field="--experts", got=experts)
        experts = known.experts.count
    trace = found.convert(file, model=name, experts=experts, layers=layers, origin=origin, licence=licence)
    if model is not None and trace.meta.top_k != known.experts.top_k:
        raise TraceError(
            f"{name} chooses {known.experts.top_k} experts per token", file=file, got=trace.meta.top_k
        )
    write_trace(trace, out)
    return trace
