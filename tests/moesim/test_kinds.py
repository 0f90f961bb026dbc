"""Runs with experts of several kinds: each slot costs, and each move sends, what its expert does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.analysis.result import simulate_deployment
from moesim.deployment.deployment import Deployment, deploy
from moesim.simulation.rebalancing import expert_N
from moesim.simulation.run import run
from moesim.spec.profile import load_profile
from moesim.spec.scenario import load_scenario
from moesim.spec.yaml_source import Source
from placement.judging.migration import plan_migration
from tests.moesim.tiny import TINY, tiny_scenario, write_scenario
from tests.tolerance import rounding
from traces.timeline import PHASES

NOWHERE = Source(None, None, {})
STEPS = 7
# Experts 0 and 5 are wider than the 32 of the others, in layer 2 also expert 3, in half of the bytes.
WIDE = {"name": "wide", "width": 512, "experts": [0, 5]}
COARSE = {"name": "coarse", "width": 256, "dtype": "fp8", "layers": [2], "experts": [3]}


def deployed(folder: Path, kinds: list[dict[str, Any]], **changes: Any) -> Deployment:
    model = TINY["model"] | {"experts": TINY["model"]["experts"] | {"kinds": kinds}}
    workload = TINY["workload"] | {"steps": STEPS}
    scenario = tiny_scenario(model=model, workload=workload, **changes)
    return deploy(load_scenario(str(write_scenario(folder, scenario))))


def test_one_kind_in_a_list_changes_nothing(tmp_path: Path) -> None:
    """But the scenario, which says so."""
    one = [{"name": "all", "width": 32, "dtype": "bf16"}]
    plain, listed = (simulate_deployment(deployed(tmp_path, kinds))[1].plain() for kinds in ([], one))
    assert listed["scenario"]["model"]["experts"].pop("kinds")
    assert plain == listed


@pytest.mark.parametrize("mode", ["sync", "layerwise"])
def test_each_slot_takes_what_its_expert_does_wherever_it_has_moved(tmp_path: Path, mode: str) -> None:
    rebalance = {"every_steps": 2, "mode": mode}
    profile = load_profile(None, NOWHERE, ()).model_dump(mode="json") | {"small_kernels": None}
    deployment = deployed(tmp_path, [WIDE, COARSE], rebalance=rebalance, profile=profile)
    model, placement = deployment.scenario.model, deployment.placement
    done = run(deployment)
    assert any(move.copies for move in done.moves)
    slots, kernels = done.slots, deployment.pricing.kernels(deployment.scenario.profile)
    row_N, slot_N = np.searchsorted(placement.layers, slots.layer_N), slots.destination_N
    held_N = expert_N(placement, done.moves, slots.step_N, row_N, slot_N)
    timeline, experts = done.timeline, PHASES.index("experts")
    for step in range(STEPS):
        tokens_LS = np.zeros(placement.slot_expert_LS.shape, np.int32)
        held_LS = np.zeros(tokens_LS.shape, np.int16)  # slots without tokens take no time
        at_N = slots.step_N == step
        tokens_LS[row_N[at_N], slot_N[at_N]] = slots.count_N[at_N]
        held_LS[row_N[at_N], slot_N[at_N]] = held_N[at_N]
        kind_LS = model.kind_LS(held_LS)
        expected_LG = kernels.experts(tokens_LS, placement.slot_gpu_S, 4, kind_LS)
        here_N = (timeline.phase_N == experts) & (timeline.step_N == step)
        launch_N = [kernels.launch_s("experts", layer) for layer in timeline.layer_N[here_N].tolist()]
        found_LG = (timeline.end_s_N - timeline.start_s_N)[here_N] - np.array(launch_N)
        where = np.lexsort((timeline.rank_N[here_N], timeline.layer_N[here_N]))
        np.testing.assert_allclose(found_LG[where], expected_LG.ravel(), rtol=rounding(10**6))


def test_a_move_sends_the_bytes_of_its_kind(tmp_path: Path) -> None:
    """3 · 64 values for each of the width: 2 bytes each, of the coarse expert one."""
    done = run(deployed(tmp_path, [WIDE, COARSE], rebalance={"every_steps": 2}))
    before, sent = done.deployment.placement, set()
    for move in done.moves:
        moved = plan_migration(before, move.placement, [0, 0, 1, 1]).transfers()
        width = [
            512 if each["expert"] in (0, 5) else 128 if (each["layer"], each["expert"]) == (2, 3) else 32
            for each in moved
        ]
        assert move.bytes == sum(3 * 64 * 2 * values for values in width)
        sent |= set(width)
        before = move.placement
    assert sent >= {512, 32}
