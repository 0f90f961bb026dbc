"""A deployment: its trace, its placement, the requests that it replays, and what fits into memory."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.deployment.deployment import Deployment, deploy
from moesim.deployment.reading import load_trace
from moesim.errors import MemoryFitError, MoesimError, PolicyError, SpecError, TraceError
from moesim.routing.masks import Listed
from moesim.spec.override import Override
from moesim.spec.scenario import Scenario, load_scenario
from placement.files.native import write_placement
from placement.problem.placement import Placement
from tests.moesim.tiny import TINY, tiny_scenario, write_scenario
from tests.tolerance import rounding
from tests.traces.random_traces import random_trace
from traces.statistics import expert_loads
from traces.trace_writer import write_trace

pytestmark = pytest.mark.usefixtures("here")


def scenario(*options: str, **changes: Any) -> Scenario:
    path = write_scenario(Path(), tiny_scenario(**changes), "changed.yaml")
    return load_scenario(str(path), [Override.parse(option) for option in options])


def deployed(*options: str, **changes: Any) -> Deployment:
    return deploy(scenario(*options, **changes))


def fault(*options: str, **changes: Any) -> MoesimError:
    with pytest.raises(MoesimError) as caught:
        deployed(*options, **changes)
    return caught.value


# The trace


def test_a_generated_trace_has_the_models_shape() -> None:
    trace = deployed().trace
    assert (trace.meta.layers, trace.meta.experts, trace.meta.top_k) == ((1, 2), 8, 2)
    assert (trace.tokens, len(trace.request_offsets) - 1) == (72, 6)
    assert "generated" in trace.meta.origin


def test_the_seed_decides_what_is_generated() -> None:
    one, again, other = (load_trace(scenario(f"seed={seed}")) for seed in (1, 1, 2))
    assert one.digest() == again.digest() != other.digest()


def test_a_file_that_changed_is_read_again() -> None:
    asked = scenario(trace={"file": "t.parquet"})
    before = load_trace(asked)
    assert load_trace(asked) is before
    write_trace(random_trace(1, layers=(1, 2), lengths=(12,) * 6), "t.parquet")
    os.utime("t.parquet", ns=(1, 1))
    assert load_trace(asked).digest() != before.digest()


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (
            {"layers": (1,)},
            "tiny, which has 2 MoE layers: name the model it was recorded from (tiny)",
        ),
        ({"experts": 16}, "tiny, which has 8 experts: name"),
        ({"top_k": 3}, "tiny, which has 2 experts per token: name"),
        ({"layers": (0, 1)}, "tiny, whose MoE layers are (1, 2) (got (0, 1))"),
    ],
)
def test_a_trace_of_another_shape_is_refused(shape: dict[str, Any], said: str) -> None:
    write_trace(random_trace(lengths=(12,) * 6, **({"layers": (1, 2)} | shape)), "t.parquet")
    error = fault(trace={"file": "t.parquet"})
    assert isinstance(error, TraceError)
    assert (Path(str(error.file)).name, error.field) == ("t.parquet", "trace")
    assert said in str(error)


def test_a_policy_by_score_needs_weights() -> None:
    write_trace(random_trace(layers=(1, 2), lengths=(12,) * 6, weights=None), "t.parquet")
    changes = {"trace": {"file": "t.parquet"}}
    assert deployed(**changes).trace.weights_TLK is None
    error = fault(**changes, routing={"policy": "drop", "capacity_factor": 1})
    assert isinstance(error, PolicyError)
    assert error.field == "routing.policy"


def test_a_limit_for_devices_is_refused_where_experts_have_replicas() -> None:
    routing = {"policy": "drop", "capacity_factor": 1, "unit": "device"}
    deployed(routing=routing)
    error = fault("placement={solver: greedy, slots: 12}", routing=routing)
    assert isinstance(error, PolicyError)
    assert (error.field, error.rule.split(":")[0]) == (
        "routing.unit",
        "a limit for devices needs every expert on one device",
    )


@pytest.mark.parametrize(
    ("experts", "every", "said"),
    [
        (range(8), 2, None),
        ([*range(8), *[-1] * 4], None, None),
        ([*range(8), *[-1] * 4], 2, "a rebalance may"),
    ],
)
def test_a_limit_for_devices_is_refused_where_a_rebalance_may_make_replicas(
    experts: Iterable[int], every: int | None, said: str | None
) -> None:
    """Into slots that are empty yet; without a rebalance they stay so."""
    slot_expert_LS = np.array([list(experts)] * 2)
    slots = slot_expert_LS.shape[1]
    placement = Placement(
        slot_expert_LS, np.arange(slots, dtype=np.int32) % np.int32(4), experts=8, gpus=4, layers=(1, 2)
    )
    write_placement(placement, "p.json")
    changes: dict[str, Any] = {
        "placement": {"file": "p.json"},
        "routing": {"policy": "drop", "capacity_factor": 1, "unit": "device"},
        "rebalance": {"every_steps": every},
    }
    if said is None:
        deployed(**changes)
        return
    error = fault(**changes)
    assert isinstance(error, PolicyError)
    assert error.field == "routing.unit"
    assert said in error.rule


def test_masks_of_the_trace_are_found_in_what_is_not_replayed() -> None:
    """By hand: the two experts with least in the first half of the requests, in each layer."""
    routing = {"policy": "mask_least", "off": 2, "of": "trace", "instead": "nothing"}
    done = deployed(routing=routing)
    seen_TLK, listed = done.trace.ids_TLK[:36], done.policies[0]
    assert isinstance(listed, Listed)
    for ids_TK, off in zip(seen_TLK.transpose(1, 0, 2), listed.off, strict=True):
        load = Counter(ids_TK.ravel().tolist())
        assert off == (tuple(sorted(sorted(range(8), key=lambda each: (load[each], each))[:2])),)
    write_placement(done.placement, "p.json")
    error = fault(routing=routing, placement={"file": "p.json"})
    assert isinstance(error, PolicyError)
    assert (error.field, error.got) == ("routing.of", "trace")
    assert "all requests are replayed" in error.rule


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_scores_are_what_the_router_makes_of_its_logits(score: str) -> None:
    """Gate weights say which of the two it is."""
    trace = random_trace(layers=(1, 2), lengths=(12,) * 6, candidates=5)
    assert trace.candidate_scores_TLC is not None
    logits_TLC = trace.candidate_scores_TLC
    made_TLC = np.exp(logits_TLC) if score == "softmax" else 1 / (1 + np.exp(-logits_TLC))
    weights_TLK = made_TLC[:, :, :2] / made_TLC[:, :, :2].sum(axis=2, keepdims=True)
    write_trace(replace(trace, weights_TLK=weights_TLK.astype(np.float16)), "t.parquet")
    done = deployed(trace={"file": "t.parquet"}, routing={"policy": "expert_choice"})
    assert done.logits == (score == "softmax")
    wanted_TLC = logits_TLC if score == "softmax" else made_TLC
    np.testing.assert_allclose(done.scores(logits_TLC), wanted_TLC, rtol=rounding(16, "float32"))


# The placement, and what is replayed


@pytest.mark.parametrize(("fraction", "fitted"), [(0.5, 3), (0.2, 1), (0.9, 5)])
def test_a_placement_is_fitted_on_the_first_requests(fraction: float, fitted: int) -> None:
    done = deployed(f"placement={{solver: greedy, fit_fraction: {fraction}}}")
    assert np.array_equal(done.replayed.ids_TLK, done.trace.ids_TLK[12 * fitted :])
    assert len(done.replayed.request_offsets) - 1 == 6 - fitted
    # Largest first: no GPU holds the two hottest experts of the requests that it was fitted on.
    load_LE = expert_loads(done.trace.select_requests(0, fitted))
    for load_E, slot_expert_S in zip(load_LE, done.placement.slot_expert_LS, strict=True):
        hottest = np.argsort(-load_E, kind="stable")[:2]
        gpus = [int(done.placement.slot_gpu_S[slot_expert_S == expert][0]) for expert in hottest]
        assert gpus[0] != gpus[1]


def test_all_solvers_replay_the_same_requests() -> None:
    replayed = [
        deployed(f"placement={name}").replayed.digest() for name in ("linear", "round_robin", "greedy")
    ]
    assert len(set(replayed)) == 1


@pytest.mark.parametrize("solver", ["eplb", "swap"])
def test_a_hierarchical_placement_keeps_each_group_on_a_node(solver: str) -> None:
    """Four groups of two experts, two nodes of two GPUs; without it some group is torn apart, but by eplb."""
    grouped = {
        "model": {**TINY["model"], "experts": {**TINY["model"]["experts"], "groups": 4, "top_groups": 2}}
    }

    def nodes(hierarchical: bool) -> set[int]:
        """In how many nodes the groups are."""
        choice = f"placement={{solver: {solver}, slots: 12, hierarchical: {str(hierarchical).lower()}}}"
        placement = deployed(choice, **grouped).placement
        node_S = placement.slot_gpu_S // 2
        return {
            len(set(node_S[slot_expert_S // 2 == group].tolist()))
            for slot_expert_S in placement.slot_expert_LS
            for group in range(4)
        }

    assert nodes(True) == {1}
    assert (2 in nodes(False)) == (solver != "eplb")  # which servers run hierarchical where groups divide


def test_a_hierarchical_placement_needs_groups() -> None:
    rule = "placement.hierarchical: tiny has no expert groups to keep together (got True)"
    assert rule in str(fault("placement={solver: swap, hierarchical: true}"))


@pytest.mark.parametrize(("requests", "fraction"), [(1, 0.5), (3, 0.3)])
def test_too_few_requests_to_fit_on_are_refused(requests: int, fraction: float) -> None:
    error = fault(
        f"trace.synth.requests={requests}", f"placement={{solver: linear, fit_fraction: {fraction}}}"
    )
    assert str(error) == (
        f"placement.fit_fraction: has too few requests to fit a placement on {fraction:.0%} and replay the "
        f"rest (got '{requests} requests')"
    )


def placement_file(**changes: Any) -> dict[str, Any]:
    content = {
        "format": "moesim.placement/1",
        "origin": "a test",
        "experts": 8,
        "gpus": 4,
        "layers": [1, 2],
        "slot_gpu": [3, 3, 2, 2, 1, 1, 0, 0],
        "slot_expert": [list(range(8))] * 2,
    }
    Path("p.json").write_text(json.dumps(content | changes))
    return {"placement": {"file": "p.json"}}


def test_a_placement_from_a_file_replays_everything() -> None:
    done = deployed(**placement_file())
    assert done.placement.slot_gpu_S.tolist() == [3, 3, 2, 2, 1, 1, 0, 0]
    assert done.replayed is done.trace


@pytest.mark.parametrize(
    "changes",
    [{"gpus": 5}, {"layers": [1, 3]}, {"experts": 4, "slot_expert": [[0, 1, 2, 3] * 2] * 2}],
)
def test_a_placement_file_that_does_not_fit_is_named(changes: dict[str, Any]) -> None:
    assert Path(str(fault(**placement_file(**changes)).file)).name == "p.json"


# Memory


def by_hand(slots_of_gpu: int, tp: int = 1) -> float:
    """Bytes on a GPU: bf16 everywhere; 3 layers, the first dense; hidden 64, 8 experts of width 32.

    A group of tp GPUs shares the heads of attention and of the cache; every GPU holds the rest whole.
    """
    attention = 3 * 64 * 16 * (2 * 4 + 2 * 2) / tp
    dense, router, vocabulary = 3 * 64 * 128, 2 * 64 * 8, 2 * 1000 * 64
    experts = 2 * slots_of_gpu * 3 * 64 * 32
    # 4 sequences of 16 tokens on each of tp GPUs; keys and values of 2 heads of 16, shared by the group.
    cache = 4 * tp * 16 * 3 * 2 * 2 * 16 / tp
    return 2 * (attention + dense + router + vocabulary + experts + cache)


@pytest.mark.parametrize(("slots", "tp"), [(8, 1), (12, 1), (8, 2)])
def test_memory_by_hand(slots: int, tp: int) -> None:
    done = deployed(f"placement={{solver: greedy, slots: {slots}}}", f"parallelism.tp={tp}")
    assert done.memory.total_G.tolist() == [by_hand(slots // 4, tp)] * 4


def test_empty_slots_take_no_memory() -> None:
    slots = placement_file(
        slot_gpu=[0] * 5 + [1, 1, 2, 3, 3], slot_expert=[[0, 1, 2, -1, -1, 3, 4, 5, 6, 7]] * 2
    )
    held_G = [3, 2, 1, 2]
    assert deployed(**slots).memory.total_G.tolist() == [by_hand(held) for held in held_G]


def test_what_does_not_fit_is_refused_by_one_byte() -> None:
    needed = by_hand(2)
    room = f"cluster.gpu.memory={needed:.0f}"
    assert deployed(room, "profile.memory=1").memory.total_G.max() == needed
    error = fault(f"cluster.gpu.memory={needed - 1:.0f}", "profile.memory=1")
    assert isinstance(error, MemoryFitError)
    assert error.field == "cluster.gpu.memory"
    # Only a share of the memory is offered.
    assert "(50% of " in str(fault(room, "profile.memory=0.5"))


def test_tables_that_would_not_fit_this_machine_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("traces.base.memory.physical_memory", lambda: 10 << 20)
    assert deployed("workload.steps=10").scenario.workload.steps == 10
    error = fault("workload.steps=100000")
    assert isinstance(error, SpecError)
    assert "simulating 100000 steps on 4 GPUs, 1000 of them kept whole, needs" in str(error)
    assert "lower workload.steps" in str(error)


def test_a_foreign_recording_is_of_the_scenarios_model() -> None:
    trace = random_trace(layers=(1, 2), lengths=(12,) * 6)
    np.savez("foreign.npz", topk_ids=trace.ids_TLK, request_offsets=np.arange(0, 73, 12))
    done = deployed(trace={"file": "foreign.npz"})
    assert (done.trace.meta.model, done.trace.meta.layers, done.trace.meta.experts) == ("tiny", (1, 2), 8)
    assert np.array_equal(done.trace.ids_TLK, trace.ids_TLK)
