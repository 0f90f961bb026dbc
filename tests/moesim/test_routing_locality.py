"""Tokens limited to few groups, nodes or GPUs: a naive oracle, what it bounds, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import PolicyError
from moesim.routing.locality import Limited
from moesim.routing.policies import policy_from
from moesim.routing.policy import Batch, Candidates, Held
from tests.moesim.policy_batches import batches, chosen_of, next_best, scores_of, weight_in
from tests.tolerance import rounding


@st.composite
def limits(draw: st.DrawFn, batch: Batch) -> Limited:
    """Any limit that goes with the batch."""
    unit = draw(st.sampled_from(["group", "node", "device"]))
    divisors = [groups for groups in range(1, batch.experts + 1) if batch.experts % groups == 0]
    return Limited(
        draw(st.integers(1, 4)),
        unit,
        draw(st.integers(1, 3)),
        draw(st.sampled_from(divisors)) if unit == "group" else None,
        draw(st.sampled_from(["candidates", "nothing"])),
    )


def units_of(policy: Limited, batch: Batch) -> list[set[int]]:
    """The experts of each unit."""
    experts = range(batch.experts)
    if policy.groups is not None:
        size = batch.experts // policy.groups
        return [set(experts[first : first + size]) for first in range(0, batch.experts, size)]
    assert batch.held is not None
    on_EG, node_G = batch.held.gpus_EG, batch.held.node_G.tolist()
    devices = [{expert for expert in experts if on_EG[expert, gpu]} for gpu in range(len(node_G))]
    if policy.unit == "device":
        return devices
    nodes = range(max(node_G) + 1)
    return [
        set[int]().union(*(devices[gpu] for gpu in range(len(node_G)) if node_G[gpu] == n)) for n in nodes
    ]


def allowed(policy: Limited, batch: Batch, token: int) -> set[int]:
    """Experts of the token's best units."""
    known = scores_of(batch, token)
    if policy.instead == "nothing":
        best = sorted(chosen_of(batch, token), key=lambda each: (-each[2], each[0]))
        known = {expert: weight for _, expert, weight in best}
    ranked = []
    for number, experts in enumerate(units_of(policy, batch)):
        scores = [score for expert, score in known.items() if expert in experts][: policy.best]
        if scores:
            worst = list(known.values())[-1]
            ranked.append((-sum(scores) - worst * (policy.best - len(scores)), number, experts))
    return set[int]().union(*(experts for _, _, experts in sorted(ranked)[: policy.most]))


@given(batches(), st.data())
def test_each_token_stays_in_its_best_units(batch: Batch, data: st.DataObject) -> None:
    policy = data.draw(limits(batch))
    found = policy.apply(batch)
    assert found.weights_TK is not None
    for token, ids in enumerate(found.ids_TK.tolist()):
        near, chosen = allowed(policy, batch, token), chosen_of(batch, token)
        expected = {place: expert for place, expert, _ in chosen if expert in near}
        if policy.instead == "candidates":
            free = [place for place, expert, _ in chosen if expert not in near]
            expected |= next_best(batch, token, near, free)
        assert {place: expert for place, expert in enumerate(ids) if expert >= 0} == expected
        for place, expert in expected.items():
            weight = weight_in(batch, token, expert)
            assert float(found.weights_TK[token, place]) == pytest.approx(weight, rel=rounding(16, "float32"))


@given(batches(), st.sampled_from(["group", "node", "device"]), st.sampled_from(["candidates", "nothing"]))
def test_as_many_units_as_there_are_change_nothing(batch: Batch, unit: str, instead: str) -> None:
    found = Limited(8, unit, groups=batch.experts if unit == "group" else None, instead=instead).apply(batch)
    assert np.array_equal(found.ids_TK, batch.ids_TK)
    assert (found.kept, found.gate_mass_lost) == (found.wished, 0.0)


@given(batches(full=True))
def test_one_device_serves_a_token_that_chooses_within_it(batch: Batch) -> None:
    assert batch.held is not None
    found = Limited(1, "device").apply(batch)
    for ids in found.ids_TK.tolist():
        on_G = batch.held.gpus_EG[[expert for expert in ids if expert >= 0]].all(axis=0)
        assert on_G.any()
    assert found.added == 0


def test_worked_by_hand() -> None:
    # GPUs hold {0, 1}, {2, 3}, {4, 5}; nodes are GPUs {0, 1} and {2}. Best of each GPU: .3, .25, .2; two
    # best together: .32, .35, .33; nodes by two best: .3 + .25 and .2 + .13.
    gpus_EG = np.repeat(np.eye(3, dtype=np.bool_), 2, axis=0)
    ids_TC = np.array([[0, 2, 4, 5, 3, 1]], np.int16)
    candidates = Candidates(ids_TC, np.array([[0.3, 0.25, 0.2, 0.13, 0.1, 0.02]], np.float32))
    batch = Batch(
        np.array([[0, 2, 4]], np.int16),
        np.array([[0.4, 0.3, 0.3]], np.float32),
        np.array([0, 1, 1, 1]),
        6,
        candidates,
        Held(gpus_EG, np.array([0, 0, 1], np.int32)),
    )
    for policy, ids in (
        (Limited(1, "device", best=1), [0, 1, -1]),
        (Limited(1, "device", best=2), [3, 2, -1]),
        (Limited(2, "device", best=2), [5, 2, 4]),  # GPUs 1 and 2; of 5 and 3 the better
        (Limited(1, "node"), [0, 2, 3]),
        (Limited(1, "group", groups=2), [0, 2, 1]),  # experts 0 to 2: .3 + .25
        (Limited(1, "device", instead="nothing"), [0, -1, -1]),
    ):
        assert policy.apply(batch).ids_TK.tolist() == [ids], policy


def test_what_it_needs() -> None:
    batch = Batch(np.zeros((1, 1), np.int16), None, np.array([0, 1]), experts=4)
    for policy, needs in (
        (Limited(1), {"candidates", "placement"}),
        (Limited(1, "group", groups=2), {"candidates"}),
        (Limited(1, "device", instead="nothing"), {"weights", "placement"}),
    ):
        assert policy.needs == needs
        with pytest.raises(PolicyError, match=r"^routing\.policy: policy limited needs "):
            policy.apply(batch)
    with pytest.raises(PolicyError, match=r"routing\.groups: must divide the 4 experts of a layer \(got 3\)"):
        Limited(1, "group", groups=3).apply(batch)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"policy": "limited", "most": 0}, "routing.most: must be at least 1 (got 0)"),
        (
            {"policy": "node_limited", "unit": "rack"},
            "routing.unit: must be one of: group, node, device (got 'rack')",
        ),
        ({"policy": "limited", "most": 1, "best": 0}, "routing.best: must be at least 1 (got 0)"),
        (
            {"policy": "limited", "most": 1, "unit": "group"},
            "routing.groups: must be a whole number (got None)",
        ),
        (
            {"policy": "limited", "most": 1, "groups": 8},
            "routing.groups: goes with unit group only (got 8)",
        ),
        (
            {"policy": "limited", "most": 1, "instead": "drop"},
            "routing.instead: must be one of: candidates, nothing (got 'drop')",
        ),
    ],
)
def test_a_wrong_parameter_is_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError) as caught:
        policy_from(spec)
    assert str(caught.value) == message
