"""The policies by name, and their form in a scenario.

A policy is a mapping ``{policy: NAME, PARAMETER: VALUE, …}``, several ones are a list of such mappings. NAME
is a policy, a preset (a policy with parameters filled in, which the mapping may change), or a class of the
user's own as ``package.module:name``.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

from moesim.routing.balanced import ExpertChoice, UniformRandom
from moesim.routing.base import Base
from moesim.routing.drop import Drop
from moesim.routing.errors import PolicyError
from moesim.routing.expanded import ExpandedDrop
from moesim.routing.fewer import Gap, Skip, Threshold, TopK, TopP
from moesim.routing.important import Important, Uncertain
from moesim.routing.locality import Limited
from moesim.routing.masks import Mask, MaskLeast
from moesim.routing.none import NoPolicy
from moesim.routing.policy import Policy
from moesim.routing.reroute import Reroute

POLICIES: Mapping[str, type[Policy]] = MappingProxyType(
    {
        policy.name: policy
        for policy in (
            NoPolicy,
            Drop,
            Reroute,
            ExpandedDrop,
            TopK,
            TopP,
            Threshold,
            Gap,
            Skip,
            Important,
            Uncertain,
            Mask,
            MaskLeast,
            Limited,
            ExpertChoice,
            Base,
            UniformRandom,
        )
    }
)

_OURS = "moesim.routing."  # modules whose policies may be named by path wherever a plan runs

PRESETS: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        "switch": {"policy": "drop", "capacity_factor": 1.25, "order": "position"},
        "gshard": {"policy": "drop", "capacity_factor": 2.0, "order": "first_choices"},
        "deepseek_v2": {"policy": "drop", "capacity_factor": 1.0, "unit": "device"},
        "device_limited": {"policy": "limited", "unit": "device", "most": 3, "best": 1},
        "node_limited": {"policy": "limited", "unit": "node", "most": 4, "best": 2},
        "group_limited": {"policy": "limited", "unit": "group", "groups": 8, "most": 4, "best": 2},
        "one_device": {"policy": "limited", "unit": "device", "most": 1, "best": 8},
    }
)
"""Published policies as parameters of ours; what they are stands in ``docs/policies.md``."""

PRESET_SOURCES: Mapping[str, str] = MappingProxyType(
    {
        "switch": "Switch Transformers, arXiv 2101.03961, section 2.2",
        "gshard": "GShard, arXiv 2006.16668, section 2.2",
        "deepseek_v2": "DeepSeek-V2, arXiv 2405.04434, section 2.2.4",
        "device_limited": "DeepSeek-V2, arXiv 2405.04434, section 2.2.2",
        "node_limited": "DeepSeek-V3, arXiv 2412.19437, section 2.1.2",
        "group_limited": "the code of DeepSeek-V3, arXiv 2412.19437",
        "one_device": "device_limited with one device",
    }
)
"""Where each preset is published."""


def policy_from(spec: Mapping[str, object], *, imports: bool = True) -> Policy:
    """The policy that a mapping describes; ``imports`` says whether it may name code of a user's own.

    >>> policy_from({"policy": "drop", "capacity_factor": 1.5})
    Drop(capacity_factor=1.5, unit='expert', scope='source', order='score', seed=0, renormalise=False)

    Raises:
        PolicyError: an unknown policy, a parameter it does not know, lacks or cannot take.
    """
    if "policy" not in spec:
        raise PolicyError(f"name a policy: {', '.join(POLICIES)}", field="routing.policy")
    named = spec["policy"]
    if isinstance(named, str) and named in PRESETS:
        spec = {**PRESETS[named], **{key: value for key, value in spec.items() if key != "policy"}}
    name = spec["policy"]
    made = _class(name, imports)
    parameters = {key: value for key, value in spec.items() if key != "policy"}
    fields = _fields(made)
    for key in parameters:
        if key not in fields:
            raise PolicyError(_not_known(key, str(name), fields), field=f"routing.{key}")
    for key, field in fields.items():
        if key not in parameters and _is_needed(field):
            raise PolicyError(f"policy {named} needs it", field=f"routing.{key}")
    return cast(Any, made)(**parameters)  # type: ignore[no-any-return]  # a Protocol has no constructor


def policies_from(spec: object, *, imports: bool = True) -> tuple[Policy, ...]:
    """The policies that a scenario's ``routing`` describes, in the order in which they are applied.

    ``imports``: as of :func:`policy_from`.

    Raises:
        PolicyError: as :func:`policy_from`; in a list it names the entry.
    """
    if isinstance(spec, Mapping):
        return (policy_from(spec, imports=imports),)
    if not isinstance(spec, Sequence) or isinstance(spec, str) or not spec:
        rule = "must be a mapping such as {policy: none}, or a list of them"
        raise PolicyError(rule, field="routing", got=spec)
    policies = []
    for number, entry in enumerate(spec):
        at = f"routing[{number}]"
        if not isinstance(entry, Mapping):
            raise PolicyError("must be a mapping such as {policy: none}", field=at, got=entry)
        try:
            policies.append(policy_from(entry, imports=imports))
        except PolicyError as error:
            error.field = at + (error.field or "").removeprefix("routing")
            raise
    return tuple(policies)


def is_own(policy: Policy) -> bool:
    """Whether it is a user's own, to be imported by its path."""
    return not type(policy).__module__.startswith(_OURS)


def spec_of(policy: Policy) -> dict[str, object]:
    """The mapping with every parameter that :func:`policy_from` makes this policy of.

    >>> spec_of(NoPolicy())
    {'policy': 'none'}
    """
    made = type(policy)
    name = policy.name if POLICIES.get(policy.name) is made else f"{made.__module__}:{made.__qualname__}"
    return {"policy": name} | {key: getattr(policy, key) for key in _fields(made)}


def _class(name: object, imports: bool) -> type[Policy]:
    if isinstance(name, str) and name in POLICIES:
        return POLICIES[name]
    if isinstance(name, str) and ":" in name:
        if not imports and not name.startswith(_OURS):
            rule = "is code to be imported: pass --allow-imports if you trust it"
            raise PolicyError(rule, field="routing.policy", got=name)
        return _own(name)
    known = ", ".join((*POLICIES, *PRESETS))
    raise PolicyError(f"no such policy; known: {known}", field="routing.policy", got=name)


def _own(name: str) -> type[Policy]:
    """The class ``package.module:name``."""
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever the user's module raises
        cause = f"{type(error).__name__}: {error}"
        raise PolicyError(f"cannot be imported: {cause}", field="routing.policy", got=name) from error
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)) or any(
        not hasattr(found, member) for member in ("name", "needs", "cost", "apply")
    ):
        rule = (
            "must be a dataclass with name, needs, cost and apply, as moesim.routing.policy.Policy has them"
        )
        raise PolicyError(rule, field="routing.policy", got=name)
    return cast(type[Policy], found)


def _fields(policy: type[Policy]) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(cast(Any, policy))}


def _is_needed(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _not_known(key: str, name: str, fields: Mapping[str, object]) -> str:
    """Says where a parameter belongs, or if it belongs nowhere, what can stand here."""
    others = [other for other, policy in POLICIES.items() if key in _fields(policy)]
    if others:
        return f"policy {name} does not know it; to vary it, name a policy that does: {', '.join(others)}"
    return f"unknown key; parameters of policy {name}: {', '.join(fields) or 'none'}"
