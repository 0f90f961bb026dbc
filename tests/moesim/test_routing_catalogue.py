"""Policies by name: what a scenario can say, and what is refused with the way out."""

from __future__ import annotations

import importlib
import math
import pkgutil
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim import routing
from moesim.errors import PolicyError
from moesim.routing.drop import Drop
from moesim.routing.none import NoPolicy
from moesim.routing.policies import POLICIES, PRESETS, policy_from, spec_of
from moesim.routing.policy import Batch, Policy, outcome

KNOWN = ", ".join((*POLICIES, *PRESETS))


def test_every_policy_of_the_room_can_be_named() -> None:
    """A new policy that nobody entered is found here; a preset hides none."""
    names = set()
    for module in pkgutil.iter_modules(routing.__path__, "moesim.routing."):
        for value in vars(importlib.import_module(module.name)).values():
            name = vars(value).get("name") if isinstance(value, type) else None
            if isinstance(name, str) and hasattr(value, "apply"):
                names.add(name)
    assert names == set(POLICIES)
    assert not names & set(PRESETS)


def test_what_policies_need_may_depend_on_their_parameters() -> None:
    assert NoPolicy().needs == frozenset()
    assert Drop(1.0).needs == {"weights"}
    assert Drop(1.0, order="position", unit="device").needs == {"placement"}


def test_a_spec_is_resolved_in_full() -> None:
    assert policy_from({"policy": "none"}) == NoPolicy()
    assert policy_from({"policy": "drop", "capacity_factor": 2}) == Drop(2.0)
    assert spec_of(Drop(2)) == {
        "policy": "drop",
        "capacity_factor": 2.0,
        "unit": "expert",
        "scope": "source",
        "order": "score",
        "seed": 0,
        "renormalise": False,
    }
    assert isinstance(spec_of(Drop(2))["capacity_factor"], float)


@given(
    st.one_of(
        st.just(NoPolicy()),
        st.builds(
            Drop,
            st.floats(min_value=5e-324, allow_infinity=False),
            scope=st.sampled_from(["source", "global"]),
        ),
    )
)
def test_spec_of_is_the_inverse_of_policy_from(policy: Policy) -> None:
    assert policy_from(spec_of(policy)) == policy


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, f"routing.policy: name a policy: {', '.join(POLICIES)}"),
        ({"policy": "best"}, f"routing.policy: no such policy; known: {KNOWN} (got 'best')"),
        ({"policy": ["drop"]}, f"routing.policy: no such policy; known: {KNOWN} (got ['drop'])"),
        ({"policy": None}, f"routing.policy: no such policy; known: {KNOWN} (got None)"),
        (
            {"policy": "none", "capacity_factor": 1.5},
            "routing.capacity_factor: policy none does not know it; to vary it, name a policy that does:"
            " drop, reroute, expanded_drop, expert_choice",
        ),
        (
            {"policy": "drop", "capacity": 1.5},
            "routing.capacity: unknown key; parameters of policy drop: capacity_factor, unit, scope, order,"
            " seed, renormalise",
        ),
        ({"policy": "none", "name": "drop"}, "routing.name: unknown key; parameters of policy none: none"),
        ({"policy": "drop"}, "routing.capacity_factor: policy drop needs it"),
        (
            {"policy": "drop", "capacity_factor": 1.0, "unit": "node"},
            "routing.unit: must be one of: expert, device (got 'node')",
        ),
        (
            {"policy": "drop", "capacity_factor": 1.0, "scope": "all"},
            "routing.scope: must be one of: source, global (got 'all')",
        ),
        (
            {"policy": "drop", "capacity_factor": 1.0, "order": ["score"]},
            "routing.order: must be one of: score, position, random, first_choices (got ['score'])",
        ),
    ],
)
def test_a_wrong_spec_is_refused_with_the_way_out(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError) as caught:
        policy_from(spec)
    assert str(caught.value) == message


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, 10**400, "1.5", None, True, [1.0]])
def test_a_capacity_factor_is_a_finite_number_above_zero(value: object) -> None:
    with pytest.raises(
        PolicyError, match=r"^routing\.capacity_factor: must be (a number|finite and above 0)"
    ):
        policy_from({"policy": "drop", "capacity_factor": value})


def test_no_policy_serves_the_wish() -> None:
    ids_TK = np.array([[0, 1], [1, -1]], dtype=np.int16)
    weights_TK = np.array([[0.75, 0.25], [1.0, 9.0]], dtype=np.float32)
    with_weights = NoPolicy().apply(Batch(ids_TK, weights_TK, np.array([0, 2]), experts=2))
    assert with_weights.ids_TK is ids_TK
    assert (with_weights.wished, with_weights.kept, with_weights.dropped) == (3, 3, 0)
    assert (with_weights.gate_mass, with_weights.gate_mass_lost, with_weights.room) == (2.0, 0.0, None)
    without = NoPolicy().apply(Batch(ids_TK, None, np.array([0, 2]), experts=2))
    assert (without.kept, without.gate_mass, without.gate_mass_lost) == (3, None, None)


def test_assignments_are_counted_place_by_place() -> None:
    before_TK = np.array([[0, 1], [2, -1], [3, -1]], dtype=np.int16)
    after_TK = np.array([[0, -1], [1, 3], [3, -1]], dtype=np.int16)
    weights_TK = np.array([[0.5, 0.125], [1.0, 9.0], [2.0, 9.0]], dtype=np.float32)
    counted = outcome(Batch(before_TK, weights_TK, np.array([0, 3]), experts=4), after_TK, weights_TK)
    assert (counted.wished, counted.kept, counted.rerouted, counted.dropped, counted.added) == (4, 2, 1, 1, 1)
    assert (counted.gate_mass, counted.gate_mass_lost) == (3.625, 0.125)
