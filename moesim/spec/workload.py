"""What is asked of a deployment: the workload, its routing trace, its placement, its dispatch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from moesim.dispatch.modes import DEFAULT, MODES, Mode
from moesim.spec.amount import Amount
from moesim.spec.base import Count, DispatchMode, Flag, Index, Number, Strict, fault

Dtype = Literal["fp32", "bf16", "fp16", "fp8"]


class Parallelism(Strict):
    """How the model is spread: experts over ``ep`` GPUs; attention data parallel over ep / tp groups."""

    ep: Count
    tp: Count = 1

    @model_validator(mode="after")
    def _groups_are_whole(self) -> Parallelism:
        if self.ep % self.tp:
            raise fault(f"must divide ep, which is {self.ep}", "tp", got=self.tp)
        return self


_KEPT = 1000
"""Steps that are kept whole of a run that has more, unless it says otherwise."""


class Workload(Strict):
    """What every step asks of each GPU.

    Attributes:
        phase: ``decode``: each step adds one token to each of ``tokens_per_gpu`` sequences. ``prefill``:
            each step takes a chunk of ``tokens_per_gpu`` consecutive tokens of few requests. ``mixed``:
            decoding, with a chunk of ``prefill_tokens_per_gpu`` beside it.
        tokens_per_gpu, prefill_tokens_per_gpu: for each rank; a distribution is drawn once for each rank.
        context: decoding: tokens in the KV cache of each sequence, drawn for each sequence where it is a
            distribution. Prefill: tokens cached before the first of each request.
        order: which request follows one that has ended. ``drawn``: any, whatever its place in the trace.
            ``recorded``: the next of the trace, from its beginning, so that traffic drifts as it was
            recorded; behind the last comes the first.
        part: ``moe`` leaves the MoE part of each layer, gate to combine, of which a real run consists
            (``moesim execute``): no attention, dense layers, head or host work per step.
        steps: forward passes to simulate.
        timeline_every: of every so many steps one is kept whole, for the timeline, the causes of its time and
            its stragglers; metrics are of all steps. By default all are, or a thousand of more.
        graph_sizes: batch sizes for which a graph was captured: every rank runs with the tokens of the
            smallest graph that holds the fullest rank's batch; larger batches run without a graph.
    """

    phase: Literal["decode", "prefill", "mixed"] = "decode"
    tokens_per_gpu: Amount
    prefill_tokens_per_gpu: Amount | None = None
    context: Amount
    order: Literal["drawn", "recorded"] = "drawn"
    part: Literal["model", "moe"] = "model"
    steps: Annotated[int, Field(strict=True, ge=1, le=1 << 20)] = 10
    timeline_every: Count | None = None
    graph_sizes: tuple[Count, ...] | None = None

    @model_validator(mode="after")
    def _fits_its_phase(self) -> Workload:
        if (self.phase == "mixed") != (self.prefill_tokens_per_gpu is not None):
            rule = "is missing: phase mixed needs it" if self.phase == "mixed" else "belongs to phase mixed"
            raise fault(rule, "prefill_tokens_per_gpu", got=self.prefill_tokens_per_gpu)
        for name in ("tokens_per_gpu", "prefill_tokens_per_gpu"):
            amount: Amount | None = getattr(self, name)
            if amount is not None and (
                amount.each == 0 or (amount.ranks is not None and not any(amount.ranks))
            ):
                raise fault("must be at least 1 on some rank", name, got=0)
        return self

    @property
    def kept_every(self) -> int:
        """Of how many steps one is kept whole."""
        return self.timeline_every or -(-self.steps // _KEPT)

    @property
    def amounts(self) -> dict[str, Amount]:
        """The amounts by field; a list among them has one entry for each rank."""
        named = {"tokens_per_gpu": self.tokens_per_gpu, "context": self.context}
        if self.prefill_tokens_per_gpu is not None:
            named["prefill_tokens_per_gpu"] = self.prefill_tokens_per_gpu
        return named


PERSISTENCE = 0.5
"""Of a generated trace, where nothing else is named."""


class Synthesis(Strict):
    """A generated trace of the model's shape; expert groups are the model's.

    A preset's name stands for its fields; ``base`` names one whose fields others replace.

    Attributes:
        file: a generator that was fitted to a trace (``moesim trace fit``); without it:
        skew: standard deviation of the logarithm of expert popularity; 0 is uniform.
        persistence: how much of a token's affinity to experts its successor keeps, 0 to below 1;
            by default ``PERSISTENCE``.
        candidates: the best experts of each token whose scores are there too, for policies that need them;
            0 for none.
    """

    file: str | None = None
    requests: Count = 64
    tokens_per_request: Count = 64
    skew: Annotated[Number, Field(ge=0, le=10)] | None = None
    persistence: Annotated[Number, Field(ge=0, lt=1)] | None = None
    candidates: Index = 0

    @model_validator(mode="before")
    @classmethod
    def _a_name_is_a_file(cls, value: Any) -> Any:
        return {"file": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_model(self) -> Synthesis:
        if self.file is None and self.skew is None:
            raise fault("is missing; or name a fitted generator as file", "skew", got=None)
        for name in ("skew", "persistence", "candidates"):
            if self.file is not None and getattr(self, name) not in (None, 0):
                raise fault("does not belong beside a fitted generator", name, got=getattr(self, name))
        return self


class TraceSource(Strict):
    """Where the routing comes from: a recorded file, the built-in sample, or a generator.

    Attributes:
        sample: the sample as it was recorded where the model has its shape; in another shape, routing that
            a generator makes which was fitted to it.
    """

    file: str | None = None
    sample: Flag = False
    synth: Synthesis | None = None

    @model_validator(mode="after")
    def _one_source(self) -> TraceSource:
        if [self.file is not None, self.sample, self.synth is not None].count(True) != 1:
            nothing = ", and 'sample: false' names none" * (self.model_fields_set == {"sample"})
            raise fault(f"must name one of file, sample and synth{nothing}")
        return self


class PlacementChoice(Strict):
    """A solver, fitted on the first ``fit_fraction`` of the requests, or a placement file.

    Attributes:
        slots: slots on all GPUs together; by default one for each expert.
        hierarchical: whether each of the model's expert groups stays on one node.
    """

    solver: str | None = None
    slots: Count | None = None
    hierarchical: Flag = False
    fit_fraction: Annotated[Number, Field(gt=0, lt=1)] = 0.5
    file: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> PlacementChoice:
        if (self.file is None) == (self.solver is None):
            raise fault("must name either a solver or a file, and not both")
        if self.file is not None and self.slots is not None:
            raise fault("belong to a solver; a file has its own", "slots", got=self.slots)
        if self.file is not None and self.hierarchical:
            raise fault("belongs to a solver", "hierarchical", got=True)
        return self


def _overlap_from(value: Any) -> Any:
    """``none``, one name, or a list of them."""
    if isinstance(value, str):
        return () if value == "none" else (value,)
    return value


def _overlap_text(value: tuple[str, ...]) -> Any:
    """As short as it can be written."""
    return list(value) if len(value) > 1 else (value or ("none",))[0]


# ``shared_expert`` computes beside dispatch; ``two_batch`` lets two micro-batches take turns.
Overlap = Annotated[
    tuple[Literal["shared_expert", "two_batch"], ...],
    BeforeValidator(_overlap_from),
    PlainSerializer(_overlap_text),
]


class Dispatch(Strict):
    """What counts as a copy of a token, and its dtype on the way out and back.

    ``padded``: an all-to-all with equal splits, in which each pair of GPUs exchanges as many copies as the
    pair that needs most.
    """

    mode: DispatchMode = DEFAULT
    dtype: Dtype = "bf16"
    combine_dtype: Dtype = "bf16"
    padded: Flag = False

    @model_validator(mode="after")
    def _has_pairs_to_pad(self) -> Dispatch:
        if self.padded and not self.record.can_pad:
            fitting = " and ".join(name for name, mode in MODES.items() if mode.can_pad)
            raise fault(f"belongs to {fitting}, not to {self.mode}", "padded", got=True)
        return self

    @property
    def record(self) -> Mode:
        """What the mode's name stands for."""
        return MODES[self.mode]
