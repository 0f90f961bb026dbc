"""A profile: how close kernels and links come to the data sheet. Schema ``moesim.profile/1``.

A profile is all that a calibration measures and all that a cost model assumes; everything else comes
from the model, the cluster and the counted work. Fractions are of the data-sheet peak.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from moesim.dispatch.modes import MODES
from moesim.errors import SpecError
from moesim.spec.base import Count, DispatchMode, Flag, Many, Part, Strict, fault, validate
from moesim.spec.cluster import Cluster
from moesim.spec.dtypes import DTYPE_BYTES, Dtype
from moesim.spec.links import Links
from moesim.spec.presets import on_base, preset_names, preset_source
from moesim.spec.uncertainty import Seconds, Share, draws, figures
from moesim.spec.yaml_source import Loc, Source, read_yaml
from traces.base.files import check_format

_MAX_SHAPES = 64
"""Tile heights, and widths: every GEMM of a step is tried with each pair."""

LEAST_SURE = 2.0
"""The largest uncertainty: seven times as long, or a seventh, is then no surprise."""

_FITTED_ON = {"H100": "h100", "H800": "h800"}
"""Beginnings of GPUs' names, and the preset with figures of their own transfers."""

Phase = Literal["attention", "router", "dispatch", "experts", "shared_expert", "combine", "dense", "other"]


class Roof(Strict):
    """How close one family of kernels comes to the two roofs.

    A kernel that needs c seconds of arithmetic and m seconds of memory traffic at these rates takes
    max(c, m) + (1 - overlap) · min(c, m): overlap 1 is the roofline, overlap 0 adds the two. To fill and
    drain its pipeline, a tile of a GEMM takes as long as ``drain`` more bytes of its depth would.
    """

    compute: Share
    memory: Share
    overlap: Annotated[float, Field(ge=0, le=1)] = 1.0
    drain: Many = 0.0


class Tile(Strict):
    """A tile height of GEMMs, and the share of ``compute`` that such tiles reach.

    Before its first tile each group of rows costs as much as ``start`` rows more: on a CPU a GEMM packs its
    operands first, which few rows do not repay.
    """

    rows: Count
    efficiency: Part
    start: Many = 0.0


class Jitter(Strict):
    """How long a phase takes on one rank, over its median, from one time to the next.

    Attributes:
        ratios: quantiles, ascending. Of n values the i-th, counted from 0, is not exceeded with probability
            (i + ½) / n; between two of them the quantile is linear, and nothing lies beyond the ends.
        together: how far what slows one rank slows all: the correlation of two ranks' normal scores.
    """

    ratios: Annotated[
        tuple[Annotated[float, Field(ge=1e-6, le=1e6)], ...], Field(min_length=2, max_length=_MAX_SHAPES)
    ]
    together: Annotated[float, Field(ge=0, le=1)]

    @model_validator(mode="after")
    def _ascends(self) -> Self:
        if list(self.ratios) != sorted(self.ratios):
            raise fault("must ascend", "ratios", got=self.ratios)
        return self


class Profile(Strict):
    """Efficiencies and fixed costs of one machine, with where they come from.

    Attributes:
        gpu: the GPU they were measured on; ``any`` for assumptions that fit several.
        fitted_gpus: beginnings of the names of GPUs that they were fitted on, where ``gpu`` is ``any``.
        dtypes: weight dtypes that they hold for; none named for all.
        gemm, grouped_gemm, attention: roofs of dense GEMMs, expert GEMMs, and attention scores.
        router: roof of the gate with all else that a router does row by row; that of ``gemm`` without it.
        tiles: heights a GEMM can use. Rows are padded to whole tiles, and a launch uses the height that
            takes it the least time.
        widths: widths a tile can have. A wave of tiles, one for each multiprocessor, counts whole however
            few it has, and a launch uses the best width; without any, work spreads evenly.
        loop: whether the experts' GEMMs are launched slot by slot, so that each takes the height that suits
            its own rows, and arithmetic overlaps with the streaming of its own weights only.
        inputs: by dtype of weights, the dtype to which what they multiply is quantised, on GPUs with figures
            for both. Other weights narrower than fp8, and those of other GPUs, are widened to the dtype of
            the activations.
        fused_activation: whether the experts' first GEMM applies the activation before it writes.
        launch: seconds per kernel launch, replayed from a CUDA graph where the server uses one.
        eager_launch: seconds in which the host launches a kernel without a graph: the GPU waits for it where
            it is done sooner. None where that is never seen.
        kernels: launches in each phase of a layer (``other``: of a step) but those of small kernels.
        small_kernels: share of the memory bandwidth at which norms, quantisation, rotation, top-k and the
            like read and write (``moesim.hardware.small_kernels`` lists them); None leaves them out.
        transfers: share of the memory bandwidth at which transfers beside kernels pass through memory, so
            that each waits for the other's bytes; None where neither is seen to slow the other down.
        nvlink, nic: share of the links' bandwidths that transfer kernels reach, unless ``dispatch`` names
            their mode.
        dispatch: what the transfer kernels of a mode reach; ``moesim.dispatch.modes`` says whose a mode uses
            that is another inside one node, or is not named itself.
        plain: what a collective library's own all-to-all reaches: of modes that ``dispatch`` does not name,
            and over several nodes of those that go straight to each GPU.
        step: seconds of host work per step that no GPU work hides.
        step_sequence, step_token: further ones for each sequence and each token of the fullest rank.
        memory: share of GPU memory that weights, KV cache and buffers may take.
        jitter: how durations of a phase spread; a phase that is not named always takes its median.
        machine: the cluster that was measured, where a calibration wrote the profile; a scenario that names
            no cluster runs on it.
        residuals: relative errors of the fit, by quantity; empty where nothing was fitted.
        uncertainty: how far its figures may be off: by key, such as ``launch`` or ``dispatch.per_node``, the
            standard deviation of the logarithm of the time that the figures below it give. Empty where
            nobody knows.
        sources: for each figure, where it comes from.
    """

    format: Literal["moesim.profile/1"]
    name: str
    origin: str
    date: str
    gpu: str = "any"
    fitted_gpus: tuple[str, ...] = ()
    dtypes: tuple[Dtype, ...] = ()
    gemm: Roof
    grouped_gemm: Roof
    attention: Roof
    router: Roof | None = None
    tiles: Annotated[tuple[Tile, ...], Field(min_length=1, max_length=_MAX_SHAPES)]
    widths: Annotated[tuple[Count, ...], Field(max_length=_MAX_SHAPES)] = ()
    loop: Flag = False
    inputs: dict[Dtype, Dtype] = Field(default_factory=dict)
    fused_activation: Flag = False
    launch: Seconds
    eager_launch: Seconds | None = None
    kernels: dict[Phase, Annotated[int, Field(ge=0, le=10**6)]]
    small_kernels: Share | None = None
    transfers: Share | None = None
    nvlink: Share
    nic: Share
    dispatch: dict[DispatchMode, Links] = Field(default_factory=dict)
    plain: Links | None = None
    step: Seconds
    step_sequence: Seconds = 0.0
    step_token: Seconds = 0.0
    memory: Part
    jitter: dict[Phase, Jitter] = Field(default_factory=dict)
    machine: Cluster | None = None
    residuals: dict[str, float] = Field(default_factory=dict)
    uncertainty: dict[str, Annotated[float, Field(gt=0, le=LEAST_SURE)]] = Field(default_factory=dict)
    sources: dict[str, str]

    @model_validator(mode="after")
    def _is_of_its_machine(self) -> Self:
        if self.machine is not None and self.machine.gpu.name != self.gpu:
            raise fault(f"must be that of machine.gpu, {self.machine.gpu.name}", "gpu", got=self.gpu)
        return self

    @model_validator(mode="after")
    def _inputs_are_no_narrower(self) -> Self:
        for weights, inputs in self.inputs.items():
            if DTYPE_BYTES[inputs] < DTYPE_BYTES[weights]:
                raise fault("must not be narrower than the weights", "inputs", weights, got=inputs)
        return self

    @model_validator(mode="after")
    def _is_uncertain_of_its_own_figures(self) -> Self:
        if not self.uncertainty:
            return self
        drawn = [figure.split(".") for figure in figures(self)]
        known = {".".join(parts[:end]) for parts in drawn for end in range(1, len(parts) + 1)}
        for key in self.uncertainty:
            if key not in known:
                raise fault("names no figure of the profile", "uncertainty", key)
        return self

    def host_s(self, tokens: float, sequences: float) -> float:
        """Seconds of host work in a step whose fullest rank has so many of each."""
        return self.step + sequences * self.step_sequence + tokens * self.step_token

    def draws(self, count: int) -> list[Profile]:
        """Profiles that are as likely as this one, as far as its uncertainties say."""
        return draws(self, self.uncertainty, count)

    def links(self, mode: str, nodes: int) -> Links:
        """What a group that dispatches by ``mode`` over ``nodes`` nodes reaches."""
        record = MODES[mode]
        if nodes == 1:
            mode = record.in_one_node or mode
        if mode not in self.dispatch:
            mode = record.links or mode
        plain = self.plain or Links(nvlink=self.nvlink, nic=self.nic)
        if nodes > 1 and record.plain_across and self.plain is not None:
            return plain.over(nodes)
        return self.dispatch.get(mode, plain).over(nodes)


DATA_SHEET = Profile(
    format="moesim.profile/1",
    name="data sheet",
    origin="every rate at its peak, no fixed cost: the lower bound beside each result",
    date="",
    gemm=Roof(compute=1, memory=1),
    grouped_gemm=Roof(compute=1, memory=1),
    attention=Roof(compute=1, memory=1),
    tiles=(Tile(rows=1, efficiency=1),),
    inputs={"mxfp4": "mxfp4", "nvfp4": "nvfp4", "int8": "int8"},
    fused_activation=True,
    launch=0.0,
    kernels={},
    nvlink=1,
    nic=1,
    step=0.0,
    memory=1,
    sources={},
)


def load_profile(value: Any, source: Source, at: Loc, gpu: str = "") -> Profile:
    """A profile from a preset's name, a YAML file, or an inline mapping.

    A mapping may name a preset as its ``base``, whose fields its own replace, mapping by mapping.

    Args:
        value: None is the preset whose transfers were fitted on ``gpu``, or ``generic``.
        source: where ``value`` stands, at ``at``.
        gpu: name of the cluster's GPU.

    Raises:
        SpecError: unknown preset, missing file, or a field that breaks the schema.
    """
    if value is None:
        value = next((preset for name, preset in _FITTED_ON.items() if gpu.startswith(name)), "generic")
    if isinstance(value, str):
        if value in preset_names("profiles"):
            source, at = preset_source("profiles", value), ()
        elif value.endswith((".yaml", ".yml")):
            source, at = read_yaml(source.path(value)), ()
        else:
            known = ", ".join(preset_names("profiles"))
            raise source.error(f"must be a .yaml file or one of: {known}", at, got=value)
        value = source.value
    if isinstance(value, dict) and "format" in value:
        check_format(value["format"], "profile", 1, file=source.file or "profile", error=SpecError)
    if isinstance(value, dict) and "base" in value:
        value = on_base(value, lambda name: _preset(name, source, (*at, "base")), source, at)
    return validate(Profile, value, source=source, at=at)


def _preset(name: str, source: Source, at: Loc) -> Profile:
    """The preset that a mapping is based on; files are not, so that none is based on itself."""
    return load_profile(preset_source("profiles", name, at, source).value, source, at)
