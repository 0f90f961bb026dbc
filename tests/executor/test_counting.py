"""What a counting run notices, and one counted by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from torch import Tensor

from executor.dispatch.hop import Hop
from executor.dispatch.transport import Transport
from executor.measuring.counting import count_plan, join_work
from executor.plan.errors import PlanError, RankError
from executor.plan.plan import Plan
from moesim.dispatch.modes import MODES, Mode
from moesim.dispatch.work import Routed, Work, every_gpu
from tests.executor.lockstep import run_ranks
from tests.executor.plans import replica_table, small_plan
from tests.executor.simulated import equals_simulated
from traces.timeline import HOPS, PHASES, WorkTable

pytestmark = pytest.mark.executor


def count(plan: Plan) -> WorkTable:
    return join_work(run_ranks(plan.ranks, plan.ranks_per_node, lambda groups: count_plan(plan, groups)))


def by_hand(mode: str) -> Plan:
    """Two nodes of two GPUs, a slot each; of two tokens at home on GPU 0 one visits 1 and 3, one 2 and 3."""
    slot_expert_LS = np.array([[0, 1, 2, 3]], np.int16)
    count_LE, slots_LER = replica_table(slot_expert_LS, 4)
    plan = small_plan(4, 2, mode, seed=0)
    return replace(
        plan,
        model=replace(plan.model, layers=(7,), experts=4, top_k=2),
        offsets_NG=np.array([[0, 2, 2, 2, 2]]),
        ids_TLK=np.array([[[1, 3]], [[2, 3]]], np.int16),
        weights_TLK=None,
        slot_expert_LS=slot_expert_LS,
        slot_gpu_S=np.arange(4, dtype=np.int32),
        count_LE=count_LE,
        slots_LER=slots_LER,
    )


def rows(work: WorkTable) -> list[tuple[str, str, int, int, int, int]]:
    assert set(work.layer_N.tolist()) == {7}
    columns = (work.phase_N, work.hop_N, work.source_N, work.destination_N, work.count_N, work.bytes_N)
    table = zip(*(column.tolist() for column in columns), strict=True)
    return [(PHASES[phase], HOPS[hop], *numbers) for phase, hop, *numbers in table]


SERVED = [("experts", "first", -1, slot, count, 0) for slot, count in ((1, 1), (2, 1), (3, 2))]


def test_per_node_by_hand() -> None:
    """A copy has 8 values of 4 bytes; both tokens enter node 1 through GPU 2, which relays them to GPU 3."""
    assert rows(count(by_hand("per_node"))) == [
        ("dispatch", "first", 0, 1, 1, 32),
        ("dispatch", "first", 0, 2, 2, 64),
        ("dispatch", "relay", 2, 3, 2, 64),
        *SERVED,
        ("combine", "first", 1, 0, 1, 32),
        ("combine", "first", 2, 0, 2, 64),
        ("combine", "relay", 3, 2, 2, 64),
    ]


def test_expert_to_expert_by_hand() -> None:
    """Without weights a token's first expert is its anchor, but the only layer is the last: all go home."""
    assert rows(count(by_hand("expert_to_expert"))) == [
        ("dispatch", "first", 0, 1, 1, 32),
        ("dispatch", "first", 0, 2, 1, 32),
        ("dispatch", "first", 0, 3, 2, 64),
        *SERVED,
        ("combine", "first", 1, 0, 1, 32),
        ("combine", "first", 2, 0, 1, 32),
        ("combine", "first", 3, 0, 2, 64),
    ]


def test_a_rank_without_tokens_and_slots_counts_nothing() -> None:
    plan = by_hand("per_gpu")
    plan = replace(plan, ids_TLK=np.full_like(plan.ids_TLK, -1))
    assert len(count(plan)) == 0


def test_rows_that_come_back_swapped_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    back = Transport.back
    monkeypatch.setattr(Transport, "back", lambda self, hop, rows_DH: back(self, hop, rows_DH).flip(0))
    with pytest.raises(RankError, match="combine: what came back is not what the tokens sent"):
        count(by_hand("per_gpu"))


def test_rows_that_arrive_swapped_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    there = Transport.there

    def swapped(self: Transport, hop: Hop, rows_CH: Tensor) -> Tensor:
        order: Sequence[int] = [1, 0, *range(2, len(rows_CH))] if len(rows_CH) > 1 else range(len(rows_CH))
        return there(self, hop, rows_CH[list(order)])

    monkeypatch.setattr(Transport, "there", swapped)
    with pytest.raises(RankError, match="dispatch: a slot was given a token that has not chosen it"):
        count(by_hand("per_gpu"))


def test_a_rule_without_a_way_to_pick_copies_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def rule(routed: Routed, work: Work) -> None:
        raise AssertionError("never counted")

    monkeypatch.setitem(MODES, "to_nodes", Mode(rule))
    with pytest.raises(PlanError, match=r"dispatch.*only be simulated.*to_nodes"):
        count(by_hand("to_nodes"))


def test_a_record_alone_makes_a_mode_of_rules_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every token straight to every rank."""
    monkeypatch.setitem(MODES, "broadcast", Mode(every_gpu))
    plan = by_hand("broadcast")
    found = count(plan)
    assert equals_simulated(plan, found)
    assert rows(found) == [
        *(("dispatch", "first", 0, rank, 2, 64) for rank in (1, 2, 3)),
        *SERVED,
        *(("combine", "first", rank, 0, 2, 64) for rank in (1, 2, 3)),
    ]
