"""What a reader is told to mind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.analysis.result import simulate_scenario
from moesim.errors import SpecError
from moesim.spec.presets import preset_source
from moesim.spec.scenario import load_scenario
from tests.moesim.tiny import on_generic, tiny_scenario, write_scenario
from tests.traces.random_traces import random_trace
from traces.trace_writer import write_trace


def notes(folder: Path, **changes: Any) -> str:
    path = write_scenario(folder, tiny_scenario(**changes))
    return " ".join(simulate_scenario(load_scenario(str(path)))[1].notes)


def test_faults_without_effect_are_named(tmp_path: Path) -> None:
    late = {"gpu": 1, "clock": 0.5, "from_s": 100.0}
    found = notes(tmp_path, faults=[{"gpu": 1, "clock": 0.5}, late])
    assert "faults[1] has no effect: it begins at 100 s, after the end of the run" in found
    assert "faults[0]" not in found
    nic = [{"nic": 1, "bandwidth": 0.5}]
    assert "no effect" not in notes(tmp_path, faults=nic)
    assert "inside one node no traffic uses a NIC" in notes(tmp_path, faults=nic, parallelism={"ep": 2})


def categorised(folder: Path, of_request: list[int]) -> str:
    """A trace whose requests are of these categories."""
    trace = random_trace(layers=(1, 2), lengths=(12,) * 6, categories=("code", "chat"))
    category_T = np.repeat(np.array(of_request, np.int32), 12)
    write_trace(replace(trace, category_T=category_T), folder / "c.parquet")
    return str(folder / "c.parquet")


def test_a_policy_that_finds_nothing_of_its_kind_says_so(tmp_path: Path) -> None:
    """The mask is found in the first three requests; the replayed ones are of another category."""
    mask = {"policy": "mask_least", "off": 2, "of": "trace", "among": "category", "instead": "nothing"}

    def said(*of_request: int) -> str:
        return notes(tmp_path, trace={"file": categorised(tmp_path, [*of_request])}, routing=mask)

    assert (
        "routing: mask_least has no effect: 100% of the replayed tokens are of categories that the requests "
        "before them do not have (chat): it left every assignment as it was." in said(0, 0, 0, 1, 1, 1)
    )
    part = said(0, 0, 0, 0, 1, 0)
    assert "routing: mask_least acts on a part only: 33% of the replayed tokens are of categories" in part
    assert "mask_least" not in said(0, 1, 0, 1, 1, 0)


def test_policies_and_solvers_without_effect_are_named(tmp_path: Path) -> None:
    drop = {"policy": "drop", "capacity_factor": 1e6}
    assert "routing: drop has no effect: it left every assignment as it was." in notes(tmp_path, routing=drop)
    tight = drop | {"capacity_factor": 0.5}
    assert "no effect" not in notes(tmp_path, routing=tight)
    off = {"policy": "mask_least", "off": 0, "of": "trace", "among": "category", "instead": "nothing"}
    nothing = notes(tmp_path, trace={"file": categorised(tmp_path, [0, 1] * 3)}, routing=off)
    assert "routing: mask_least has no effect: it left every assignment as it was." in nothing
    found = notes(tmp_path, routing=[tight, drop, {"policy": "none"}])
    assert found.count("routing: drop has no effect") == 1
    single = notes(tmp_path, placement="eplb", parallelism={"ep": 8}, cluster="h100-1x8")
    assert "placement: eplb has no effect: it left every expert where linear places it." in single
    assert "placement: eplb" not in notes(tmp_path, placement="eplb")


def test_what_the_profile_was_not_fitted_on_is_named(tmp_path: Path) -> None:
    found = notes(tmp_path)
    assert "fitted on H800 and H100; for tiny its efficiencies are extrapolated" in found
    assert "Transfers in mode per_gpu were fitted on 8 to 16 GPUs; this run has 4 tokens on 4 GPUs." in found


@pytest.mark.parametrize("fitted", [12, [3, 48]])
@pytest.mark.parametrize(
    ("overlap", "words"), [("none", ""), ("two_batch", "half of them in each micro-batch")]
)
def test_a_micro_batch_sends_half_of_the_tokens(
    tmp_path: Path, fitted: int | list[int], overlap: str, words: str
) -> None:
    """4 tokens a GPU are within a quarter of 12, half of them are not."""
    profile = on_generic(plain={"fitted_tokens": fitted, "fitted_gpus": [2, 4]})
    found = notes(tmp_path, profile=profile, overlap=overlap)
    assert words in found
    said = "about 12" if fitted == 12 else "3 to 48"
    assert (f"were fitted on {said} tokens a GPU and 2 to 4 GPUs" in found) == bool(words)


def test_what_the_host_waits_for_is_named(tmp_path: Path) -> None:
    """Two MoE layers of two micro-batches."""
    profile = on_generic(plain={"host": "0.5 ms"})
    found = notes(tmp_path, profile=profile, overlap="two_batch")
    assert "2.00 ms pass while the host waits for the counts of 4 dispatches, 500 µs each" in found
    assert "the host waits" not in notes(tmp_path, profile=on_generic(plain={"host": 0.0}))


def test_what_moving_tokens_leaves_out_is_named(tmp_path: Path) -> None:
    moving = tiny_scenario()["dispatch"] | {"mode": "expert_to_expert"}
    assert "attention is costed at home" in notes(tmp_path, dispatch=moving)
    assert "attention is costed at home" not in notes(tmp_path)


def test_where_requests_come_from_is_named(tmp_path: Path) -> None:
    assert "after the first 50% of the trace" in notes(tmp_path)
    prefill = tiny_scenario()["workload"] | {"phase": "prefill"}
    assert "requests of the trace, 12 tokens each" in notes(tmp_path, workload=prefill)


def test_a_bandwidth_that_lost_its_unit_is_refused(tmp_path: Path) -> None:
    cluster = tiny_scenario()["cluster"]
    cluster["nic"]["bandwidth"] = 400
    path = write_scenario(tmp_path, tiny_scenario(cluster=cluster))
    with pytest.raises(SpecError, match=r"cluster\.nic\.bandwidth: has lost its unit.*400 bytes per second"):
        load_scenario(str(path))


def test_a_profile_that_is_certain_of_itself_says_why_there_are_no_intervals(tmp_path: Path) -> None:
    certain = dict(preset_source("profiles", "generic").value)
    del certain["uncertainty"]
    assert "does not say how far its figures may be off" in notes(tmp_path, profile=certain)
    assert "does not say how far" not in notes(tmp_path)
