"""The routing trace that a scenario names: read, or generated, and of the model's shape."""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path

from moesim.errors import TraceError
from moesim.spec.generator_file import read_generator, shaped
from moesim.spec.model import Model
from moesim.spec.scenario import Scenario
from moesim.spec.workload import PERSISTENCE, Synthesis
from traces.generator import generate
from traces.interop import load_any
from traces.interop.hints import Hints
from traces.routing import RoutingTrace
from traces.sample import SAMPLE_GENERATOR, SAMPLE_TRACE
from traces.synthesis import SynthSpec, synthesize
from traces.trace_file import TraceFile


def hints_of(model: Model) -> Hints:
    """All that a model tells of a recording of it."""
    return Hints(
        model=model.name,
        experts=model.experts.count,
        top_k=model.experts.top_k,
        layers=model.moe_layers,
        hidden_layers=model.layers,
    )


def load_trace(scenario: Scenario) -> RoutingTrace:
    """The trace that a scenario names: read, or generated; the last ones are kept."""
    synth = scenario.trace.synth
    if scenario.trace.sample:
        if replays_sample(scenario.model):
            return _read(str(SAMPLE_TRACE), None, scenario.model)
        synth = Synthesis(file=str(SAMPLE_GENERATOR))
    if synth is not None and synth.file is not None:
        return _generated(scenario.model, synth, _version(Path(synth.file)), scenario.seed)
    if synth is not None:
        return _synthesized(scenario.model, synth, scenario.seed)
    assert scenario.trace.file is not None  # TraceSource names one of the three
    path = Path(scenario.trace.file)
    return _read(str(path), _version(path), scenario.model)


def replays_sample(model: Model) -> bool:
    """Whether the built-in sample has the shape of ``model``; for others more of its kind is generated."""
    return _sample_shape() == (model.moe_layers, model.experts.count, model.experts.top_k)


@cache
def _sample_shape() -> tuple[tuple[int, ...], int, int]:
    with TraceFile(SAMPLE_TRACE) as file:
        return file.meta.layers, file.meta.experts, file.meta.top_k


def _version(path: Path) -> tuple[int, int] | None:
    """Another one after a file has changed: between two runs of one process it must be read again."""
    try:
        stat = path.stat()
    except (OSError, ValueError):  # whoever reads it says so
        return None
    return stat.st_mtime_ns, stat.st_size


@lru_cache(maxsize=2)
def _read(path: str, _version: tuple[int, int] | None, model: Model) -> RoutingTrace:
    # A trace of ours says itself what it is of; a foreign recording is taken to be of the scenario's model.
    return load_any(path, hints_of(model))


@lru_cache(maxsize=2)
def _generated(model: Model, synth: Synthesis, _version: tuple[int, int] | None, seed: int) -> RoutingTrace:
    assert synth.file is not None  # load_trace comes here with one
    generator = shaped(read_generator(synth.file), model)
    return generate(generator, synth.requests, synth.tokens_per_request, seed)


@lru_cache(maxsize=2)
def _synthesized(model: Model, synth: Synthesis, seed: int) -> RoutingTrace:
    experts = model.experts
    assert synth.skew is not None  # Synthesis has a file or this
    return synthesize(
        SynthSpec(
            model=model.name,
            layers=model.moe_layers,
            experts=experts.count,
            top_k=experts.top_k,
            requests=synth.requests,
            tokens_per_request=synth.tokens_per_request,
            skew=synth.skew,
            persistence=PERSISTENCE if synth.persistence is None else synth.persistence,
            groups=experts.groups,
            top_groups=experts.top_groups,
            candidates=synth.candidates,
            seed=seed,
        )
    )


def check_shape(trace: RoutingTrace, model: Model, file: str | None) -> None:
    """Refuse a trace of another model.

    Raises:
        TraceError: its layers, experts or experts per token differ.
    """
    wanted = (len(model.moe_layers), model.experts.count, model.experts.top_k)
    found = (len(trace.meta.layers), trace.meta.experts, trace.meta.top_k)
    for name, want, have in zip(("MoE layers", "experts", "experts per token"), wanted, found, strict=True):
        if want != have:
            raise TraceError(
                f"the trace is of another shape than {_name(model)}, which has {want} {name}: name the model "
                f"it was recorded from ({trace.meta.model or 'not told'}), or bring a trace of this one",
                file=file,
                field="trace",
                got=f"{have} {name}",
            )
    if trace.meta.layers != model.moe_layers:
        raise TraceError(
            f"the trace is of other layers than {_name(model)}, whose MoE layers are {model.moe_layers}",
            file=file,
            field="trace",
            got=trace.meta.layers,
        )


def _name(model: Model) -> str:
    return model.name or "the model"
