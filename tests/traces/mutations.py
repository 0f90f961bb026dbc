"""Damaged versions of a valid file, the same ones on every run."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

_BOUNDARIES = (0, 1, 2**15, 2**31 - 1, 2**32 - 1)
_STRANGE: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2**31, 2**63, 10**400, 0.5, 1e308),
    *("", "x", "\ud800", [], [[]], [[[]]], {}, [None], {"a": 1}),
)


def damaged_bytes(content: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """``count`` copies with bytes changed, removed, inserted or cut off; half of them near the end,
    where Parquet and zip keep their directories."""
    rng = random.Random(seed)
    for _ in range(count):
        copy = bytearray(content)
        for _ in range(rng.choice((1, 1, 2, 4))):
            low = 0 if rng.random() < 0.5 else len(copy) * 3 // 5
            at = rng.randrange(low, len(copy))
            kind = rng.randrange(6)
            if kind == 0:
                copy[at] = rng.randrange(256)
            elif kind == 1:
                copy[at] ^= 1 << rng.randrange(8)
            elif kind == 2:
                del copy[at : at + rng.randrange(1, 9)]
            elif kind == 3:
                copy[at:at] = rng.randbytes(rng.randrange(1, 9))
            elif kind == 4:
                copy[at : at + 4] = rng.choice(_BOUNDARIES).to_bytes(4, "little")
            else:
                del copy[at:]
            if not copy:
                break
        yield bytes(copy)


def damaged_fields(content: dict[str, Any], count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """``count`` copies of decoded JSON in which one value, however deep, is replaced or removed."""
    rng = random.Random(seed)
    for _ in range(count):
        copy = json.loads(json.dumps(content))
        node: Any = copy
        while True:
            keys = list(node) if isinstance(node, dict) else range(len(node))
            key = rng.choice(list(keys))
            if isinstance(node[key], dict | list) and node[key] and rng.random() < 0.7:
                node = node[key]
                continue
            if rng.random() < 0.15:
                del node[key]
            else:
                node[key] = rng.choice(_STRANGE)
            break
        yield copy
