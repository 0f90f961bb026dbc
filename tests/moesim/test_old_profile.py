"""A profile from before small kernels, contention and floors gives what it gave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moesim.deployment.deployment import deploy
from moesim.simulation.run import run
from moesim.spec.scenario import load_scenario
from tests.moesim.tiny import write_scenario
from tests.tolerance import rounding

PREFILL = {"phase": "prefill", "tokens_per_gpu": 64, "context": 0, "steps": 1}


@pytest.mark.parametrize(
    ("changes", "seconds"),
    [
        ({}, [0.025226360743540295, 0.025053328963127328]),
        (
            {"overlap": "two_batch", "mode": "per_expert"},
            [0.04094372889111056, 0.040802092205801166],
        ),
        ({"overlap": "shared_expert", "workload": PREFILL}, [0.03025462409776133]),
    ],
)
def test_steps_take_what_they_took(tmp_path: Path, changes: dict[str, Any], seconds: list[float]) -> None:
    """Recorded at 08b58ed."""
    mode = changes.get("mode", "per_node")
    fields: dict[str, Any] = {
        "name": "old",
        "model": "deepseek-v3",
        "cluster": "h800-2x8",
        "parallelism": {"ep": 16},
        "profile": str(Path(__file__).with_name("generic_2026_11_22.yaml")),
        "trace": {"synth": {"requests": 4, "tokens_per_request": 64, "skew": 0.8}},
        "workload": {"phase": "decode", "tokens_per_gpu": 8, "context": 100, "steps": 2},
        "placement": "linear",
        "dispatch": {"mode": mode, "dtype": "fp8", "combine_dtype": "bf16"},
    }
    found: list[float] = []
    scenario = load_scenario(
        str(write_scenario(tmp_path, fields | {key: changes[key] for key in changes if key != "mode"}))
    )
    run(deploy(scenario), lambda _, clock: found.append(clock.end_s - clock.start_s))
    assert found == pytest.approx(seconds, rel=rounding(10**6))
