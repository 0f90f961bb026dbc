"""A scenario: everything that determines a run, resolved from a YAML file or preset and ``-s`` options."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, model_validator

from moesim.errors import MoesimError, SpecError
from moesim.hardware.profile import Profile, load_profile
from moesim.routing.catalogue import policy_from, spec_of
from moesim.spec.base import Strict, Text, fault, validate
from moesim.spec.cluster import Cluster, load_cluster
from moesim.spec.model import Model
from moesim.spec.presets import load_model, preset_names, preset_source
from moesim.spec.workload import Dispatch, Parallelism, PlacementChoice, TraceSource, Workload
from moesim.spec.yaml_source import Loc, Source, parse_yaml, read_yaml, show_loc
from placement.solvers import SOLVERS


class Scenario(Strict):
    """What ``moesim run`` simulates. Every preset in it is expanded, every path absolute."""

    name: Text
    model: Model
    cluster: Cluster
    profile: Profile
    parallelism: Parallelism
    trace: TraceSource
    workload: Workload
    placement: PlacementChoice = PlacementChoice(solver="linear")
    replicas: Literal["round_robin"] = "round_robin"
    routing: dict[str, Any] = Field(default_factory=lambda: {"policy": "none"})
    dispatch: Dispatch = Dispatch()
    network: Literal["auto", "ports"] = "auto"
    resolution: Literal["auto", "event"] = "auto"
    seed: int = Field(default=0, strict=True, ge=0, lt=1 << 63)

    @model_validator(mode="after")
    def _parts_fit(self) -> Scenario:
        ep, tp, cluster = self.parallelism.ep, self.parallelism.tp, self.cluster
        P = cluster.gpus_per_node
        if cluster.gpus % ep:
            raise fault(f"must divide the cluster's {cluster.gpus} GPUs", "parallelism", "ep", got=ep)
        if ep > P and ep % P:
            raise fault(f"must fill whole nodes of {P} GPUs", "parallelism", "ep", got=ep)
        if self.model.attention.heads % tp or tp > P:
            heads = self.model.attention.heads
            raise fault(
                f"must divide {heads} attention heads and fit a node of {P}", "parallelism", "tp", got=tp
            )
        self._check_slots()
        if self.profile.gpu not in ("any", cluster.gpu.name):
            raise fault(
                f"was measured on {self.profile.gpu}, the cluster has {cluster.gpu.name}",
                "profile",
                "gpu",
                got=self.profile.gpu,
            )
        return self

    def _check_slots(self) -> None:
        choice, ep, experts = self.placement, self.parallelism.ep, self.model.experts.count
        if choice.file is not None:
            return
        if choice.solver not in SOLVERS:
            raise fault(
                f"no such solver; known: {', '.join(SOLVERS)}", "placement", "solver", got=choice.solver
            )
        slots = choice.slots or experts
        whole = -(-max(slots, experts) // ep) * ep
        if choice.slots is not None and slots < experts:
            raise fault(
                f"more experts than slots: {experts} experts on {ep} GPUs need at least {whole}",
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

    def resolved(self) -> dict[str, Any]:
        """Plain values, all defaults and presets filled in; loading them gives this scenario again."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """``resolved`` as YAML."""
        return yaml.safe_dump(self.resolved(), sort_keys=False, allow_unicode=True, width=110)


@dataclass(frozen=True)
class Override:
    """One ``-s KEY=VALUE``: where it goes and its value, parsed as YAML."""

    loc: Loc
    value: Any
    flag: str = "-s"

    @property
    def option(self) -> str:
        """As it is named in messages."""
        return f"{self.flag} {show_loc(self.loc)}"

    @classmethod
    def parse(cls, text: str) -> Override:
        """From ``KEY=VALUE``; keys are separated by dots.

        >>> Override.parse("routing.capacity_factor=1.5")
        Override(loc=('routing', 'capacity_factor'), value=1.5, flag='-s')
        """
        key, equals, value = text.partition("=")
        if not equals or not all(key.split(".")):
            raise SpecError("must read KEY=VALUE, with a key such as workload.steps", file="-s", got=text)
        return cls(tuple(key.split(".")), parse_yaml(value, f"-s {key}").value)


def load_scenario(name: str, overrides: Sequence[Override] = ()) -> Scenario:
    """The scenario in a YAML file, or the preset of that name, with overrides applied.

    Presets inside it expand before an override reaches into them, so that
    ``cluster=h800-4x8`` with ``-s cluster.nodes=2`` is the same cluster with two nodes.

    Raises:
        MoesimError: with file and line, or the option, where a rule is broken.
    """
    if name in preset_names("scenarios"):
        source = preset_source("scenarios", name)
    elif Path(name).suffix in (".yaml", ".yml") or Path(name).exists():
        source = read_yaml(name)
    else:
        known = ", ".join(preset_names("scenarios"))
        raise SpecError(f"is neither a file nor a preset scenario; presets: {known}", field=name)
    if not isinstance(source.value, dict):
        raise source.error("must be a mapping of scenario fields", got=source.value)
    value = copy.deepcopy(source.value)
    _check_keys(source)
    for override in overrides:
        with _blame([override], source):
            _apply(value, override, source)
    with _blame(overrides, source):
        return _resolve(value, source, {override.loc for override in overrides})


_Expand = Callable[[Any, Source, Loc], Any]


def _expand_placement(value: Any, source: Source, at: Loc) -> PlacementChoice:
    if isinstance(value, str):
        return validate(PlacementChoice, {"solver": value}, source=source, at=at)
    return validate(PlacementChoice, value, source=source, at=at)


# How the fields that may be a name become values.
_EXPAND: dict[str, _Expand] = {
    "model": load_model,
    "cluster": load_cluster,
    "profile": load_profile,
    "placement": _expand_placement,
}


def _check_keys(source: Source) -> None:
    """Refuse unknown keys first: a preset that fails to expand would hide them."""
    for key in source.value:
        if key not in Scenario.model_fields:
            known = ", ".join(Scenario.model_fields)
            raise source.error(f"unknown key; known: {known}", (key,))


def _apply(value: dict[str, Any], override: Override, source: Source) -> None:
    """Set one key, expanding a preset's name if the key lies inside it."""
    head, *rest = override.loc
    if head not in Scenario.model_fields:
        raise SpecError(f"unknown key; known: {', '.join(Scenario.model_fields)}", field=str(head))
    if rest and head in _EXPAND and not isinstance(value.get(str(head)), dict):
        value[str(head)] = _EXPAND[str(head)](value.get(str(head)), source, (head,)).model_dump(mode="json")
    inside: Any = value
    for part in override.loc[:-1]:
        inside = inside.setdefault(part, {})
        if not isinstance(inside, dict):
            raise SpecError("is not a mapping, nothing can be set inside it", field=str(part), got=inside)
    inside[override.loc[-1]] = override.value


def _resolve(value: dict[str, Any], source: Source, overridden: set[Loc]) -> Scenario:
    parts = dict(value)
    parts.setdefault("profile", None)
    for field, expand in _EXPAND.items():
        if field in parts:
            # A path in a file is relative to it; on the command line, to the current directory.
            base = Source(parts[field], None, {}) if (field,) in overridden else source
            parts[field] = expand(parts[field], base, (field,))
    try:
        parts["routing"] = spec_of(policy_from(parts.get("routing", {"policy": "none"})))
    except MoesimError as error:
        error.line = source.line(tuple((error.field or "routing").split(".")))
        error.file = source.file
        raise
    scenario = validate(Scenario, parts, source=source)
    return scenario.model_copy(
        update={
            "trace": _absolute(scenario.trace, "trace", source, overridden),
            "placement": _absolute(scenario.placement, "placement", source, overridden),
        }
    )


def _absolute(
    part: TraceSource | PlacementChoice, field: str, source: Source, overridden: set[Loc]
) -> TraceSource | PlacementChoice:
    if part.file is None:
        return part
    from_option = (field,) in overridden or (field, "file") in overridden
    base = Path.cwd() if from_option or source.file is None else Path(source.file).parent
    return part.model_copy(update={"file": str((base / part.file).resolve())})


@contextmanager
def _blame(overrides: Sequence[Override], source: Source) -> Iterator[None]:
    """Name the option, not the file, in a fault of what an option set."""
    try:
        yield
    except MoesimError as error:
        at = tuple((error.field or "").split("."))
        for override in overrides:
            if at[: len(override.loc)] == override.loc:
                error.file, error.line = override.option, None
        raise
