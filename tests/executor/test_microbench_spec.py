"""SPEC.json of the microbenchmarks: what is refused, without starting a rank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from executor.measuring.spec import Spec
from executor.plan.errors import PlanError

GOOD: dict[str, Any] = {
    "format": "moesim.microbench/1",
    "plans": ["a", "b"],
    "device": "cpu",
    "backend": "loop",
    "threads": 1,
    "seconds": 2,
}


def test_plans_lie_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(GOOD))
    found = Spec.read(tmp_path / "spec.json")
    assert found == Spec((tmp_path / "a", tmp_path / "b"), "cpu", "loop", 1, 2.0)


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        (None, "1: is not JSON"),
        ([], "is not a specification of plans to measure: must be a JSON object"),
        (GOOD | {"format": "moesim.microbench/2"}, "format: needs a newer moesim"),
        (GOOD | {"format": "moesim.plan/1"}, "format: is not a moesim microbench"),
        ({key: each for key, each in GOOD.items() if key != "seconds"}, "lacks a field"),
        (GOOD | {"threads": "many"}, "lacks a field, or it is of another type"),
        (GOOD | {"plans": 3}, "lacks a field, or it is of another type"),
        (GOOD | {"plans": []}, "plans: must name at least one"),
        (GOOD | {"threads": 0}, "threads: must be at least 1"),
        (GOOD | {"device": "tpu"}, "device: must be cpu or cuda"),
    ],
)
def test_what_is_no_spec(value: Any, rule: str, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text("{" if value is None else json.dumps(value))
    with pytest.raises(PlanError, match=rf"spec\.json: ?{rule}"):
        Spec.read(tmp_path / "spec.json")


def test_a_missing_file_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"spec\.json: there is no such file"):
        Spec.read(tmp_path / "spec.json")
