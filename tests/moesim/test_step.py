"""Resolution ``step``: the same times as the event clock, whatever the program and the hardware."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.analysis.result import simulate_scenario
from moesim.hardware.fluid import Fluid
from moesim.hardware.network import Fabric, Network, Ports
from moesim.hardware.routes import build_routes
from moesim.hardware.topology import build_topology
from moesim.simulation.clock import StepClock
from moesim.simulation.conditions import Conditions
from moesim.simulation.loop import simulate
from moesim.simulation.operations import Operation
from moesim.simulation.order import Order
from moesim.simulation.program import Program, in_sequence
from moesim.simulation.step import _latest_first
from moesim.spec.cluster import load_cluster
from moesim.spec.scenario import load_scenario
from moesim.spec.yaml_source import Source
from tests.moesim.programs import LAYERS, SLOW, programs
from tests.moesim.tiny import tiny_scenario, write_scenario
from tests.tolerance import rounding

ALIKE = rounding(4 * 10**6)
"""About 1e-9: what the two clocks may differ by."""

FABRIC = Fabric(2, 3.0, 1.0, 0.01, 0.05)


def same(found: StepClock, expected: StepClock) -> None:
    for name in ("start_s", "end_s", "entered_OG", "start_OG", "end_OG"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=ALIKE, err_msg=name)


def both(steps: list[Program], ranks: int, conditions: Conditions) -> None:
    found, expected = (simulate(steps, ranks, conditions, which) for which in ("step", "event"))
    for one, other in zip(found, expected, strict=True):
        same(one, other)


@given(steps=st.lists(programs(), min_size=1, max_size=3))
def test_step_is_event(steps: list[Program]) -> None:
    """One after the other: ports that are still busy at the end of a step are busy in the next."""
    both(steps, 4, Conditions([Ports(FABRIC)]))


@given(step=programs(), seed=st.integers(0, 2**32), changes=st.integers(1, 3))
def test_step_is_event_on_hardware_that_changes(step: Program, seed: int, changes: int) -> None:
    rng = np.random.default_rng(seed)

    def later(operations: Any) -> list[Operation]:
        return [
            each if each.transfer else replace(each, later_EG=tuple(rng.random((changes, 4)) * 2))
            for each in operations
        ]

    networks = [Ports(FABRIC)]
    for _ in range(changes):
        nvlink_G, nic_G = rng.uniform(0.2, 1, (2, 4))
        networks.append(Ports(replace(FABRIC, nvlink_G=nvlink_G, nic_G=nic_G)))
    changes_s = tuple(np.sort(rng.uniform(0, 20, changes)).tolist())
    both([step.change(later)] * 2, 4, Conditions(networks, changes_s))


@given(step=programs())
def test_step_is_event_on_any_network(step: Program) -> None:
    cluster = load_cluster("h100-2x2", Source(None, None, {}))
    network: Network = Fluid(build_routes(build_topology(cluster, FABRIC, 4)))
    both([step], 4, Conditions([network]))


def test_the_log_of_the_event_clock_by_hand() -> None:
    """Layer 1 of the event clock's exact log: rank 1 waits from 17 s to 19 s, both leave at 21.25 s."""
    (clock,) = simulate([in_sequence(LAYERS)], 2, Conditions([Ports(SLOW)]))
    assert clock.entered_OG[7].tolist() == [19.0, 17.0]
    assert (clock.start_OG[7].tolist(), clock.end_OG[7].tolist()) == ([19.0, 19.0], [21.25, 21.25])
    assert clock.end_s == 25.25


@given(values=st.lists(st.integers(0, 5), min_size=1, max_size=9))
def test_ranks_from_the_latest_on(values: list[int]) -> None:
    seconds_G = np.array(values, np.float64)
    assert _latest_first(seconds_G).tolist() == np.argsort(-seconds_G, kind="stable").tolist()


def test_sequence_puts_each_operation_behind_what_it_waits_for() -> None:
    order = Order([[0, 3, 4], [1, 2]], {1: 0, 3: 2})
    sequence_O, before_O, after_O = order.sequence
    assert sequence_O.tolist() == [0, 1, 2, 3, 4]
    assert (before_O.tolist(), after_O.tolist()) == ([-1, -1, 1, 0, 3], [-1, 0, -1, 2, -1])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"overlap": ["shared_expert", "two_batch"]},
        {"faults": [{"gpu": 1, "clock": 0.5, "from_s": 1e-3}, {"nic": 0, "bandwidth": 0.1}, {"jitter": 0.2}]},
        {"rebalance": {"every_steps": 1}, "placement": {"solver": "eplb"}},
        {"network": "fluid"},
    ],
    ids=["plain", "overlap", "faults", "rebalance", "fluid"],
)
def test_a_whole_run_is_the_same(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Metrics and attribution, whatever touches the clock."""
    results = []
    for resolution in ("step", "event"):
        mapping = tiny_scenario(**changes, resolution=resolution)
        _, result = simulate_scenario(load_scenario(str(write_scenario(tmp_path, mapping))))
        assert result.provenance["resolution"] == resolution
        results.append(result)
    found, expected = results
    assert found.metrics.step_time_s.mean == pytest.approx(expected.metrics.step_time_s.mean, rel=ALIKE)
    for name, seconds in expected.attribution.plain().items():
        assert getattr(found.attribution, name) == pytest.approx(seconds, rel=ALIKE, abs=rounding(10**4))
