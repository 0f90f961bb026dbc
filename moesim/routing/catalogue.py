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

from moesim.errors import PolicyError
from moesim.routing.drop import Drop
from moesim.routing.none import NoPolicy
from moesim.routing.policy import Policy

POLICIES: Mapping[str, type[Policy]] = MappingProxyType({policy.name: policy for policy in (NoPolicy, Drop)})

PRESETS: Mapping[str, Mapping[str, object]] = MappingProxyType({})
"""Published policies: the parameters that make them of ours."""


def policy_from(spec: Mapping[str, object]) -> Policy:
    """The policy that a mapping describes.

    >>> policy_from({"policy": "drop", "capacity_factor": 1.5})
    Drop(capacity_factor=1.5, unit='expert', scope='source', order='score')

    Raises:
        PolicyError: an unknown policy, a parameter it does not know, lacks or cannot take.
    """
    if "policy" not in spec:
        raise PolicyError(f"name a policy: {', '.join(POLICIES)}", field="routing.policy")
    named = spec["policy"]
    if isinstance(named, str) and named in PRESETS:
        spec = {**PRESETS[named], **{key: value for key, value in spec.items() if key != "policy"}}
    name = spec["policy"]
    made = _class(name)
    parameters = {key: value for key, value in spec.items() if key != "policy"}
    fields = _fields(made)
    for key in parameters:
        if key not in fields:
            raise PolicyError(_not_known(key, str(name), fields), field=f"routing.{key}")
    for key, field in fields.items():
        if key not in parameters and _is_needed(field):
            raise PolicyError(f"policy {named} needs it", field=f"routing.{key}")
    return cast(Any, made)(**parameters)  # type: ignore[no-any-return]  # a Protocol has no constructor


def policies_from(spec: object) -> tuple[Policy, ...]:
    """The policies that a scenario's ``routing`` describes, in the order in which they are applied.

    Raises:
        PolicyError: as :func:`policy_from`; in a list it names the entry.
    """
    if isinstance(spec, Mapping):
        return (policy_from(spec),)
    if not isinstance(spec, Sequence) or isinstance(spec, str) or not spec:
        rule = "must be a mapping such as {policy: none}, or a list of them"
        raise PolicyError(rule, field="routing", got=spec)
    policies = []
    for number, entry in enumerate(spec):
        at = f"routing[{number}]"
        if not isinstance(entry, Mapping):
            raise PolicyError("must be a mapping such as {policy: none}", field=at, got=entry)
        try:
            policies.append(policy_from(entry))
        except PolicyError as error:
            error.field = at + (error.field or "").removeprefix("routing")
            raise
    return tuple(policies)


def spec_of(policy: Policy) -> dict[str, object]:
    """The mapping with every parameter that :func:`policy_from` makes this policy of.

    >>> spec_of(NoPolicy())
    {'policy': 'none'}
    """
    made = type(policy)
    name = policy.name if POLICIES.get(policy.name) is made else f"{made.__module__}:{made.__qualname__}"
    return {"policy": name} | {key: getattr(policy, key) for key in _fields(made)}


def _class(name: object) -> type[Policy]:
    if isinstance(name, str) and name in POLICIES:
        return POLICIES[name]
    if isinstance(name, str) and ":" in name:
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
