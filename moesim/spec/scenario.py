"""A scenario: everything that determines a run, resolved from a YAML file or preset and ``-s`` options."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, model_validator

from moesim.errors import PolicyError, SpecError
from moesim.routing.parameters import beyond
from moesim.routing.policies import policies_from, spec_of
from moesim.routing.replicas import REPLICA_CHOICES
from moesim.spec.base import Strict, Text, fault, suggest, validate
from moesim.spec.cluster import Cluster, load_cluster
from moesim.spec.fault import Fault
from moesim.spec.model import Model
from moesim.spec.override import Override, blame
from moesim.spec.presets import load_model, preset_names, preset_source
from moesim.spec.profile import Profile, load_profile
from moesim.spec.rebalance import Rebalance
from moesim.spec.workload import (
    Dispatch,
    Overlap,
    Parallelism,
    PlacementChoice,
    Synthesis,
    TraceSource,
    Workload,
)
from moesim.spec.yaml_source import Loc, Source, read_yaml
from moesim.spec.yaml_text import to_yaml
from placement.problem.placement import MAX_SLOTS
from placement.solvers.solvers import SOLVERS

# No link of a GPU is slower than so many bytes per second; a number without a unit is.
_SLOWEST = 1e6


def _known_replicas(name: str) -> str:
    if name not in REPLICA_CHOICES:
        raise fault(f"must be one of: {', '.join(REPLICA_CHOICES)}")
    return name


class Scenario(Strict):
    """What ``moesim run`` simulates. Every preset in it is expanded, every path absolute.

    Without ``cluster`` a scenario runs on the machine that its profile was measured on.
    """

    name: Text
    model: Model
    cluster: Cluster
    profile: Profile
    parallelism: Parallelism
    trace: TraceSource
    workload: Workload
    placement: PlacementChoice = PlacementChoice(solver="linear")
    rebalance: Rebalance | None = None
    replicas: Annotated[str, AfterValidator(_known_replicas)] = "round_robin"
    routing: dict[str, Any] | list[dict[str, Any]] = Field(default_factory=lambda: {"policy": "none"})
    dispatch: Dispatch = Dispatch()
    overlap: Overlap = ()
    faults: tuple[Fault, ...] = ()
    network: Literal["auto", "ports", "fluid"] = "auto"
    resolution: Literal["auto", "event", "step"] = "auto"
    seed: int = Field(default=0, strict=True, ge=0, lt=1 << 63)

    @model_validator(mode="after")
    def _parts_fit(self) -> Scenario:
        ep, tp, cluster = self.parallelism.ep, self.parallelism.tp, self.cluster
        P = cluster.gpus_per_node
        if cluster.gpus % ep:
            raise fault(f"must divide the cluster's {cluster.gpus} GPUs", "parallelism", "ep", got=ep)
        if ep > P and ep % P:
            raise fault(f"must fill whole nodes of {P} GPUs", "parallelism", "ep", got=ep)
        kinds = (self.model.attention, *self.model.attention_kinds)
        if any(attention.heads % tp for attention in kinds) or tp > P or (ep > P and P % tp):
            heads = self.model.attention.heads
            rule = f"must divide {heads} attention heads and fit whole groups into a node of {P}"
            raise fault(rule, "parallelism", "tp", got=tp)
        dtype, known = self.model.activation_dtype, cluster.gpu.flops
        if dtype not in known:
            raise fault(
                f"has no figure for {dtype}, the model's activation_dtype; known: {', '.join(known)}",
                "cluster",
                "gpu",
                "flops",
                got=cluster.gpu.name,
            )
        for link, at in ((cluster.gpu.nvlink, ("gpu", "nvlink")), (cluster.nic, ("nic",))):
            if link.bandwidth < _SLOWEST:
                got = f"{link.bandwidth:g} bytes per second"
                raise fault(
                    "has lost its unit: write it such as 50 GB/s", "cluster", *at, "bandwidth", got=got
                )
        for name, amount in self.workload.amounts.items():
            if amount.ranks is not None and len(amount.ranks) != ep:
                entries = f"{len(amount.ranks)} entries"
                raise fault(f"must have one entry for each of {ep} ranks", "workload", name, got=entries)
        for i, each in enumerate(self.faults):
            if each.device is not None and each.device >= ep:
                raise fault(
                    f"names a device beyond the {ep} ranks of the group", "faults", i, got=each.device
                )
        self._check_slots()
        self._check_rebalance()
        self._check_routing()
        if self.profile.gpu not in ("any", cluster.gpu.name):
            raise fault(
                f"was measured on {self.profile.gpu}, the cluster has {cluster.gpu.name}",
                "profile",
                "gpu",
                got=self.profile.gpu,
            )
        self._check_dtypes()
        links = self.profile.links(self.dispatch.mode, -(-ep // P))
        if self.overlap and links.sms >= cluster.gpu.sms:
            raise fault(
                f"leaves none of the {cluster.gpu.sms} multiprocessors of {cluster.gpu.name}",
                "profile",
                "dispatch",
                self.dispatch.mode,
                "sms",
                got=links.sms,
            )
        return self

    def _check_dtypes(self) -> None:
        """The profile must hold for the model's weights."""
        held = self.profile.dtypes
        for dtype in (self.model.weight_dtype, *(kind.dtype for kind in self.model.kinds)):
            if held and dtype not in held:
                raise fault(
                    f"holds for {', '.join(held)}, {self.model.name} has weights in {dtype}",
                    "profile",
                    "dtypes",
                    got=list(held),
                )

    def _check_slots(self) -> None:
        choice, ep, experts = self.placement, self.parallelism.ep, self.model.experts.count
        if choice.file is not None:
            return
        if choice.solver not in SOLVERS:
            raise fault(
                f"no such solver; known: {', '.join(SOLVERS)}", "placement", "solver", got=choice.solver
            )
        if choice.hierarchical and self.model.experts.groups == 1:
            rule = f"{self.model.name} has no expert groups to keep together"
            raise fault(rule, "placement", "hierarchical", got=True)
        slots = choice.slots or experts
        whole = -(-max(slots, experts) // ep) * ep
        if choice.slots is not None and slots < experts:
            raise fault(
                f"more experts than slots: {experts} experts on {ep} GPUs need at least {whole}",
                "placement",
                "slots",
                got=slots,
            )
        most = min(experts * ep, MAX_SLOTS)
        if slots > most:
            raise fault(
                f"must be at most {most}: {experts} experts, a copy of each on {ep} GPUs",
                "placement",
                "slots",
                got=slots,
            )
        if slots % ep:
            at = ("parallelism", "ep") if choice.slots is None else ("placement", "slots")
            what = f"{experts} experts do" if choice.slots is None else "does"
            raise fault(
                f"{what} not divide over {ep} GPUs; a placement with slots: {whole} would",
                *at,
                got=ep if choice.slots is None else slots,
            )

    def _check_rebalance(self) -> None:
        """A placement is made for loads, so the solver must look at them."""
        if self.rebalance is None:
            return
        known = [solver.name for solver in SOLVERS.values() if solver.needs_load]
        if self.rebalance.solver not in known:
            rule = f"must be a solver that looks at loads: {', '.join(known)}"
            raise fault(rule, "rebalance", "solver", got=self.rebalance.solver)

    def _check_routing(self) -> None:
        """Experts that a policy names are the model's, and fewer of them than tokens choose are no more."""
        experts, many = self.model.experts, isinstance(self.routing, list)
        for i, policy in enumerate(policies_from(self.routing)):
            for key, rule, value in beyond(policy, experts.count, experts.top_k):
                raise fault(rule, "routing", *((i,) if many else ()), key, got=value)
            if getattr(policy, "widens", False):
                return

    @property
    def kept_groups(self) -> int:
        """Expert groups that stay on a node each; 1 where experts may go anywhere."""
        return self.model.experts.groups if self.placement.hierarchical else 1

    def resolved(self) -> dict[str, Any]:
        """Plain values, all defaults and presets filled in; loading them gives this scenario again."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """``resolved`` as YAML."""
        return to_yaml(self.resolved())


def load_scenario(name: str, overrides: Sequence[Override] = ()) -> Scenario:
    """The scenario in a YAML file, or the preset of that name, with overrides applied.

    Presets inside it expand before an override reaches into them, so that
    ``cluster=h800-4x8`` with ``-s cluster.nodes=2`` is the same cluster with two nodes.

    Raises:
        MoesimError: with file and line, or the option, where a rule is broken.
    """
    return Family(name).scenario(overrides)


_Known = dict[tuple[Any, ...], Any]


class Family:
    """A scenario and its variations: the file is read once, and what its parts name is expanded once."""

    def __init__(self, name: str) -> None:
        """``name`` of a YAML file or preset."""
        self._source = _source(name)
        self._known: _Known = {}

    def scenario(self, overrides: Sequence[Override] = ()) -> Scenario:
        """The scenario with overrides applied, as :func:`load_scenario` gives it."""
        source, known = self._source, self._known
        value = copy.deepcopy(source.value)
        for number, override in enumerate(overrides):
            earlier = overrides[:number]
            with blame(earlier, source.file):
                _open(value, override, source, {each.loc for each in earlier}, known)
            with blame([override], source.file):
                _check_key(override.loc[0], Source(value, None, {}))
                override.apply(value)
        with blame(overrides, source.file):
            return _resolve(value, source, {override.loc for override in overrides}, known)


def _source(name: str) -> Source:
    """The file or preset ``name``, with known keys only: a preset that fails to expand would hide others."""
    if name in preset_names("scenarios"):
        source = preset_source("scenarios", name)
    elif name.endswith((".yaml", ".yml")) or os.path.exists(name):  # noqa: PTH110 - Path.exists can raise
        source = read_yaml(name)
    else:
        known = ", ".join(preset_names("scenarios"))
        raise SpecError(
            f"is neither a file nor a preset scenario; presets: {known}", field="SCENARIO", got=name
        )
    if not isinstance(source.value, dict):
        raise source.error("must be a mapping of scenario fields", got=source.value)
    for key in source.value:
        _check_key(key, source)
    return source


def _check_key(key: str, source: Source) -> None:
    known = Scenario.model_fields
    if key not in known:
        raise source.error(f"unknown key; {suggest(key, known)}known: {', '.join(known)}", (key,))


_Expand = Callable[[Any, Source, Loc], Any]


def _expand_placement(value: Any, source: Source, at: Loc) -> PlacementChoice:
    if isinstance(value, str):
        return validate(PlacementChoice, {"solver": value}, source=source, at=at)
    return validate(PlacementChoice, value, source=source, at=at)


def _expand_trace(value: Any, source: Source, at: Loc) -> TraceSource:
    """A generator's name, or ``base``, becomes the fields of the preset."""
    synth = value.get("synth") if isinstance(value, dict) else None
    if isinstance(synth, str) and synth in preset_names("generators"):
        synth = {"base": synth}
    if isinstance(synth, dict) and "base" in synth:
        named = preset_source("generators", synth["base"], (*at, "synth", "base"), source).value
        fields = {key: given for key, given in named.items() if key != "source"}
        own = {key: given for key, given in synth.items() if key != "base"}
        value = value | {"synth": fields | own}
    return validate(TraceSource, value, source=source, at=at)


# How the fields that may be a name become values, and what stands for those that may be left out.
_EXPAND: dict[str, _Expand] = {
    "model": load_model,
    "cluster": load_cluster,
    "profile": load_profile,
    "trace": _expand_trace,
    "placement": _expand_placement,
}
_DEFAULTS: Mapping[str, str | None] = {"profile": None, "placement": "linear"}


def _open(
    value: dict[str, Any], override: Override, source: Source, earlier: set[Loc], known: _Known
) -> None:
    """Expand the preset that ``override`` reaches into, if there is one."""
    head, *inner = override.loc[:-1] or ("",)
    if (
        head == "cluster"
        and value.get(head) is None
        and (machine := _profile(value, source, earlier).machine)
    ):
        value[head] = machine.model_dump(mode="json")
    if head not in _EXPAND or head not in {**_DEFAULTS, **value}:
        return
    inside: Any = value.setdefault(head, _DEFAULTS.get(head))
    for part in inner:
        inside = inside.get(part, {}) if isinstance(inside, dict) else inside
    if not isinstance(inside, dict):
        value[head] = _expanded(head, value, source, earlier, known).model_dump(mode="json")


def _expanded(
    head: str, value: Mapping[str, Any], source: Source, overridden: set[Loc], known: _Known
) -> Any:
    """What ``value[head]`` names; without a profile, the one that is made for the cluster's GPU.

    ``known`` holds what was expanded before, and learns.
    """
    part, base = value[head], _base(source, value[head], head, overridden)
    gpu = _gpu(value, source, overridden, known) if head == "profile" and part is None else ""
    if isinstance(part, Strict):  # expanded already
        return _EXPAND[head](part, base, (head,))
    key = (head, json.dumps(part, sort_keys=True), base.file, gpu)
    if key not in known:
        known[key] = load_profile(None, base, (head,), gpu) if gpu else _EXPAND[head](part, base, (head,))
    return known[key]


def _gpu(value: Mapping[str, Any], source: Source, overridden: set[Loc], known: _Known) -> str:
    """Name of the cluster's GPU; empty where a fault, which others report, leaves none."""
    cluster = value.get("cluster")
    if cluster is None or isinstance(cluster, Cluster):
        return cluster.gpu.name if cluster else ""
    try:
        found: Cluster = _expanded("cluster", value, source, overridden, known)
        return found.gpu.name
    except SpecError:
        return ""


def _base(source: Source, value: Any, head: str, overridden: set[Loc]) -> Source:
    """What paths inside ``value`` are relative to: the file, or the current directory if an option set it."""
    return Source(value, None, {}) if {(head,), (head, "base")} & overridden else source


def _profile(value: Mapping[str, Any], source: Source, overridden: set[Loc]) -> Profile:
    named = value.get("profile")
    return load_profile(named, _base(source, named, "profile", overridden), ("profile",))


def _resolve(value: dict[str, Any], source: Source, overridden: set[Loc], known: _Known) -> Scenario:
    parts = {**_DEFAULTS, **value}
    if parts.get("cluster") is None:
        profile = _profile(value, source, overridden)
        if profile.machine is None:
            rule = (
                f"is missing, and the profile {profile.name} does not describe the machine it was measured on"
            )
            raise source.error(rule, ("cluster",))
        parts["cluster"] = profile.machine
    for field in _EXPAND:
        if field in parts:
            parts[field] = _expanded(field, parts, source, overridden, known)
    parts["routing"] = _routing(parts.get("routing", {"policy": "none"}), source)
    scenario = validate(Scenario, parts, source=source)
    return scenario.model_copy(
        update={
            "trace": _absolute_trace(scenario.trace, source, overridden),
            "placement": _absolute(scenario.placement, ("placement",), source, overridden),
        }
    )


def _routing(value: Any, source: Source) -> dict[str, Any] | list[dict[str, Any]]:
    """The policies with all their parameters; a name alone is a policy without any."""
    try:
        specs = [
            spec_of(policy)
            for policy in policies_from({"policy": value} if isinstance(value, str) else value)
        ]
    except PolicyError as error:
        places = re.findall(r"\w+", error.field or "routing")
        at = tuple(int(place) if place.isdecimal() else place for place in places)
        error.file, error.line = source.file, source.line(at)
        raise
    return specs if isinstance(value, list) else specs[0]


def _absolute_trace(trace: TraceSource, source: Source, overridden: set[Loc]) -> TraceSource:
    if trace.synth is None:
        return _absolute(trace, ("trace",), source, overridden)
    synth = _absolute(trace.synth, ("trace", "synth"), source, overridden)
    return trace.model_copy(update={"synth": synth})


_Filed = TypeVar("_Filed", TraceSource, Synthesis, PlacementChoice)


def _absolute(part: _Filed, at: Loc, source: Source, overridden: set[Loc]) -> _Filed:
    """``part``, which stands at ``at``, with its file's whole path."""
    if part.file is None:
        return part
    from_option = any((*at, "file")[:end] in overridden for end in range(1, len(at) + 2))
    base = Path.cwd() if from_option or source.file is None else Path(source.file).parent
    try:
        path = str((base / part.file).resolve())
        path.encode()  # result.json and scenario.yaml will hold it
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a NUL, undecodable bytes
        raise source.error("is not a file name", (*at, "file"), got=part.file) from error
    return part.model_copy(update={"file": path})
