"""The dictionary of solvers: what they are asked, what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from placement.problem.errors import PlacementError
from placement.solvers.solvers import SOLVERS, solve

FOUR: dict[str, Any] = {"experts": 4, "gpus": 2, "layers": (3, 5)}
NAMES = ["linear", "round_robin", "greedy", "eplb", "swap", "ilp", "moetuner", "locality", "auto"]
NEED_TOKENS = ("moetuner", "locality")
LOAD = [[4.0, 3.0, 2.0, 1.0], [1.0, 1.0, 1.0, 9.0]]


def test_each_solver_stands_under_its_name() -> None:
    assert list(SOLVERS) == NAMES
    assert [solver.name for solver in SOLVERS.values()] == list(SOLVERS)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NEED_TOKENS])
def test_solve_gives_every_gpu_as_many_slots(name: str) -> None:
    placement = solve(name, LOAD, slots=8, **FOUR)
    assert placement.slot_gpu_S.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert (placement.experts, placement.gpus, placement.layers) == (4, 2, (3, 5))
    assert solve(name, LOAD, **FOUR).slots == 4


def test_the_origin_names_the_solver_and_what_it_saw() -> None:
    assert (
        solve("greedy", LOAD, fitted_on="trace.parquet", **FOUR).origin == "greedy, fitted on trace.parquet"
    )
    assert solve("greedy", LOAD, **FOUR).origin == "greedy"
    assert solve("linear", LOAD, fitted_on="trace.parquet", **FOUR).origin == "linear"


def test_what_needs_no_load_takes_none() -> None:
    assert solve("linear", None, **FOUR) == solve("linear", LOAD, **FOUR)


def test_greedy_balances_what_linear_does_not() -> None:
    load_LE = np.random.default_rng(1).lognormal(size=(8, 256))
    shape: dict[str, Any] = {"experts": 256, "gpus": 32, "slots": 288, "layers": tuple(range(8))}

    def balancedness(name: str) -> float:
        load_LG = solve(name, load_LE, **shape).gpu_load_LG(load_LE)
        return float((load_LG.mean(axis=1) / load_LG.max(axis=1)).mean())

    # The published algorithm reaches 0.995 on such loads (DeepSeek's EPLB, global, 288 slots on 32 GPUs).
    assert balancedness("greedy") > 0.99
    assert balancedness("linear") < 0.6


def refused(name: str, load: Any, **changes: Any) -> str:
    with pytest.raises(PlacementError) as caught:
        solve(name, load, **(FOUR | changes))
    return str(caught.value)


def test_what_has_no_placement_is_refused_with_the_way_out() -> None:
    assert refused("eplb2", LOAD) == f"solver: no such solver; known: {', '.join(NAMES)} (got 'eplb2')"
    assert refused("linear", None, slots=3) == (
        "slots: more experts than slots: 4 experts need at least 4 slots (got 3)"
    )
    assert refused("linear", None, gpus=3, slots=1) == (
        "slots: more experts than slots: 4 experts need at least 6 slots (got 1)"
    )
    assert refused("linear", None, gpus=3) == (
        "slots: do not divide over 3 GPUs; name a number that does, such as 6 (got 4)"
    )
    assert refused("linear", None, slots=10**12) == "slots: must be at most 8 (got 1000000000000)"
    assert refused("linear", None, gpus=0) == "gpus: must be from 1 to 4096 (got 0)"
    assert refused("linear", None, experts=-1) == "experts: must be from 1 to 32767 (got -1)"


def test_wrong_loads_are_refused_by_layer_and_expert() -> None:
    assert refused("greedy", None) == (
        "solver: greedy needs expert loads: give a trace or a load table, or use one of linear, round_robin"
    )
    assert refused("greedy", LOAD[:1]) == "load: must have shape [2 layers, 4 experts] (got (1, 4))"
    for value in (np.nan, np.inf, -1.0):
        load = np.array(LOAD)
        load[1, 2] = value
        assert (
            refused("greedy", load)
            == f"load, layer 5, expert 2: must be finite and not negative (got {value})"
        )
    assert (
        refused("greedy", [[0.0] * 4, LOAD[1]]) == "load, layer 3: the loads of a layer must not all be zero"
    )


def test_extreme_but_finite_loads_are_placed() -> None:
    for extreme in (1e299, 5e-324):
        placement = solve("greedy", [[extreme] * 4] * 2, slots=6, **FOUR)
        assert placement.replicas_LE.sum() == 12
