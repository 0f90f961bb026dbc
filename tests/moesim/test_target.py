"""Targets: what is asked of a metric, worked by hand; unknown ones are refused."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest

from moesim.analysis.result_file import Metrics
from moesim.analysis.target import Target
from moesim.errors import SpecError
from tests.moesim.command import moesim, refused
from tests.moesim.report_example import example_run

pytestmark = pytest.mark.usefixtures("here")


def metrics(**changes: Any) -> Metrics:
    """A step of 40 ms, 60 ms at p99; 70 GiB; 2 % dropped, with no weights to lose."""
    plain = copy.deepcopy(example_run()[0]["metrics"])
    plain["step_time_s"] = {"mean": 0.04, "p50": 0.04, "p95": 0.05, "p99": 0.06}
    plain["gpu_memory_bytes"] = {"mean": 60.0 * 2**30, "max": 70.0 * 2**30}
    return Metrics.model_validate(plain | {"dropped": 0.02, "gate_mass_lost": None} | changes)


@pytest.mark.parametrize(
    ("text", "met", "missed_by"),
    [
        ("step_time_s.p99<=60ms", True, 0.0),
        ("step_time_s.p99<60 ms", False, 0.0),  # on the bound itself
        ("step_time_s.p99<=50ms", False, 0.2),  # 60 ms are a fifth more than 50
        ("step_time_s.mean >= 0.05", False, 0.2),  # in SI; 40 ms are a fifth less than 50
        ("gpu_memory_bytes.max<=70 GiB", True, 0.0),
        ("gpu_memory_bytes.max<=56 GiB", False, 0.25),
        ("dropped<=1%", False, 1.0),
        ("dropped<=0", False, 0.02),  # no part of a bound of 0
        ("dropped>0.01", True, 0.0),
        ("gate_mass_lost<=1", False, math.inf),  # it has none
        ("phase_time_s.experts>=0s", True, 0.0),
    ],
)
def test_verdicts(text: str, met: bool, missed_by: float) -> None:
    target = Target.parse(text)
    assert target.met(metrics()) is met
    assert target.missed_by(metrics()) == pytest.approx(missed_by)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("step_time_s.p99", ["must read METRIC<=VALUE", "got 'step_time_s.p99'"]),
        ("step_time_s.p99=50ms", ["must read METRIC<=VALUE"]),
        ("step_time.p99<=50ms", ["no such metric; did you mean 'step_time_s.p99'?"]),
        ("step_time_s<=50ms", ["no such metric", "step_time_s.p99"]),
        ("step_time_s.p99<=50 GB", ["step_time_s.p99: 'GB' is not a unit of a time"]),
        ("step_time_s.p99<=soon", ["step_time_s.p99: must be a time"]),
        ("gpu_memory_bytes.max<=50 ms", ["gpu_memory_bytes.max: 'ms' is not a unit of a size"]),
        ("dropped<=much", ["dropped: must be a number, or per cent", "(got 'much')"]),
        ("dropped<=nan", ["dropped: must be a number"]),
        ("tokens_per_s>=5 GB", ["tokens_per_s: must be a number"]),
    ],
)
def test_what_no_target_is(text: str, words: list[str]) -> None:
    line = refused("whatif", "s.yaml", "--vary", "seed=[1]", "--target", text)
    assert line.startswith("--target")
    assert all(word in line for word in words), line


def test_every_number_of_a_result_can_be_a_target() -> None:
    found = json.loads(moesim("run", "s.yaml", "--json").out)["metrics"]

    def paths(value: Any, above: str = "") -> list[str]:
        if not isinstance(value, dict):
            return [above[:-1]]
        return [path for key, inner in value.items() for path in paths(inner, f"{above}{key}.")]

    result = Metrics.model_validate(found)
    for path in paths(found):
        target = Target.parse(f"{path}>=0")
        assert target.number(result) is not None or path in ("gate_mass_lost", "effective_capacity_factor")
    with pytest.raises(SpecError):
        Target.parse("stages>=0")
    assert found["tokens_per_s_per_gpu"] == pytest.approx(found["tokens_per_s"] / 4)


def test_points_say_whether_they_meet_all_targets(here: Path) -> None:
    arguments = ["whatif", "s.yaml", "--vary", "workload.tokens_per_gpu=[1, 4, 64]"]
    plain = json.loads(moesim(*arguments, "--json").out)
    assert "targets" not in plain
    assert not any("meets" in point for point in plain["points"])
    one, four, many = (point["metrics"]["step_time_s"]["p99"] for point in plain["points"])
    assert one < four < many
    bounds = ["--target", f"step_time_s.p99<={four}", "--target", f"step_time_s.p99>={four}"]
    done = json.loads(moesim(*arguments, *bounds, "--json", "-o", "out").out)
    assert [point["meets"] for point in done["points"]] == [False, True, False]
    assert done["targets"] == bounds[1::2]
    assert bounds[1] in done["baseline"]["provenance"]["command"]
    text = moesim(*arguments, *bounds[:2]).out
    assert "meets" in text
    # The page is made anew with the same verdicts.
    page = (here / "out" / "report.html").read_text()
    assert moesim("report", "out").code == 0
    assert (here / "out" / "report.html").read_text() == page
    assert bounds[1].replace("<", "&lt;") in page
