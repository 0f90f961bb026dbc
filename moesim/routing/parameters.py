"""Checks of a policy's parameters, which a scenario's YAML or a caller gives as any value.

All raise :class:`PolicyError` with the field ``routing.NAME``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from moesim.routing.errors import PolicyError

EXPERTS: Mapping[str, str] = MappingProxyType({"limit": "experts"})
"""Metadata of a parameter that names experts: ids below E."""

TOP_K: Mapping[str, str] = MappingProxyType({"limit": "top_k"})
"""Metadata of a parameter that counts the experts that a token keeps: at most K."""


def choice(name: str, value: object, known: Collection[str]) -> str:
    """One of the known words."""
    if not isinstance(value, str) or value not in known:
        raise PolicyError(f"must be one of: {', '.join(known)}", field=f"routing.{name}", got=value)
    return value


def beyond(policy: Any, experts: int, top_k: int) -> Iterator[tuple[str, str, object]]:
    """Parameters of a policy that its model does not allow: name, rule and value of each.

    Args:
        experts: E, of a layer.
        top_k: K, that a token chooses.
    """
    rules = {
        "experts": (experts - 1, f"must be below the {experts} experts of a layer"),
        "top_k": (top_k, f"must be at most {top_k}, the experts that a token chooses"),
    }
    for field in dataclasses.fields(policy):
        most, rule = rules.get(field.metadata.get("limit", ""), (None, ""))
        value = getattr(policy, field.name)
        for each in value if isinstance(value, tuple) else (value,):
            if most is not None and each > most:
                yield field.name, rule, each


def flag(name: str, value: object) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise PolicyError("must be true or false", field=f"routing.{name}", got=value)
    return value


def integer(name: str, value: object, low: int, high: int | None = None) -> int:
    """A whole number from ``low`` to ``high``.

    >>> integer("rounds", 2, 1)
    2
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise PolicyError("must be a whole number", field=f"routing.{name}", got=value)
    if value < low or (high is not None and value > high):
        limits = f"at least {low}" if high is None else f"from {low} to {high}"
        raise PolicyError(f"must be {limits}", field=f"routing.{name}", got=value)
    return value


def number(name: str, value: object, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number from ``low`` to ``high``, as a float.

    >>> number("top_p", 1, 0.0, 1.0)
    1.0
    """
    found = _finite(name, value, "must be finite")
    if not low <= found <= high:
        limits = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        raise PolicyError(f"must be {limits}", field=f"routing.{name}", got=value)
    return found


def positive(name: str, value: object) -> float:
    """A finite number above 0, as a float."""
    found = _finite(name, value, "must be finite and above 0")
    if found <= 0:
        raise PolicyError("must be finite and above 0", field=f"routing.{name}", got=value)
    return found


def _finite(name: str, value: Any, rule: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PolicyError("must be a number", field=f"routing.{name}", got=value)
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise PolicyError(rule, field=f"routing.{name}", got=value)
    return found
