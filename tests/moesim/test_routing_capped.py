"""Every order, unit and scope of a capacity, for all policies that have one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.errors import PolicyError
from moesim.routing.capped import Capped
from moesim.routing.drop import Drop
from moesim.routing.expanded import ExpandedDrop
from moesim.routing.noise import noise
from moesim.routing.policy import NO_EXPERT, Batch, Held, Outcome, Policy
from moesim.routing.reroute import Reroute
from tests.examples import examples
from tests.moesim.routing_batches import bounds_of, full_batches
from tests.tolerance import rounding

ORDERS = ("score", "position", "random", "first_choices")
gammas = st.sampled_from([0.2, 0.5, 1.0, 1.5])
caps = st.fixed_dictionaries(
    {
        "capacity_factor": gammas,
        "unit": st.sampled_from(["expert", "device"]),
        "scope": st.sampled_from(["source", "global"]),
        "order": st.sampled_from(ORDERS),
        "seed": st.integers(0, 2),
    }
)


def units_of(batch: Batch, unit: str) -> tuple[list[int], int]:
    """(unit of each expert, how many units)."""
    assert batch.held is not None
    gpus_EG = batch.held.gpus_EG
    if unit == "expert":
        return list(range(batch.experts)), batch.experts
    return [int(gpu) for gpu in gpus_EG.argmax(axis=1)], gpus_EG.shape[1]


def naive_capacity(batch: Batch, cap: dict[str, Any], tokens: int) -> int:
    _, units = units_of(batch, cap["unit"])
    factor = Decimal(str(cap["capacity_factor"]))
    capacity: int = math.ceil(factor * tokens * batch.ids_TK.shape[1] / units)
    return capacity


def naive_urgency(batch: Batch, cap: dict[str, Any], token: int, place: int, weight: float) -> float:
    """The larger the earlier; equal ones by token, then by place."""
    if cap["order"] == "score":
        return weight
    if cap["order"] == "random":
        return float(noise(cap["seed"], batch.draw, batch.ids_TK.shape)[token, place])
    return -place if cap["order"] == "first_choices" else 0.0


Asked = tuple[int, int, int, float]
"""Token, place, expert, urgency."""


def admit(batch: Batch, cap: dict[str, Any], asked: Sequence[Asked], room: dict[int, int]) -> list[Asked]:
    """Those that are taken in, one by one in the order of urgency; what they need is taken from the room."""
    unit_E, _ = units_of(batch, cap["unit"])
    taken = []
    for each in sorted(asked, key=lambda each: (-each[3], each[0], each[1])):
        if room[unit_E[each[2]]] > 0:
            room[unit_E[each[2]]] -= 1
            taken.append(each)
    return taken


def naive_drop(batch: Batch, cap: dict[str, Any]) -> list[list[int]]:
    assert batch.weights_TK is not None
    found = np.full(batch.ids_TK.shape, NO_EXPERT)
    for first, last in bounds_of(batch, cap["scope"]):
        room = dict.fromkeys(range(99), naive_capacity(batch, cap, last - first))
        asked = [
            (token, place, int(expert), naive_urgency(batch, cap, token, place, weight))
            for token in range(first, last)
            for place, (expert, weight) in enumerate(
                zip(batch.ids_TK[token], batch.weights_TK[token].tolist(), strict=True)
            )
            if expert >= 0
        ]
        for token, place, expert, _ in admit(batch, cap, asked, room):
            found[token, place] = expert
    return [[int(expert) for expert in ids] for ids in found]


def naive_reroute(batch: Batch, cap: dict[str, Any], rounds: int) -> list[list[int]]:
    """Token by token, round by round, with plain lists."""
    assert batch.weights_TK is not None
    assert batch.candidates is not None
    unit_E, _ = units_of(batch, cap["unit"])
    found = naive_drop(batch, cap)
    for first, last in bounds_of(batch, cap["scope"]):
        room = dict.fromkeys(range(99), naive_capacity(batch, cap, last - first))
        waiting = []
        for token in range(first, last):
            for place, expert in enumerate(found[token]):
                if expert >= 0:
                    room[unit_E[expert]] -= 1
                elif batch.ids_TK[token, place] >= 0:
                    waiting.append((token, place))
        left = {
            token: [
                (expert, score)
                for expert, score in zip(
                    batch.candidates.ids_TC[token].tolist(),
                    batch.candidates.scores_TC[token],
                    strict=True,
                )
                if expert not in batch.ids_TK[token]
            ]
            for token in range(first, last)
        }
        for _ in range(rounds or 99):
            asked = []
            for token, place in waiting:
                if left[token]:
                    expert, score = left[token].pop(0)
                    # Weights of these batches are twice the scores.
                    asked.append((token, place, expert, naive_urgency(batch, cap, token, place, 2 * score)))
            taken = admit(batch, cap, asked, room)
            for token, place, expert, _ in taken:
                found[token][place] = expert
            waiting = [(token, place) for token, place, _, _ in asked if found[token][place] < 0]
    return found


def policies(cap: dict[str, Any]) -> list[Capped]:
    made: list[Capped] = [
        Drop(**cap),
        Reroute(**cap),
        ExpandedDrop(**cap),
        ExpandedDrop(**cap, cap_at_k=True),
    ]
    if cap["unit"] == "expert":
        made += [Reroute(**cap, to="gpu"), Reroute(**cap, to="node")]
    return made


def applied(policy: Any, batch: Batch) -> Outcome:
    found: Outcome = policy.apply(batch)
    return found


@settings(max_examples=examples(60))
@given(full_batches(), caps)
def test_drop_is_the_naive_queue(batch: Batch, cap: dict[str, Any]) -> None:
    assert Drop(**cap).apply(batch).ids_TK.tolist() == naive_drop(batch, cap)


@settings(max_examples=examples(100))
@given(full_batches(), caps, st.integers(0, 2))
def test_reroute_is_the_naive_rounds(batch: Batch, cap: dict[str, Any], rounds: int) -> None:
    found = Reroute(**cap, rounds=rounds).apply(batch)
    assert found.ids_TK.tolist() == naive_reroute(batch, cap, rounds)
    assert batch.candidates is not None
    assert found.weights_TK is not None
    for token, (ids, weights) in enumerate(
        zip(found.ids_TK.tolist(), found.weights_TK.tolist(), strict=True)
    ):
        wished = batch.ids_TK[token].tolist()
        for expert, weight in zip(ids, weights, strict=True):
            known = batch.candidates.ids_TC[token].tolist()
            if expert >= 0 and expert not in wished and any(each >= 0 for each in wished):
                score = float(batch.candidates.scores_TC[token, known.index(expert)])
                chosen = sum(
                    float(batch.candidates.scores_TC[token, known.index(e)]) for e in wished if e >= 0
                )
                assert weight == pytest.approx((2 if chosen else 1) * score, rel=rounding(16, "float32"))


@settings(max_examples=examples(60))
@given(full_batches(), caps)
def test_what_holds_for_every_capacity(batch: Batch, cap: dict[str, Any]) -> None:
    unit_E, units = units_of(batch, cap["unit"])
    for policy in policies(cap):
        found = applied(policy, batch)
        room = 0
        for first, last in bounds_of(batch, cap["scope"]):
            capacity = naive_capacity(batch, cap, last - first)
            served = Counter(unit_E[expert] for expert in found.ids_TK[first:last].ravel() if expert >= 0)
            assert max(served.values(), default=0) <= capacity
            room += capacity * units
        assert found.room == room
        for ids in found.ids_TK.tolist():
            visited = [expert for expert in ids if expert >= 0]
            assert len(set(visited)) == len(visited)
        assert found.wished == np.count_nonzero(batch.ids_TK >= 0)
        assert found.wished == found.kept + found.rerouted + found.dropped
        assert np.count_nonzero(found.ids_TK >= 0) == found.kept + found.rerouted + found.added
        assert found.weights_TK is not None
        assert np.isfinite(found.weights_TK).all()


@settings(max_examples=examples(30))
@given(full_batches(), caps)
def test_a_large_factor_changes_nothing(batch: Batch, cap: dict[str, Any]) -> None:
    for policy in policies(cap | {"capacity_factor": 1e6}):
        found = applied(policy, batch)
        assert found.kept == found.wished
        if isinstance(policy, ExpandedDrop):
            # Places without an expert are free for the experts at hand.
            assert (
                policy.cap_at_k is False
                or (found.ids_TK[batch.ids_TK >= 0] == batch.ids_TK[batch.ids_TK >= 0]).all()
            )
            continue
        assert np.array_equal(found.ids_TK, batch.ids_TK)
        assert found.weights_TK is not None
        assert batch.weights_TK is not None
        assert np.array_equal(found.weights_TK, batch.weights_TK)


@settings(max_examples=examples(60))
@given(
    full_batches(replicas=True),
    gammas,
    st.sampled_from(["source", "global"]),
    st.sampled_from(["candidates", "gpu", "node"]),
)
def test_reroute_drops_only_where_nothing_has_room(batch: Batch, gamma: float, scope: str, to: str) -> None:
    assert batch.candidates is not None
    assert batch.held is not None
    found = Reroute(gamma, scope=scope, to=to).apply(batch)
    near_EX = batch.held.gpus_EG
    if to == "node":
        near_EX = np.stack(
            [near_EX[:, batch.held.node_G == n].any(axis=1) for n in set(batch.held.node_G)], axis=1
        )
    for first, last in bounds_of(batch, scope):
        cap = {"capacity_factor": gamma, "unit": "expert"}
        load_E = np.bincount(found.ids_TK[first:last][found.ids_TK[first:last] >= 0], minlength=batch.experts)
        full_E = load_E >= naive_capacity(batch, cap, last - first)
        for token in range(first, last):
            for wished, served in zip(batch.ids_TK[token], found.ids_TK[token], strict=True):
                others = set(batch.candidates.ids_TC[token].tolist())
                if to != "candidates" and wished >= 0:
                    others = set(np.flatnonzero((near_EX & near_EX[wished]).any(axis=1)).tolist())
                if served >= 0 and wished >= 0 and served != wished:
                    assert served in others
                if wished >= 0 and served < 0:
                    others -= {*batch.ids_TK[token].tolist(), *found.ids_TK[token].tolist()}
                    assert full_E[list(others)].all()


def test_four_orders_worked_by_hand() -> None:
    # Two tokens, K = 2, E = 2, γ = 0.5, one source: C = ⌈0.5·2·2/2⌉ = 1 for each expert.
    ids_TK = np.array([[0, 1], [1, 0]], np.int16)
    weights_TK = np.array([[0.3, 0.2], [0.6, 0.4]], np.float32)
    batch = Batch(ids_TK, weights_TK, np.array([0, 2]), 2)
    served = {order: Drop(0.5, order=order).apply(batch).ids_TK.tolist() for order in ORDERS}
    assert served["score"] == [[-1, -1], [1, 0]]
    assert served["position"] == [[0, 1], [-1, -1]]
    assert served["first_choices"] == [[0, -1], [1, -1]]
    assert sum(expert >= 0 for ids in served["random"] for expert in ids) == 2


def test_random_depends_on_seed_and_draw_alone() -> None:
    assert np.array_equal(noise(3, 5, (4, 6)), noise(3, 5, (4, 6)))
    drawn = noise(3, 5, (100, 100)).ravel()
    for other in (noise(4, 5, (100, 100)), noise(3, 6, (100, 100))):
        assert np.mean(drawn == other.ravel()) < 0.01
    assert drawn.min() >= 0
    # Each eighth of the range holds an eighth of the numbers, within five standard deviations.
    assert np.abs(np.bincount(drawn >> 28, minlength=8) / drawn.size - 1 / 8).max() < 5 * math.sqrt(
        7 / 64 / drawn.size
    )


def test_renormalised_weights_keep_their_sum() -> None:
    batch = Batch(
        np.array([[0, 1], [0, 1]], np.int16),
        np.array([[0.5, 0.25], [0.25, 0.125]], np.float32),
        np.array([0, 2]),
        4,
    )
    found = Drop(1.0, order="first_choices", renormalise=True).apply(batch)
    assert found.ids_TK.tolist() == [[0, 1], [-1, -1]]
    found = Drop(0.5, order="random", seed=1, renormalise=True).apply(batch)
    assert found.weights_TK is not None
    for ids, weights, whole in zip(found.ids_TK, found.weights_TK, (0.75, 0.375), strict=True):
        if (ids >= 0).any():
            assert weights[ids >= 0].sum() == pytest.approx(whole)


@pytest.mark.parametrize(
    ("policy", "batch_has", "message"),
    [
        (Drop(1.0), (), "policy drop needs gate weights"),
        (Drop(1.0, order="position", renormalise=True), (), "policy drop needs gate weights"),
        (Drop(1.0, order="random", unit="device"), (), "policy drop needs the placement"),
        (Reroute(1.0), ("weights",), "policy reroute needs the scores of more experts"),
        (Reroute(1.0, order="position", to="node"), (), "policy reroute needs the placement"),
        (ExpandedDrop(1.0), ("weights",), "policy expanded_drop needs"),
    ],
)
def test_what_is_missing_is_named(policy: Policy, batch_has: tuple[str, ...], message: str) -> None:
    weights_TK = np.ones((1, 1), np.float32) if "weights" in batch_has else None
    batch = Batch(np.zeros((1, 1), np.int16), weights_TK, np.array([0, 1]), 2)
    assert policy.needs - set(batch_has)
    with pytest.raises(PolicyError, match=message):
        policy.apply(batch)


def test_a_limit_for_devices_refuses_replicas() -> None:
    held = Held(np.array([[True, True], [True, False]]), np.zeros(2, np.int32))
    batch = Batch(np.zeros((1, 1), np.int16), None, np.array([0, 1, 1]), 2, held=held)
    with pytest.raises(PolicyError, match=r"routing.unit: .*every expert on one device.*got 'expert 0 on 2'"):
        Drop(1.0, unit="device", order="position").apply(batch)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"order": "best"}, "routing.order: must be one of: score, position, random, first_choices"),
        ({"seed": -1}, "routing.seed: must be from 0 to"),
        ({"to": "moon"}, "routing.to: must be one of: candidates, gpu, node"),
        ({"rounds": -1}, "routing.rounds: must be at least 0"),
        ({"to": "gpu", "rounds": 2}, "routing.rounds: counts candidates"),
        ({"to": "gpu", "unit": "device"}, "routing.unit: must be expert where overflow stays"),
    ],
)
def test_parameters_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        Reroute(1.0, **arguments)
