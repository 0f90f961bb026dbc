"""What is asked of a deployment: the workload, its routing trace, its placement, its dispatch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from moesim.spec.base import Count, Number, Strict, fault

DispatchMode = Literal["per_expert", "per_gpu", "per_node"]
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


class Workload(Strict):
    """Decoding: each step adds one token to each of ``tokens_per_gpu`` sequences on every GPU.

    Attributes:
        tokens_per_gpu: sequences with their home on each GPU.
        context: tokens in the KV cache of each sequence.
        steps: forward passes to simulate.
    """

    phase: Literal["decode"] = "decode"
    tokens_per_gpu: Annotated[int, Field(strict=True, ge=1, le=1 << 16)]
    context: Count
    steps: Annotated[int, Field(strict=True, ge=1, le=1 << 20)] = 10


class Synthesis(Strict):
    """A generated trace of the model's shape; expert groups are the model's.

    Attributes:
        skew: standard deviation of the logarithm of expert popularity; 0 is uniform.
        persistence: how much of a token's affinity to experts its successor keeps, 0 to below 1.
    """

    requests: Count = 64
    tokens_per_request: Count = 64
    skew: Annotated[Number, Field(ge=0, le=10)]
    persistence: Annotated[Number, Field(ge=0, lt=1)] = 0.5


class TraceSource(Strict):
    """Where the routing comes from: a recorded file, or a generator."""

    file: str | None = None
    synth: Synthesis | None = None

    @model_validator(mode="after")
    def _one_source(self) -> TraceSource:
        if (self.file is None) == (self.synth is None):
            raise fault("must name either a file or synth, and not both")
        return self


class PlacementChoice(Strict):
    """A solver, fitted on the first ``fit_fraction`` of the requests, or a placement file.

    Attributes:
        slots: slots on all GPUs together; by default one for each expert.
    """

    solver: str | None = None
    slots: Count | None = None
    fit_fraction: Annotated[Number, Field(gt=0, lt=1)] = 0.5
    file: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> PlacementChoice:
        if (self.file is None) == (self.solver is None):
            raise fault("must name either a solver or a file, and not both")
        if self.file is not None and self.slots is not None:
            raise fault("belong to a solver; a file has its own", "slots", got=self.slots)
        return self


class Dispatch(Strict):
    """What counts as a copy of a token, and its dtype on the way out and back."""

    mode: DispatchMode = "per_gpu"
    dtype: Dtype = "bf16"
    combine_dtype: Dtype = "bf16"
