"""Readers of specifications under mutated files: only MoesimError comes out."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from moesim.errors import MoesimError
from moesim.spec.cluster import load_cluster
from moesim.spec.hf_config import read_hf_config
from moesim.spec.presets import load_model, preset_source
from moesim.spec.yaml_source import Source, read_yaml
from tests.moesim.test_hf_config import CONFIGS

MUTATIONS = 2000

ODD_VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    1,
    10**9,
    10**30,
    2**63,
    0.5,
    1e308,
    float("inf"),
    float("nan"),
    "",
    "x",
    "1 GB/s",
    "fp8",
    "\ud800",
    "x" * 5000,
    [],
    [1, "a"],
    {},
    {"a": {"b": []}},
]

CLUSTER = {
    "name": "c",
    "gpu": preset_source("gpus", "h800").value,
    "nodes": 4,
    "gpus_per_node": 8,
    "nic": {"bandwidth": "400 Gb/s", "latency": "2 us"},
}


def read_model_file(path: Path) -> None:
    load_model(str(path), Source(None, None, {}))


def read_cluster_file(path: Path) -> None:
    source = read_yaml(path)
    load_cluster(source.value, source)


Reader = Callable[[Path], object]
# File name, reader, and valid contents to start from.
READERS: dict[str, tuple[str, Reader, list[Any]]] = {
    "model": (
        "model.yaml",
        read_model_file,
        [preset_source("models", name).value for name in ("deepseek-v3", "gpt-oss-20b")],
    ),
    "cluster": ("cluster.yaml", read_cluster_file, [CLUSTER, {"base": "h100-2x8", "nic": "cx6"}]),
    "config.json": ("config.json", read_hf_config, list(CONFIGS.values())),
}


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a plain value has parts."""
    if at:
        yield at
    for key, part in (
        value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else [])
    ):
        yield from places(part, (*at, key))


def with_odd_field(valid: Any, rng: random.Random) -> Any:
    """``valid`` with one part replaced, removed, renamed, or exchanged with another."""
    value = copy.deepcopy(valid)
    at = rng.choice(list(places(value)))
    inside = value
    for key in at[:-1]:
        inside = inside[key]
    match rng.randrange(4):
        case 0 if isinstance(inside, dict):
            del inside[at[-1]]
        case 1 if isinstance(inside, dict):
            inside[str(at[-1]) + rng.choice("sx_")] = inside.pop(at[-1])
        case 2 if isinstance(inside, dict) and len(inside) > 1:
            other = rng.choice(list(inside))
            inside[at[-1]], inside[other] = inside[other], inside[at[-1]]
        case _:
            inside[at[-1]] = rng.choice(ODD_VALUES)
    return value


def with_odd_bytes(valid: bytes, rng: random.Random) -> bytes:
    """``valid`` with a few bytes changed, cut out, repeated or inserted."""
    data = bytearray(valid)
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(data) or 1)
        stop = min(len(data), start + rng.randint(1, 20))
        match rng.randrange(4):
            case 0:
                data[start : start + 1] = bytes([rng.randrange(256)])
            case 1:
                del data[start:stop]
            case 2:
                data[start:start] = data[start:stop] * rng.randint(1, 50)
            case _:
                data[start:start] = rng.choice(
                    [b"&a ", b"*a", b"!!x ", b"[", b"{", b"- ", b"\n", b": ", b"\t", b"9" * 50]
                )
    return bytes(data)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", ["bytes", "fields"])
def test_only_our_errors_come_out(name: str, kind: str, tmp_path: Path) -> None:
    file, read, valid = READERS[name]
    path = tmp_path / file
    rng = random.Random(f"{name} {kind}")
    dump = json.dumps if file.endswith(".json") else yaml.safe_dump
    messages = []
    for _ in range(MUTATIONS):
        start = rng.choice(valid)
        if kind == "bytes":
            path.write_bytes(with_odd_bytes(dump(start).encode(), rng))
        else:
            path.write_text(dump(with_odd_field(start, rng)), encoding="utf-8")
        try:
            read(path)
        except MoesimError as error:
            messages.append(str(error))
    # Else the mutations would be too tame to show anything.
    assert len(messages) > MUTATIONS // 4
    # One line, of a length that can be read, that any terminal can print.
    assert not [text for text in messages if "\n" in text or len(text) > 1000]
    assert "".join(messages).encode()
