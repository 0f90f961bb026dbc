"""Mutations of trees: what JSON, YAML and ``torch.save`` hold, and the text that writes them."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

_DEEP, _TWICE = "@deep@", "\0twice"
_NUMBERS: tuple[Any, ...] = (
    *(0, 1, -1, 2, 3, 7, 255, 256, 65_535, 65_536, 2**31 - 1, 2**31, 2**53, 2**63, -(2**63), 2**64),
    *(
        0.0,
        -0.0,
        0.5,
        1.5,
        1e-320,
        1e-12,
        1e12,
        1e19,
        1e308,
        -1e308,
        float("inf"),
        float("-inf"),
        float("nan"),
    ),
    10**400,
)
_TEXTS = (
    "",
    " ",
    "x",
    "0",
    "-1",
    "1e9",
    "null",
    "true",
    "..",
    "/dev/zero",
    "a\0b",
    "\x1b[31m",
    "[/]",
    "\u202e",
)
_STRANGE: tuple[Any, ...] = (None, True, False, [], [[]], [[[]]], {}, {"a": 1}, [None], *_NUMBERS, *_TEXTS)


def mutated(tree: Any, rng: random.Random) -> Any:
    """A copy in which one to three values, however deep, are replaced, removed, repeated or changed."""
    changed = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if isinstance(changed, (dict, list)) and changed and rng.random() < 0.98:
            _change(_node(changed, rng), rng)
        else:
            changed = strange(changed, rng)
    return changed


def strange(value: Any, rng: random.Random) -> Any:
    """Another value instead of ``value``, often one that is near it."""
    kind = rng.randrange(9)
    if kind == 0 and isinstance(value, (int, float)):
        return _near(value, rng)
    if kind == 1 and isinstance(value, str):
        at = rng.randint(0, len(value))
        return (
            value[:at]
            + rng.choice(("", "\ud800", "\0", "\n", "é", "\x07", *_TEXTS))
            + value[at + rng.randrange(3) :]
        )
    if kind == 2:
        return str(value)
    if kind == 3:
        return [value] if rng.random() < 0.5 else {"a": value}
    if kind == 4:
        return rng.choice(_NUMBERS)
    if kind == 5 and rng.random() < 0.3:
        return rng.choice(("x", "é", "\ud800", "[", "1")) * rng.choice((100, 10_000, 1_000_000))
    if kind == 6 and rng.random() < 0.3:
        return f"{_DEEP}{rng.choice((20, 200, 2_000, 200_000))}"
    return rng.choice(_STRANGE)


def to_json(tree: Any) -> bytes:
    """``tree`` as JSON, with what Python's dictionaries and stack cannot hold: keys twice, depth."""
    text = json.dumps(tree).replace("\\u0000twice", "")
    while _DEEP in text:
        before, _, after = text.partition(f'"{_DEEP}')
        if not after:  # inside another text
            break
        depth, _, after = after.partition('"')
        text = before + ("[" * int(depth) + "]" * int(depth) if depth.isdigit() else "0") + after
    return text.encode()


def _node(tree: Any, rng: random.Random) -> Any:
    """A mapping or list in ``tree``, not empty."""
    node = tree
    while True:
        inside = node.values() if isinstance(node, dict) else node
        below = [value for value in inside if isinstance(value, (dict, list)) and value]
        if not below or rng.random() < 0.3:
            return node
        node = rng.choice(below)


def _change(node: Any, rng: random.Random) -> None:
    key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
    kind = rng.randrange(10)
    if kind == 0:
        del node[key]
    elif kind == 1 and isinstance(node, dict):
        node[f"{key}{_TWICE}"] = copy.deepcopy(node[key])
    elif kind == 1:
        node.insert(key, copy.deepcopy(node[key]))
    elif kind == 2 and isinstance(node, dict):
        node[rng.choice((f"{key}x", "", "\ud800", "a\nb", "x" * 5_000))] = node.pop(key)
    elif kind == 2:
        node[:] = node * rng.choice((0, 2, 50)) if len(node) < 100 else node[::-1]
    elif kind == 3:
        other = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        node[key], node[other] = copy.deepcopy(node[other]), node[key]
    else:
        node[key] = strange(node[key], rng)


def _near(value: float, rng: random.Random) -> Any:
    try:
        return rng.choice(
            (value + 1, value - 1, -value, value * 2, value * 1000, float(value), value / 2, int(value))
        )
    except (OverflowError, ValueError):
        return 0
