"""Real gates, alone and in a layer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from executor.dispatch.modes import dispatcher
from executor.dispatch.routing import LayerRouting
from executor.dispatch.transport import Groups, Transport
from executor.experts.backends import BACKENDS
from executor.experts.weights import ExpertWeights
from executor.layer.gate import Choose, Gate, Replay
from executor.layer.moe_layer import MoELayer
from executor.plan.errors import PlanError
from executor.plan.plan import MoeShape
from moesim.dispatch.modes import MODES
from moesim.routing.copies import Copies
from moesim.routing.drop import Drop
from moesim.routing.policy import Batch
from tests.executor.exact_layers import exact_layer
from tests.executor.lockstep import run_ranks
from tests.executor.plans import replica_table
from tests.tolerance import rounding

pytestmark = pytest.mark.executor

SHAPE = MoeShape("m", 16, 8, True, 6, 3, 0, (0,))


def test_sigmoid_by_hand() -> None:
    """Logits 0 and ln 3: sigmoids 1/2 and 3/4, which are 2/5 and 3/5 of their sum."""
    gate = Gate(torch.tensor([[0.0], [math.log(3)]]), 2, "sigmoid")
    ids_TK, weight_TK = gate(torch.ones(1, 1))
    assert ids_TK.tolist() == [[1, 0]]
    assert weight_TK[0].tolist() == pytest.approx([3 / 5, 2 / 5], rel=rounding(16, "float32"))


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_the_best_k_in_order_with_weights_that_sum_to_one(score: str) -> None:
    gate = Gate(Gate.random(SHAPE, 0, seed=3).weight_EH, 3, score)  # type: ignore[arg-type]
    x_TH = torch.randn(20, 16, generator=torch.Generator().manual_seed(0))
    ids_TK, weight_TK = gate(x_TH)
    logits_TE = x_TH.double() @ gate.weight_EH.double().T
    # A weight is off by as much, relatively, as logits are absolutely.
    size = float((x_TH.abs() @ gate.weight_EH.abs().T).max())
    assert ids_TK.tolist() == [sorted(range(6), key=lambda e: -row[e])[:3] for row in logits_TE.tolist()]
    of_logit = math.exp if score == "softmax" else (lambda logit: 1 / (1 + math.exp(-logit)))
    for ids, weights, logits in zip(ids_TK.tolist(), weight_TK.tolist(), logits_TE.tolist(), strict=True):
        scores = [of_logit(logits[expert]) for expert in ids]
        assert weights == pytest.approx(
            [one / sum(scores) for one in scores], rel=rounding(16 * size + 16, "float32")
        )


def test_gates_differ_by_layer_and_seed() -> None:
    gates = [Gate.random(SHAPE, layer, seed=seed) for layer, seed in ((0, 0), (1, 0), (0, 1))]
    assert len({tuple(gate.weight_EH.flatten().tolist()) for gate in gates}) == 3


def test_a_replay_without_a_record_is_refused() -> None:
    with pytest.raises(PlanError, match="needs the recorded routing"):
        Replay(Gate.random(SHAPE, 0, seed=0))(torch.ones(1, 16), None)


def test_a_replay_follows_the_record() -> None:
    none_T = torch.zeros(0, dtype=torch.int32)
    record = LayerRouting(torch.zeros(0, 3, dtype=torch.int32), torch.zeros(0, 3), none_T, none_T)
    assert Replay(Gate.random(SHAPE, 0, seed=0))(torch.ones(0, 16), record) is record


@pytest.mark.parametrize("mode", MODES)
def test_a_layer_that_chooses_for_itself(mode: str) -> None:
    """Four ranks in two nodes, replicas, a drop that each rank decides alone; all tokens come home."""
    rng = np.random.default_rng(0)
    slot_expert_LS = rng.permutation(np.arange(9) % 6)[None].astype(np.int16)
    slot_gpu_S = rng.integers(0, 4, 9).astype(np.int32)
    count_LE, slots_LER = replica_table(slot_expert_LS, 6)
    gate, drop = Gate.random(SHAPE, 0, seed=5), Drop(capacity_factor=0.8)
    inputs = [
        torch.randn(tokens, 16, generator=torch.Generator().manual_seed(tokens)) for tokens in (3, 0, 5, 2)
    ]

    def work(groups: Groups) -> torch.Tensor:
        transport = Transport()
        mine = slot_expert_LS[0, slot_gpu_S == groups.rank].tolist()
        layer = MoELayer(
            Choose(gate, groups.rank, 4, Copies(count_LE, slots_LER, slot_gpu_S, 4, 2), drop),
            dispatcher(mode, groups, slot_gpu_S, transport),
            transport,
            BACKENDS["loop"](ExpertWeights.random(SHAPE, 0, mine, seed=5)),
        )
        return layer(inputs[groups.rank])

    every_expert = ExpertWeights.random(SHAPE, 0, range(6), seed=5)
    for x_TH, y_TH in zip(inputs, run_ranks(4, 2, work), strict=True):
        ids_TK, weight_TK = gate(x_TH)
        batch = Batch(ids_TK.numpy().astype(np.int16), weight_TK.numpy(), np.array([0, len(x_TH)]), experts=6)
        kept_TK = torch.from_numpy(drop.apply(batch).ids_TK)
        assert (kept_TK < 0).any() == (len(x_TH) > 0)
        assert exact_layer(x_TH, kept_TK, weight_TK, every_expert).error(y_TH) <= 1


def test_a_choice_of_replicas_is_the_simulators() -> None:
    """Rank 1 of 3 starts at replica 1 of expert 0, whose slots are 2, 5 and 6."""
    slots_LER = np.array([[[2, 5, 6], [0, 0, 0]]], np.int32)
    copies = Copies(np.array([[3, 1]], np.int32), slots_LER, np.zeros(7, np.int32), 3, 3)
    choose = Choose(Gate(torch.tensor([[1.0], [0.0]]), 1), 1, 3, copies)
    routing = choose(torch.ones(4, 1), None)
    assert routing.slot_TK[:, 0].tolist() == [5, 6, 2, 5]
    assert routing.goes_T.tolist() == [1] * 4
