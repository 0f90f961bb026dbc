"""The plan's policy and replica choice, against their use one layer at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from executor.dispatch.routing import route
from executor.plan.errors import PlanError
from moesim.dispatch.anchor import anchor_T
from moesim.errors import PolicyError
from moesim.routing.drop import Drop
from moesim.routing.policy import Batch
from moesim.routing.replicas import round_robin
from tests.executor.plans import small_plan

pytestmark = pytest.mark.executor

DROP = {"policy": "drop", "capacity_factor": 0.5}


def test_policy_then_replicas_layer_by_layer() -> None:
    plan = small_plan(3, 1, "per_gpu", seed=4, routing=DROP, steps=2)
    for number in range(2):
        (step,) = plan.micro_batches(number)
        assert step.weights_LTK is not None
        routed = route(plan, step)
        for row in range(2):
            batch = Batch(step.ids_LTK[row], step.weights_LTK[row], step.offsets_G, 6)
            outcome = Drop(0.5).apply(batch)
            copies = plan.copies.of(slice(row, row + 1))
            slot_1TK = round_robin(outcome.ids_TK[None], step.offsets_G, copies)
            np.testing.assert_array_equal(routed.slot_LTK[row], slot_1TK[0])
            np.testing.assert_array_equal(routed.weights_LTK[row], step.weights_LTK[row])
            assert routed.outcomes[row][-1].dropped == outcome.dropped > 0


def test_tokens_are_at_home_between_layers() -> None:
    plan = small_plan(3, 1, "per_node", seed=1, tokens=[2, 0, 3])
    routed = route(plan, plan.micro_batches(0)[0])
    assert routed.rank_XT.tolist() == [[0, 0, 2, 2, 2]] * 3
    assert routed.tokens(1, 2).tolist() == [2, 3, 4]
    layer = routed.layer(1, 2)
    assert layer.token_T.tolist() == [2, 3, 4]
    assert layer.goes_T.tolist() == [2, 2, 2]
    np.testing.assert_array_equal(layer.slot_TK.numpy(), routed.slot_LTK[1, 2:])
    assert (layer.slot_TK.dtype, layer.weight_TK.dtype) == (torch.int32, torch.float32)


def test_expert_to_expert_follows_the_anchors_and_ends_at_home() -> None:
    plan = small_plan(4, 2, "expert_to_expert", seed=2, routing=DROP)
    routed = route(plan, plan.micro_batches(0)[0])
    home_T, after_T, end_T = routed.rank_XT
    expected_T = anchor_T(routed.slot_LTK[0], routed.weights_LTK[0], home_T, plan.slot_gpu_S)
    np.testing.assert_array_equal(after_T, expected_T)
    np.testing.assert_array_equal(end_T, home_T)
    assert (after_T != home_T).any()


def test_without_weights_all_experts_count_alike() -> None:
    plan = small_plan(2, 1, "per_gpu", seed=0, weighted=False, top_k=4)
    assert (route(plan, plan.micro_batches(0)[0]).weights_LTK == 0.25).all()


def test_unit_weights_keep_everything_else() -> None:
    plan = small_plan(2, 1, "expert_to_expert", seed=0)
    routed = route(plan, plan.micro_batches(0)[0])
    unit = routed.with_unit_weights()
    assert (unit.weights_LTK == 1).all()
    assert unit.rank_XT is routed.rank_XT


def test_what_a_plan_may_not_ask_for() -> None:
    plan = small_plan(2, 1, "per_gpu", seed=0)
    with pytest.raises(PlanError, match=r"replicas: must be one of: round_robin.*\(got 'any'\)"):
        route(replace(plan, replicas="any"), plan.micro_batches(0)[0])
    with pytest.raises(PolicyError, match=r"routing\.policy: no such policy"):
        route(replace(plan, routing={"policy": "best"}), plan.micro_batches(0)[0])
    weightless = small_plan(2, 1, "per_gpu", seed=0, weighted=False, routing=DROP)
    with pytest.raises(PolicyError, match="needs gate weights"):
        route(weightless, weightless.micro_batches(0)[0])


def test_the_plan_is_left_as_it_was() -> None:
    plan = small_plan(2, 1, "per_gpu", seed=0, routing=DROP)
    step = plan.micro_batches(0)[0]
    before = step.ids_LTK.copy()
    route(plan, step)
    np.testing.assert_array_equal(step.ids_LTK, before)
