"""The smallest scenario that exercises everything: 2 layers of 8 experts on 2 nodes of 2 GPUs.

Plain values as YAML gives them, so that a test can break one and write the rest to a file.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

TINY: dict[str, Any] = {
    "name": "tiny",
    "model": {
        "name": "tiny",
        "hidden": 64,
        "layers": 3,
        "vocab": 1000,
        "attention": {"heads": 4, "kv_heads": 2, "head_dim": 16},
        "experts": {"count": 8, "top_k": 2, "width": 32},
        "first_dense": 1,
        "dense_width": 128,
    },
    "cluster": {
        "name": "tiny-2x2",
        "gpu": {
            "name": "tiny",
            "memory": "1 GB",
            "memory_bandwidth": "100 GB/s",
            "flops": {"bf16": "10 TFLOPS"},
            "sms": 10,
            "nvlink": {"bandwidth": "10 GB/s", "latency": "1 us"},
        },
        "nodes": 2,
        "gpus_per_node": 2,
        "nic": {"bandwidth": "1 GB/s", "latency": "2 us"},
    },
    "parallelism": {"ep": 4},
    "trace": {"synth": {"requests": 6, "tokens_per_request": 12, "skew": 0.8, "persistence": 0.5}},
    "workload": {"phase": "decode", "tokens_per_gpu": 4, "context": 16, "steps": 2},
    "placement": "linear",
    "routing": {"policy": "none"},
    "dispatch": {"mode": "per_gpu", "dtype": "bf16", "combine_dtype": "bf16"},
}


def tiny_scenario(**changes: Any) -> dict[str, Any]:
    """A new mapping; ``changes`` replace whole fields, and a value of None removes one."""
    fields = copy.deepcopy(TINY) | changes
    return {key: value for key, value in fields.items() if value is not None}


def write_scenario(folder: Path, mapping: dict[str, Any], name: str = "scenario.yaml") -> Path:
    """``mapping`` as a YAML file in ``folder``."""
    path = folder / name
    path.write_text(yaml.safe_dump(mapping, sort_keys=False), encoding="utf-8")
    return path


def on_generic(**changes: Any) -> dict[str, Any]:
    """A profile that is the built-in one but for ``changes``, mapping by mapping."""
    return {"format": "moesim.profile/1", "base": "generic", **changes}
