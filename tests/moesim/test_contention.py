"""What kernels and transfers beside each other cost each other: by hand, within bounds, and nothing alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.analysis.result import simulate_scenario
from moesim.hardware.network import Ports
from moesim.hardware.transfer import Transfer
from moesim.simulation.conditions import Conditions
from moesim.simulation.contention import contended, timetable
from moesim.simulation.loop import simulate
from moesim.simulation.operations import Operation
from moesim.simulation.program import Program, beside_shared_expert, in_sequence, two_batches
from moesim.spec.profile import load_profile
from moesim.spec.scenario import load_scenario
from moesim.spec.yaml_source import Source
from tests.examples import examples
from tests.moesim.programs import SLOW, chains, collective, compute
from tests.moesim.tiny import tiny_scenario, write_scenario
from tests.tolerance import rounding

GENERIC = load_profile(None, Source(None, None, {}), ())

# Router 1 s; dispatch from 1 to 5 beside the shared expert from 1 to 4; then experts and combine alone.
LAYER = [
    compute("router", 0, 1.0, 1.0),
    compute("shared_expert", 0, 3.0, 3.0),
    collective("dispatch", 0, [[0.0, 4.0], [4.0, 0.0]]),
    compute("experts", 0, 5.0, 5.0),
    collective("combine", 0, [[0.0, 6.0], [6.0, 0.0]]),
]
ALONE_O = np.array([1.0, 3.0, 4.0, 5.0, 6.0])
# All of it but for the shared expert, which wants memory for half of its time, and the dispatch: a quarter.
MEMORY_OG = np.repeat([[1.0], [1.5], [1.0], [5.0], [6.0]], 2, axis=1)


def added(program: Program, after: Program) -> list[np.ndarray]:
    return [
        late.wire_G - early.wire_G for early, late in zip(program.operations, after.operations, strict=True)
    ]


def test_both_wait_while_both_want_memory() -> None:
    """For 3 s beside each other, ½ · ¼ of it: 0.375 s each."""
    program = beside_shared_expert(LAYER)
    found = added(program, contended(program, ALONE_O, MEMORY_OG, background=False))
    assert [each.tolist() for each in found] == [[0, 0], [0.375, 0.375], [0.375, 0.375], [0, 0], [0, 0]]


def test_kernels_pause_for_a_transfer_in_the_background() -> None:
    """Three quarters of the dispatch fall on the shared expert: of its floor of 2 s and 1 s of its bytes."""
    chain = [replace(each, overhead_s=2.0) if each.phase == "dispatch" else each for each in LAYER]
    program = beside_shared_expert(chain)
    found = added(program, contended(program, ALONE_O, MEMORY_OG, background=True))
    assert [each.tolist() for each in found] == [[0, 0], [2.25, 2.25], [0.375, 0.375], [0, 0], [0, 0]]


def test_nothing_is_added_where_nothing_is_side_by_side() -> None:
    program = in_sequence(LAYER)
    assert contended(program, ALONE_O, MEMORY_OG, background=True) is program


@given(first=chains(), second=chains(), seed=st.integers(0, 2**32))
def test_nobody_waits_longer_than_it_is_beside_others(
    first: list[Operation], second: list[Operation], seed: int
) -> None:
    program = two_batches(first, second)
    rng = np.random.default_rng(seed)
    alone_O = rng.random(len(program.operations)) + 0.1
    memory_OG = alone_O[:, None] * rng.random((len(alone_O), 4))
    found_OG = np.array(added(program, contended(program, alone_O, memory_OG, background=False)))
    assert (found_OG >= 0).all()
    assert (found_OG <= memory_OG * (1 + rounding(100))).all()
    more_OG = np.array(added(program, contended(program, alone_O, 1.5 * memory_OG, background=False)))
    assert (more_OG >= found_OG * (1 - rounding(100))).all()
    assert not np.any(added(program, contended(program, alone_O, 0 * memory_OG, background=False)))


@given(first=chains(), second=chains(), seed=st.integers(0, 2**32))
def test_the_timetable_is_that_of_a_rank_alone(
    first: list[Operation], second: list[Operation], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    program = two_batches(first, second)
    seconds_O = rng.random(len(program.operations))
    nothing = Transfer(np.zeros((1, 1)), np.zeros((1, 1)))
    alone = program.change(
        lambda operations: [
            replace(
                each,
                busy_G=np.zeros(1),
                wire_G=np.zeros(1),
                overhead_s=float(seconds),
                transfer=nothing if each.communicates else None,
            )
            for each, seconds in zip(operations, seconds_O, strict=True)
        ]
    )
    (clock,) = simulate([alone], 1, Conditions([Ports(SLOW)]))
    start_O, end_O = timetable(program, seconds_O)
    assert end_O == pytest.approx(clock.end_OG[:, 0], rel=rounding(1000))
    assert end_O - start_O == pytest.approx(seconds_O, rel=rounding(1000))


def test_a_copy_passes_a_buffer_at_each_end() -> None:
    """GPU 0 sends 3 bytes and relays 5, GPU 1 receives 3, GPU 2 5: twice each of them."""
    first, second = np.zeros((3, 3)), np.zeros((3, 3))
    first[0, 1], second[0, 2] = 3.0, 5.0
    assert Transfer(first, second).memory_bytes_G.tolist() == [16.0, 6.0, 10.0]


def terms(folder: Path, overlap: Any, mode: str, **profile: Any) -> dict[str, float]:
    cluster = tiny_scenario()["cluster"]
    cluster["gpu"]["sms"] = 100
    mapping = tiny_scenario(
        cluster=cluster,
        overlap=overlap,
        dispatch={"mode": mode, "dtype": "bf16", "combine_dtype": "bf16"},
        profile=GENERIC.model_dump(mode="json") | profile,
    )
    return simulate_scenario(load_scenario(str(write_scenario(folder, mapping))))[1].attribution.plain()


@settings(max_examples=examples(6))
@given(
    overlap=st.sampled_from([["none"], ["two_batch"], ["shared_expert", "two_batch"]]),
    mode=st.sampled_from(["per_gpu", "per_node", "per_expert"]),
)
def test_without_a_network_nobody_waits(
    tmp_path_factory: pytest.TempPathFactory, overlap: list[str], mode: str
) -> None:
    folder = tmp_path_factory.mktemp("terms")
    apart = terms(folder, overlap if overlap != ["none"] else "none", mode, transfers=None)
    beside = terms(folder, overlap if overlap != ["none"] else "none", mode, transfers=0.2)
    for free in ("overhead_s", "ideal_s"):
        assert beside[free] == pytest.approx(apart[free], rel=rounding(10**6))
    if overlap == ["none"]:
        assert beside == apart
    else:
        assert beside["network_s"] > apart["network_s"]
