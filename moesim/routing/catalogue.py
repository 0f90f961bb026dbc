"""The policies by name, and their form in a scenario: a mapping ``{policy: NAME, PARAMETER: VALUE, …}``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

from moesim.errors import PolicyError
from moesim.routing.drop import Drop
from moesim.routing.none import NoPolicy
from moesim.routing.policy import Policy

POLICIES: Mapping[str, type[Policy]] = MappingProxyType({"none": NoPolicy, "drop": Drop})


def policy_from(spec: Mapping[str, object]) -> Policy:
    """The policy that a scenario's ``routing`` describes.

    >>> policy_from({"policy": "drop", "capacity_factor": 1.5})
    Drop(capacity_factor=1.5, unit='expert', scope='source', order='score')

    Raises:
        PolicyError: an unknown policy, a parameter it does not know, lacks or cannot take.
    """
    if "policy" not in spec:
        raise PolicyError(f"name a policy: {', '.join(POLICIES)}", field="routing.policy")
    name = spec["policy"]
    if not isinstance(name, str) or name not in POLICIES:
        raise PolicyError(f"no such policy; known: {', '.join(POLICIES)}", field="routing.policy", got=name)
    parameters = {key: value for key, value in spec.items() if key != "policy"}
    fields = _fields(POLICIES[name])
    for key in parameters:
        if key not in fields:
            raise PolicyError(_not_known(key, name), field=f"routing.{key}")
    for key, field in fields.items():
        if key not in parameters and field.default is dataclasses.MISSING:
            raise PolicyError(f"policy {name} needs it", field=f"routing.{key}")
    return cast(Any, POLICIES[name])(**parameters)  # type: ignore[no-any-return]  # a Protocol has no constructor


def spec_of(policy: Policy) -> dict[str, object]:
    """The mapping with every parameter that :func:`policy_from` makes this policy of.

    >>> spec_of(NoPolicy())
    {'policy': 'none'}
    """
    return {"policy": policy.name} | {key: getattr(policy, key) for key in _fields(type(policy))}


def _fields(policy: type[Policy]) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(cast(Any, policy))}


def _not_known(key: str, name: str) -> str:
    """Says where a parameter belongs, or if it belongs nowhere, what can stand here."""
    others = [other for other, policy in POLICIES.items() if key in _fields(policy)]
    if others:
        return f"policy {name} does not know it; to vary it, name a policy that does: {', '.join(others)}"
    known = ", ".join(_fields(POLICIES[name])) or "none"
    return f"unknown key; parameters of policy {name}: {known}"
