"""Hardware that is slow from the start, from a time on, or from kernel to kernel."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.analysis.result import simulate_scenario
from moesim.analysis.result_file import Result
from moesim.deployment.deployment import deploy
from moesim.errors import SpecError
from moesim.hardware.groups import attention_group_s
from moesim.hardware.health import epochs, jitter_G
from moesim.hardware.kernels import Kernels
from moesim.hardware.network import Fabric, Ports
from moesim.simulation.conditions import Conditions
from moesim.simulation.loop import simulate
from moesim.simulation.program import in_sequence
from moesim.simulation.run import run
from moesim.spec.base import validate
from moesim.spec.cluster import Link, load_cluster
from moesim.spec.fault import Fault
from moesim.spec.presets import load_model
from moesim.spec.profile import DATA_SHEET
from moesim.spec.scenario import load_scenario
from moesim.spec.yaml_source import Source
from tests.moesim.flows import ports
from tests.moesim.programs import SLOW, collective, compute
from tests.moesim.tiny import tiny_scenario, write_scenario
from tests.tolerance import rounding
from traces.timeline import PHASES

NOWHERE = Source(None, None, {})


def test_epochs_by_hand() -> None:
    faults = [
        Fault(gpu=0, clock=0.5),
        Fault(gpu=0, clock=0.5, from_s=3.0),
        Fault(nic=1, bandwidth=0.1, from_s=1.0),
        Fault(nvlink=1, bandwidth=0.2),
        Fault(jitter=0.3),
        Fault(gpu=1, jitter=0.4),
    ]
    changes_s, states = epochs(faults, 2)
    assert changes_s == (1.0, 3.0)
    assert [state.clock_G.tolist() for state in states] == [[0.5, 1.0], [0.5, 1.0], [0.25, 1.0]]
    assert [state.nic_G.tolist() for state in states] == [[1.0, 1.0], [1.0, 0.1], [1.0, 0.1]]
    assert [state.nvlink_G.tolist() for state in states] == [[1.0, 0.2]] * 3
    np.testing.assert_allclose(jitter_G(faults, 2), [0.3, 0.5])


def naive_seconds(rates: list[float], changes: list[float], work: float, start: float) -> float:
    """Small time steps: work that shrinks at the rate in force."""
    now, step = start, 1e-4
    while work > 0:
        epoch = sum(change <= now for change in changes)
        work -= step * rates[epoch]
        now += step
    return now - start


@given(
    rates=st.lists(st.sampled_from([0.25, 0.5, 1.0]), min_size=3, max_size=3),
    changes=st.lists(st.floats(0.1, 3.0), min_size=2, max_size=2).map(sorted),
    work=st.floats(0.05, 2.0),
    start=st.floats(0.0, 3.0),
)
def test_a_kernel_slows_down_in_its_midst(
    rates: list[float], changes: list[float], work: float, start: float
) -> None:
    busy = [np.array([work / rate]) for rate in rates]
    operation = replace(compute("experts", 0, float(busy[0][0])), later_EG=tuple(busy[1:]))
    conditions = Conditions([Ports(SLOW)] * 3, tuple(changes))
    expected = naive_seconds(rates, changes, work, start)
    assert conditions.seconds(operation, 0, start) == pytest.approx(expected, abs=5e-4)


def test_a_collective_keeps_the_network_it_began_on() -> None:
    """8 bytes at 1 B/s from 1 s; the link drops to a quarter at 5 s, which the next collective meets."""
    exchange = [[0.0, 8.0], [8.0, 0.0]]
    chain = [
        compute("attention", 0, 1.0, 1.0),
        collective("dispatch", 0, exchange),
        collective("combine", 0, exchange),
    ]
    slow = Ports(replace(SLOW, nvlink_bandwidth=0.25))
    (clock,) = simulate([in_sequence(chain)], 2, Conditions([Ports(SLOW), slow], (5.0,)), "event")
    assert clock.end_OG[:, 0].tolist() == [1.0, 9.0, 9.0 + 32.0]


def test_a_degraded_port_slows_what_it_sends_and_what_it_receives() -> None:
    """At 3 B/s, GPU 1's port at half: its 6 bytes take 4 s either way, GPU 2's take 2 s."""
    sends, receives = np.zeros((4, 4)), np.zeros((4, 4))
    sends[1, 0] = sends[2, 3] = receives[0, 1] = receives[3, 2] = 6.0
    half_G = np.array([1.0, 0.5, 1.0, 1.0])
    inside = Fabric(4, 3.0, 1.0, 0.0, 0.0, nvlink_G=half_G)
    across = Fabric(1, 1.0, 3.0, 0.0, 0.0, nic_G=half_G)
    for fabric in (inside, across):
        assert ports(np.zeros(4), sends, np.zeros((4, 4)), fabric).tolist() == [4.0, 4.0, 2.0, 2.0]
        assert ports(np.zeros(4), receives, np.zeros((4, 4)), fabric).tolist() == [2.0, 4.0, 2.0, 2.0]


def simulated(folder: Path, **changes: Any) -> Result:
    return simulate_scenario(load_scenario(str(write_scenario(folder, tiny_scenario(**changes)))))[1]


@pytest.mark.parametrize("network", ["ports", "fluid"])
@pytest.mark.parametrize("faults", [[{"nic": 1, "bandwidth": 0.2}], [{"nvlink": 2, "bandwidth": 0.01}]])
def test_a_slow_link_is_hardwares_share_and_nothing_elses(tmp_path: Path, faults: Any, network: str) -> None:
    well = simulated(tmp_path, network=network)
    ill = simulated(tmp_path, network=network, faults=faults)
    assert ill.attribution.hardware_s > 0.0
    for term in ("imbalance_s", "network_s", "overhead_s", "ideal_s"):
        assert getattr(ill.attribution, term) == pytest.approx(
            getattr(well.attribution, term), rel=rounding(1000)
        )
    total = ill.attribution.step_s
    assert total == pytest.approx(ill.metrics.step_time_s.mean, rel=rounding(1000))


def test_a_slow_port_holds_up_its_attention_group() -> None:
    """Groups {0, 1} and {2, 3}; 3 and 5 tokens of 64 bf16 values in the first: 8 · 128 / 2 bytes each way.

    At 1000 B/s that is 2 · 0.512 s. GPU 1's port at a quarter makes it four times as long for both.
    """
    model = load_model({"base": "gpt-oss-20b", "hidden": 64}, NOWHERE)
    gpu = load_cluster("h100-1x8", NOWHERE).gpu
    gpu = gpu.model_copy(update={"nvlink": Link(bandwidth=1000, latency=0.25)})
    tokens_G = np.array([3, 5, 1, 1])
    kernels = Kernels(model, gpu, DATA_SHEET, tp=2)
    well_G = attention_group_s(kernels, tokens_G)
    np.testing.assert_allclose(
        well_G, [2 * (0.512 + 0.25)] * 2 + [2 * (0.128 + 0.25)] * 2, rtol=rounding(1000)
    )
    ill_G = attention_group_s(kernels, tokens_G, np.array([1.0, 0.25, 1.0, 1.0]))
    np.testing.assert_allclose(
        ill_G, [2 * (4 * 0.512 + 0.25)] * 2 + [2 * (0.128 + 0.25)] * 2, rtol=rounding(1000)
    )
    assert not attention_group_s(Kernels(model, gpu, DATA_SHEET), tokens_G, np.full(4, 0.25)).any()


@pytest.mark.parametrize("overlap", ["none", "two_batch"])
def test_a_slow_nvlink_port_is_felt_in_attention_from_its_time_on(tmp_path: Path, overlap: str) -> None:
    cluster = tiny_scenario()["cluster"]
    cluster["gpu"]["sms"] = 100  # enough beside the transfers of two micro-batches

    def attention_s(*faults: dict[str, Any]) -> tuple[np.ndarray, float]:
        """Seconds of attention by step and rank, and when the first step ends."""
        fields = tiny_scenario(
            parallelism={"ep": 4, "tp": 2}, cluster=cluster, overlap=overlap, faults=list(faults)
        )
        timeline = run(deploy(load_scenario(str(write_scenario(tmp_path, fields))))).timeline
        spans = timeline.phase_N == PHASES.index("attention")
        seconds_WG = np.zeros((2, 4))
        at = (timeline.step_N[spans], timeline.rank_N[spans])
        np.add.at(seconds_WG, at, (timeline.end_s_N - timeline.start_s_N)[spans])
        return seconds_WG, float(timeline.end_s_N[timeline.step_N == 0].max())

    well_WG, first_s = attention_s()
    slow = {"nvlink": 3, "bandwidth": 0.1}
    ill_WG, _ = attention_s(slow)
    np.testing.assert_allclose(ill_WG[:, :2], well_WG[:, :2], rtol=rounding(10**6))
    assert (ill_WG[:, 2:] > well_WG[:, 2:] * 1.005).all()
    # From after the first step on: the second step's attention is as slow as with the fault from the start.
    late_WG, _ = attention_s(slow | {"from_s": first_s})
    np.testing.assert_allclose(late_WG[0], well_WG[0], rtol=rounding(10**6))
    np.testing.assert_allclose(late_WG[1], ill_WG[1], rtol=rounding(10**6))


def test_a_fault_after_the_run_changes_nothing(tmp_path: Path) -> None:
    well = simulated(tmp_path)
    late = simulated(tmp_path, faults=[{"gpu": 1, "clock": 0.1, "from_s": 1000.0}])
    assert late.metrics == well.metrics
    assert late.attribution.hardware_s == pytest.approx(0.0, abs=rounding(1000))


def test_a_fault_midway_lies_between_none_and_one_from_the_start(tmp_path: Path) -> None:
    slow_gpu = tiny_scenario()["cluster"]
    slow_gpu["gpu"]["flops"] = {"bf16": 1e9}
    steps = [
        simulated(tmp_path, cluster=slow_gpu, faults=faults).metrics.step_time_s.mean
        for faults in ([], [{"gpu": 1, "clock": 0.3, "from_s": 0.001}], [{"gpu": 1, "clock": 0.3}])
    ]
    assert steps[0] < steps[1] < steps[2]


def test_jitter_is_seeded_and_only_ever_costs_time_on_average(tmp_path: Path) -> None:
    faults = [{"jitter": 0.3}]
    one, again = simulated(tmp_path, faults=faults), simulated(tmp_path, faults=faults)
    assert one.metrics == again.metrics
    assert one.metrics != simulated(tmp_path, faults=faults, seed=1).metrics
    assert one.attribution.hardware_s != 0.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "must have exactly one of clock, bandwidth and jitter"),
        ({"gpu": 1, "clock": 0.5, "jitter": 0.1}, "must have exactly one of"),
        ({"clock": 0.5}, "names no device that clock fits: gpu"),
        ({"nic": 1, "clock": 0.5}, "names no device that clock fits: gpu"),
        ({"gpu": 1, "bandwidth": 0.5}, "names no device that bandwidth fits: nic or nvlink"),
        ({"nic": 1, "nvlink": 1, "bandwidth": 0.5}, "names no device that bandwidth fits"),
        ({"gpu": 1, "clock": 0.0}, "clock: must be at least 1e-06"),
        ({"gpu": 1, "clock": 1.5}, "clock: must be at most 1"),
        ({"gpu": -1, "clock": 0.5}, "gpu: must be at least 0"),
        ({"jitter": 0.1, "from_s": 1.0}, "from_s: jitter is there from the start"),
        ({"gpu": 1, "clock": 0.5, "until_s": 3.0}, "unknown key"),
    ],
)
def test_bad_faults_are_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        validate(Fault, given)
    assert message in str(caught.value)


def test_a_device_beyond_the_group_is_refused_with_its_line(tmp_path: Path) -> None:
    path = write_scenario(tmp_path, tiny_scenario(faults=[{"gpu": 4, "clock": 0.5}]))
    with pytest.raises(SpecError, match=r"scenario.yaml:\d+: faults\[0\]: names a device beyond the 4 ranks"):
        load_scenario(str(path))


def test_the_culprit_is_named(tmp_path: Path) -> None:
    """A GPU at a tenth of its clock is the straggler of every layer, because of its hardware."""
    slow = tiny_scenario()["cluster"]
    slow["gpu"]["flops"] = {"bf16": 1e9}
    found = simulated(tmp_path, cluster=slow, faults=[{"gpu": 1, "clock": 0.1}])
    assert {(entry.rank, entry.cause) for entry in found.stragglers} == {(1, "hardware")}
