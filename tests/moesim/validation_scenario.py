"""A profile that describes its machine, and a scenario that its ranks can run in a moment."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

from moesim.spec.presets import preset_source
from tests.moesim.tiny import tiny_scenario, write_scenario


def write_profile(folder: Path, name: str = "p.yaml", **changes: Any) -> Path:
    """A calibrated profile of two ranks; ``changes`` replace its fields."""
    machine = copy.deepcopy(tiny_scenario()["cluster"]) | {"name": "measured", "nodes": 1}
    machine["gpu"]["flops"] = {"fp32": "10 GFLOPS"}
    generic = preset_source("profiles", "generic").value
    profile = generic | {"name": "measured", "gpu": "tiny", "fitted_gpus": [], "machine": machine} | changes
    path = folder / name
    path.write_text(yaml.safe_dump(profile), encoding="utf-8")
    return path


def write_small(folder: Path, name: str = "small.yaml", **changes: Any) -> Path:
    """The tiny scenario in fp32 on two ranks."""
    fields = tiny_scenario(**changes)
    fields["model"] |= {f"{part}_dtype": "fp32" for part in ("weight", "expert", "activation")}
    fields["dispatch"] |= {"dtype": "fp32", "combine_dtype": "fp32"}
    fields["cluster"]["gpu"]["flops"] = {"fp32": "10 GFLOPS"}
    fields["parallelism"]["ep"] = 2
    return write_scenario(folder, fields, name)
