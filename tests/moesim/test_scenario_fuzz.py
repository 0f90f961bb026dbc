"""Scenarios with odd fields, bytes and numbers give a result that JSON can hold, or one clear error."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from moesim.analysis.result import simulate_scenario
from moesim.errors import MoesimError
from moesim.spec.scenario import load_scenario
from tests.moesim.test_spec_fuzz import places, with_odd_bytes, with_odd_field
from tests.moesim.tiny import tiny_scenario

VALID = [
    tiny_scenario(),
    tiny_scenario(
        routing={"policy": "drop", "capacity_factor": 1.0, "scope": "global"},
        placement={"solver": "greedy", "slots": 12},
        dispatch={"mode": "per_node", "dtype": "fp8"},
    ),
    tiny_scenario(
        workload={
            "phase": "mixed",
            "tokens_per_gpu": {"uniform": [1, 4]},
            "prefill_tokens_per_gpu": 3,
            "context": {"lognormal": {"mean": 9, "sigma": 1}},
            "steps": 2,
        }
    ),
]
# Counts that are small, so that a scenario which holds is simulated soon, and quantities of any size.
NUMBERS = [0, 1, 2, 3, 5, 7, 16, 100, 1 << 31, 0.5, 1.5, 1e-300, 1e-9, 1e9, 1e300]


def with_odd_number(valid: Any, rng: random.Random) -> Any:
    """``valid`` with one or two of its numbers and quantities replaced."""
    value = copy.deepcopy(valid)
    for _ in range(rng.randint(1, 2)):
        at = rng.choice(list(places(value)))
        inside = value
        for key in at[:-1]:
            inside = inside[key]
        if str(inside[at[-1]])[:1].isdigit():
            inside[at[-1]] = rng.choice(NUMBERS)
    return value


def simulate(path: Path) -> None:
    json.dumps(simulate_scenario(load_scenario(str(path)))[1].plain(), allow_nan=False)


@pytest.mark.parametrize(("kind", "mutations"), [("fields", 400), ("bytes", 400), ("numbers", 200)])
def test_only_our_errors_come_out(kind: str, mutations: int, tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    rng = random.Random(kind)
    messages = []
    for _ in range(mutations):
        start = rng.choice(VALID)
        if kind == "bytes":
            path.write_bytes(with_odd_bytes(yaml.safe_dump(start).encode(), rng))
        else:
            change = with_odd_field if kind == "fields" else with_odd_number
            path.write_text(yaml.safe_dump(change(start, rng)), encoding="utf-8")
        try:
            simulate(path)
        except MoesimError as error:
            messages.append(str(error))
    # Else the mutations would be too tame, or too wild, to show anything.
    assert mutations // 8 < len(messages) < mutations
    assert not [text for text in messages if "\n" in text or len(text) > 1200]
