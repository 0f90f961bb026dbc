"""What adding a dispatch mode takes, shown by one: a record, a counting rule, a cost entry, and an oracle.

Mode ``to_nodes`` sends each token straight to every GPU of each node that holds one of its slots.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.analysis.result import simulate_deployment
from moesim.deployment.batch import batches
from moesim.deployment.deployment import Deployment, deploy
from moesim.dispatch.modes import MODES, Mode
from moesim.dispatch.work import Routed, Work, each_gpu
from moesim.errors import SpecError
from moesim.simulation.run import Run, run
from moesim.spec.scenario import load_scenario
from tests.moesim.tiny import on_generic, tiny_scenario, write_scenario
from traces.timeline import HOPS, PHASES

NODES, P = 2, 2


def to_nodes(routed: Routed, work: Work) -> None:
    """A copy for every GPU of each node that holds one of the token's slots."""
    each_gpu(routed, work)
    work.sent_LGG[:] = 0
    node_S = routed.gpu_S // routed.gpus_per_node
    for layer, slot_TK in enumerate(routed.slot_LTK):
        for home, (first, last) in enumerate(zip(routed.offsets_G[:-1], routed.offsets_G[1:], strict=True)):
            own_TK = slot_TK[first:last]
            for node in range(NODES):
                visits = int(((own_TK >= 0) & (node_S[own_TK] == node)).any(axis=1).sum())
                work.sent_LGG[layer, home, node * P : (node + 1) * P] = visits
            work.sent_LGG[layer, home, home] = 0


LINKS = {"nvlink": 0.5, "nic": 0.25, "fixed": 1e-5}


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODES, "to_nodes", Mode(to_nodes))


def simulate(folder: Path, mode: str, **changes: Any) -> Run:
    profile = on_generic(dispatch={"to_nodes": LINKS} if mode == "to_nodes" else {})
    dispatch = {"mode": mode, "dtype": "bf16", "combine_dtype": "bf16"}
    path = write_scenario(folder, tiny_scenario(profile=profile, dispatch=dispatch, **changes))
    return run(deploy(load_scenario(str(path))))


def naive(deployment: Deployment) -> Counter[tuple[int, ...]]:
    """(step, layer, home, GPU) of each copy, by sets of nodes; experts lie in order, two on each GPU."""
    scenario, trace, found = deployment.scenario, deployment.replayed, Counter[tuple[int, ...]]()
    for step, tokens in enumerate(batches(trace, scenario.workload, 4, scenario.seed)):
        home_T = np.repeat(np.arange(4), tokens.tokens_G)
        for row, home in zip(tokens.row_T.tolist(), home_T.tolist(), strict=True):
            for layer, experts in zip(scenario.model.moe_layers, trace.ids_TLK[row].tolist(), strict=True):
                nodes = {expert // 2 // P for expert in experts}
                gpus = {gpu for node in nodes for gpu in range(node * P, node * P + P)}
                found.update((step, layer, home, gpu) for gpu in gpus - {home})
    return found


@pytest.mark.usefixtures("example")
def test_a_run_counts_what_the_oracle_does(tmp_path: Path) -> None:
    done = simulate(tmp_path, "to_nodes")
    work, expected = done.work(), naive(done.deployment)
    for phase, ends in (
        ("dispatch", (work.source_N, work.destination_N)),
        ("combine", (work.destination_N, work.source_N)),
    ):
        rows = (work.phase_N == PHASES.index(phase)) & (work.count_N > 0)
        assert (work.hop_N[rows] == HOPS.index("first")).all()
        keys = zip(*(column[rows].tolist() for column in (work.step_N, work.layer_N, *ends)), strict=True)
        assert dict(zip(keys, work.count_N[rows].tolist(), strict=True)) == expected


@pytest.mark.usefixtures("example")
def test_experts_get_what_they_get_in_any_other_mode(tmp_path: Path) -> None:
    ours, other = (simulate(tmp_path, mode).slots for mode in ("to_nodes", "per_gpu"))
    for column in fields(ours):
        np.testing.assert_array_equal(getattr(ours, column.name), getattr(other, column.name))


@pytest.mark.usefixtures("example")
def test_its_cost_is_its_own_entry_of_the_profile(tmp_path: Path) -> None:
    done = simulate(tmp_path, "to_nodes")
    links = done.deployment.pricing.links(done.deployment.scenario.profile)
    assert (links.nvlink, links.nic, links.fixed) == (0.5, 0.25, 1e-5)
    assert simulate_deployment(done.deployment)[1].metrics.phase_time_s["dispatch"] > 2 * 1e-5


@pytest.mark.usefixtures("example")
def test_what_its_record_does_not_say_is_refused(tmp_path: Path) -> None:
    dispatch = {"mode": "to_nodes", "padded": True}
    path = write_scenario(tmp_path, tiny_scenario(dispatch=dispatch))
    with pytest.raises(SpecError, match="belongs to per_expert and per_gpu, not to to_nodes"):
        load_scenario(str(path))


def test_without_its_record_there_is_no_such_mode(tmp_path: Path) -> None:
    path = write_scenario(tmp_path, tiny_scenario(dispatch={"mode": "to_nodes"}))
    with pytest.raises(
        SpecError, match=r"must be one of 'per_expert', .* or 'expert_to_expert' \(got 'to_nodes'\)"
    ):
        load_scenario(str(path))


def test_every_stand_in_is_a_mode() -> None:
    named = {name for mode in MODES.values() for name in (mode.in_one_node, mode.links) if name is not None}
    assert named <= MODES.keys()
    # Rules that follow anchors count what returns to them.
    for mode in MODES.values():
        assert not (mode.relayed and mode.returns == "anchor")
