"""Families of policies and choices of replicas: what is received equals what the simulator counts."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from executor.layer.step import routed_steps
from executor.measuring.counting import count_plan, join_work
from executor.plan.plan_file import read_plan
from moesim.analysis.counts import same_counts
from moesim.deployment.deployment import assemble
from moesim.live.plan import write_plan
from moesim.routing.policies import POLICIES
from moesim.routing.replicas import REPLICA_CHOICES
from moesim.simulation.run import run
from moesim.spec.scenario import load_scenario
from placement.problem.placement import Placement
from tests.executor.lockstep import run_ranks
from tests.moesim.tiny import tiny_scenario, write_scenario
from traces.meta import TraceMeta
from traces.routing import RoutingTrace

pytestmark = pytest.mark.executor

CAP = {"capacity_factor": 0.75}
ROUTINGS: dict[str, Any] = {
    "drop": {"policy": "drop", **CAP, "order": "random", "scope": "global"},
    "reroute": {"policy": "reroute", **CAP},
    "on the node": {"policy": "reroute", **CAP, "to": "node"},
    "wider": {"policy": "expanded_drop", **CAP},
    "on the GPU": {"policy": "reroute", **CAP, "to": "gpu"},
    "fewer": {"policy": "top_p", "p": 0.6},
    "threshold": {"policy": "threshold", "share": 0.4},
    "gap": {"policy": "gap", "gap": 0.3},
    "skipped": {"policy": "skip", "ratio": 0.5, "renormalise": True},
    "important": {"policy": "important", "share": 0.5, "k": 1},
    "more": {"policy": "uncertain", "below": 0.6, "k": 3},
    "masked": {"policy": "mask_least", "off": 2},
    "masked for good": {"policy": "mask_least", "off": 2, "of": "trace", "by": "score"},
    "local": {"policy": "limited", "unit": "device", "most": 1, "best": 2},
    "chance": {"policy": "uniform_random"},
    "chosen by experts": {"policy": "expert_choice"},
    "assigned": {"policy": "base"},
    "stages": [{"policy": "top_k", "k": 1}, {"policy": "reroute", **CAP}],
}


@cache
def trace() -> RoutingTrace:
    """8 requests of 12 tokens, two layers, 5 of 8 experts with logits, two of them chosen."""
    chance = np.random.default_rng(7)
    logits_TLE = chance.normal(size=(96, 2, 8)) + np.linspace(2, 0, 8)
    ids_TLC = np.argsort(-logits_TLE, axis=2)[..., :5].astype(np.uint8)
    scores_TLC = np.take_along_axis(logits_TLE, ids_TLC.astype(int), axis=2).astype(np.float32)
    shares_TLK = np.exp(scores_TLC[..., :2])
    return RoutingTrace(
        TraceMeta("tiny", 8, 2, (1, 2), "drawn", "", candidates=5),
        np.ascontiguousarray(ids_TLC[..., :2]),
        (shares_TLK / shares_TLK.sum(axis=2, keepdims=True)).astype(np.float32),
        np.repeat(np.arange(8, dtype=np.int32), 12),
        np.tile(np.arange(12, dtype=np.int32), 8),
        candidate_ids_TLC=ids_TLC,
        candidate_scores_TLC=scores_TLC,
    )


def placement() -> Placement:
    slot_expert_LS = np.array([[*range(8), 0, 1, 0, 2], [*range(8), 3, 0, 0, 1]], np.int16)
    return Placement(slot_expert_LS, (np.arange(12) // 3).astype(np.int32), experts=8, gpus=4, layers=(1, 2))


def counted_alike(folder: Path, **changes: Any) -> None:
    dispatch = {"mode": "per_node", "dtype": "bf16", "combine_dtype": "bf16"}
    written = write_scenario(folder, tiny_scenario(dispatch=dispatch, **changes))
    replayed = trace().select_requests(4, 8)
    deployment = assemble(load_scenario(str(written)), trace(), placement(), replayed)
    done = run(deployment)
    write_plan(deployment, folder / "plan")
    plan = read_plan(folder / "plan")
    received = run_ranks(plan.ranks, plan.ranks_per_node, lambda groups: count_plan(plan, groups))
    assert same_counts(join_work(received), done.work())
    outcomes = [part.outcomes for parts in routed_steps(plan) for part in parts]
    for stage, tally in enumerate(done.tallies):
        for name in ("wished", "kept", "rerouted", "dropped", "added"):
            assert sum(getattr(layer[stage], name) for step in outcomes for layer in step) == getattr(
                tally, name
            )


def test_every_policy_is_counted() -> None:
    counted = {stage["policy"] for routing in ROUTINGS.values() for stage in np.atleast_1d(routing)}
    # A mask by name has a test of its own, below; without a policy nothing is to be decided.
    assert counted | {"mask", "none"} == set(POLICIES)


@pytest.mark.parametrize("name", list(ROUTINGS))
def test_a_policy_counts_alike(name: str, tmp_path: Path) -> None:
    counted_alike(tmp_path, routing=ROUTINGS[name])


@pytest.mark.parametrize("name", list(REPLICA_CHOICES))
def test_a_choice_of_replicas_counts_alike(name: str, tmp_path: Path) -> None:
    counted_alike(tmp_path, replicas=name)


def test_categories_travel_with_a_plan(tmp_path: Path) -> None:
    category_T = np.repeat(np.array([0, 1, -1, 0], np.int32), 24)
    of_kinds = replace(trace(), category_T=category_T, categories=("code", "chat"))
    mask = {"policy": "mask", "experts": [0], "categories": ["code"], "instead": "nothing"}
    written = write_scenario(tmp_path, tiny_scenario(routing=mask))
    deployment = assemble(load_scenario(str(written)), of_kinds, placement(), of_kinds)
    done = run(deployment)
    write_plan(deployment, tmp_path / "plan")
    plan = read_plan(tmp_path / "plan")
    outcomes = [layer[-1] for parts in routed_steps(plan) for part in parts for layer in part.outcomes]
    assert sum(each.dropped for each in outcomes) == done.tallies[-1].dropped > 0
