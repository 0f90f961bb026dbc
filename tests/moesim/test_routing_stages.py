"""Policies one after the other, what is counted of them, candidates in one form, and a user's own policy."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from moesim.errors import PolicyError
from moesim.routing.candidates import are_logits, are_of_sigmoids, candidates
from moesim.routing.counters import count
from moesim.routing.drop import Drop
from moesim.routing.none import NoPolicy
from moesim.routing.policies import PRESETS, policies_from, policy_from, spec_of
from moesim.routing.policy import Batch, Policy
from moesim.routing.reroute import Reroute
from moesim.routing.stages import apply_all, route
from tests.examples import examples
from tests.moesim.own_policy import FirstOnly
from tests.moesim.routing_batches import full_batches
from tests.tolerance import rounding

OWN = "tests.moesim.own_policy:FirstOnly"


@st.composite
def before_and_after(draw: st.DrawFn) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """Any experts before and any after, distinct within a token, of unequal widths."""
    chance = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    tokens, K, J = draw(st.integers(0, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    pair = []
    for width in (K, J):
        ids = np.array([chance.permutation(5)[:width] for _ in range(tokens)], np.int16).reshape(
            tokens, width
        )
        ids[chance.random(ids.shape) < 0.3] = -1
        pair.append(ids)
    return pair[0], pair[1]


@given(before_and_after())
def test_counts_are_those_of_sets(pair: tuple[NDArray[np.int16], NDArray[np.int16]]) -> None:
    before_TK, after_TJ = pair
    # Another weight in each place, and exact sums.
    weights_TK = np.exp2(np.arange(before_TK.size, dtype=np.float32)).reshape(before_TK.shape)
    expected, mass_lost = Counter[str](), 0.0
    for before, after, weights in zip(
        before_TK.tolist(), after_TJ.tolist(), weights_TK.tolist(), strict=True
    ):
        wished, served = set(before) - {-1}, set(after) - {-1}
        lost, new = len(wished - served), len(served - wished)
        missing = [place for place, expert in enumerate(before) if expert in wished - served]
        stands = [place for place in missing if place < len(after) and after[place] in served - wished]
        mass_lost += sum([weights[place] for place in missing if place not in stands][new - len(stands) :])
        expected.update(
            kept=len(wished & served),
            rerouted=min(lost, new),
            dropped=max(0, lost - new),
            added=max(0, new - lost),
        )
    found = count(before_TK, after_TJ, weights_TK)
    assert found[:4] == tuple(expected[name] for name in ("kept", "rerouted", "dropped", "added"))
    assert found.mass == float(weights_TK[before_TK >= 0].sum())
    assert found.mass_lost == mass_lost


def test_the_weight_that_is_lost_is_that_of_the_place_where_nothing_stands() -> None:
    before_TK, weights_TK = np.array([[0, 1, 2]], np.int16), np.array([[4, 2, 1]], np.float32)
    for after, lost in (
        ([3, -1, 2], 2.0),
        ([-1, 3, 2], 4.0),
        ([2, 0, -1], 2.0),
        ([3, 4, 5], 0.0),
        ([2, 1, 0], 0.0),
    ):
        assert count(before_TK, np.array([after], np.int16), weights_TK).mass_lost == lost


@settings(max_examples=examples(40))
@given(full_batches(), st.sampled_from([0.5, 1.0]))
def test_each_stage_sees_the_one_before_and_is_counted_from_the_start(batch: Batch, gamma: float) -> None:
    stages: tuple[Policy, ...] = (FirstOnly(2), Reroute(gamma), Drop(gamma / 2))
    outcomes = apply_all(stages, batch)
    now = batch
    for stage, found in zip(stages, outcomes, strict=True):
        alone = stage.apply(now)
        assert np.array_equal(found.ids_TK, alone.ids_TK)
        assert (
            found.wished == np.count_nonzero(batch.ids_TK >= 0) == found.kept + found.rerouted + found.dropped
        )
        assert np.count_nonzero(found.ids_TK >= 0) == found.kept + found.rerouted + found.added
        now = Batch(
            found.ids_TK,
            found.weights_TK,
            batch.offsets_G,
            batch.experts,
            batch.candidates,
            batch.held,
            draw=batch.draw,
            top_k=batch.top_k,
        )
    assert all(before.kept >= after.kept for before, after in pairwise([outcomes[0], outcomes[2]]))


def test_layers_of_unequal_width_are_joined() -> None:
    ids_TK, weights_TK = np.array([[0, 1]], np.int16), np.array([[0.5, 0.25]], np.float32)
    layers = [
        Batch(ids_TK, weights_TK, np.array([0, 1]), 3),
        Batch(ids_TK[:, :1], weights_TK[:, :1], np.array([0, 1]), 3),
    ]
    routed = route([NoPolicy()], layers)
    assert routed.ids_LTJ.tolist() == [[[0, 1]], [[0, -1]]]
    assert routed.weights_LTJ is not None
    assert routed.weights_LTJ.tolist() == [[[0.5, 0.25]], [[0.5, 0.0]]]


@given(st.integers(0, 2**32 - 1), st.integers(0, 4), st.integers(1, 6), st.booleans())
def test_candidates_are_sorted_shares(seed: int, tokens: int, C: int, logits: bool) -> None:
    chance = np.random.default_rng(seed)
    ids_TC = np.array([chance.permutation(9)[:C] for _ in range(tokens)], np.int16).reshape(tokens, C)
    scores_TC = chance.choice([0.0, 0.25, 0.5, 1.0], (tokens, C)).astype(np.float32)
    if logits:
        scores_TC = scores_TC * 200 - 100
    found = candidates(ids_TC, scores_TC, logits=logits)
    for token in range(tokens):
        order = np.argsort(-scores_TC[token], kind="stable")
        assert found.ids_TC[token].tolist() == ids_TC[token, order].tolist()
        parts = (
            np.exp(scores_TC[token, order] - scores_TC[token].max()) if logits else scores_TC[token, order]
        )
        shares = parts / parts.sum() if parts.sum() else np.full(C, 1 / C)
        np.testing.assert_allclose(
            found.scores_TC[token], shares, rtol=rounding(16, "float32"), atol=rounding(1000)
        )


def test_logits_are_told_from_probabilities() -> None:
    assert are_logits(np.array([[[-0.1, 0.5]]], np.float16))
    assert are_logits(np.array([[[1.5, 0.5]]], np.float32))
    assert not are_logits(np.array([[[1.0, 0.0]]], np.float32))


@given(st.integers(0, 2**32 - 1), st.booleans(), st.floats(0.5, 8.0), st.sampled_from([None, 1.0, 2.5]))
def test_gate_weights_tell_sigmoids_from_a_softmax(
    seed: int, sigmoid: bool, spread: float, total: float | None
) -> None:
    """Whatever their sum is scaled to, or not normalised; rounded as traces round them."""
    chance = np.random.default_rng(seed)
    ids_TLC = chance.random((9, 2, 7)).argsort(axis=2)
    logits_TLC = spread * chance.normal(size=ids_TLC.shape).astype(np.float32)
    made_TLC = 1 / (1 + np.exp(-logits_TLC)) if sigmoid else np.exp(logits_TLC)
    chosen_TLK, weights_TLK = ids_TLC[:, :, :3], made_TLC[:, :, :3]
    if total is not None:
        weights_TLK = total * weights_TLK / weights_TLK.sum(axis=2, keepdims=True)
    elif not sigmoid:
        weights_TLK = weights_TLK / made_TLC.sum(axis=2, keepdims=True)
    weights_TLK = weights_TLK.astype(np.float16)
    assert are_of_sigmoids(chosen_TLK, weights_TLK, ids_TLC, logits_TLC) == sigmoid


def test_without_gate_weights_logits_are_a_softmaxs() -> None:
    ids_TLC = np.array([[[0, 1, 2]]])
    assert not are_of_sigmoids(ids_TLC[:, :, :2], None, ids_TLC, np.zeros((1, 1, 3)))


def test_weights_and_sigmoids_of_nothing_are_no_fault() -> None:
    ids_TLC, logits_TLC = np.array([[[0, 1, 2]]]), np.full((1, 1, 3), -1e30)
    assert not are_of_sigmoids(ids_TLC[:, :, :2], np.zeros((1, 1, 2)), ids_TLC, logits_TLC)


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_preset_is_a_policy_whose_parameters_may_change(name: str) -> None:
    policy = policy_from({"policy": name})
    assert spec_of(policy)["policy"] == PRESETS[name]["policy"]
    key, value = next((key, value) for key, value in PRESETS[name].items() if isinstance(value, int | float))
    assert spec_of(policy_from({"policy": name, key: value + 1}))[key] == value + 1


def test_a_users_own_policy() -> None:
    policy = policy_from({"policy": OWN, "places": 2})
    assert policy == FirstOnly(2)
    assert spec_of(policy) == {"policy": OWN, "places": 2}
    assert policies_from([{"policy": "none"}, {"policy": OWN}]) == (NoPolicy(), FirstOnly())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"policy": "tests.moesim.own_policy:Absent"}, "routing.policy: cannot be imported: AttributeError"),
        ({"policy": "no_such_package:Policy"}, "routing.policy: cannot be imported: ModuleNotFoundError"),
        ({"policy": ":"}, "routing.policy: cannot be imported: ValueError"),
        (
            {"policy": "tests.moesim.own_policy:outcome"},
            "routing.policy: must be a dataclass with name, needs",
        ),
        ({"policy": "fractions:Fraction"}, "routing.policy: must be a dataclass with name, needs"),
        (
            {"policy": OWN, "place": 1},
            "routing.place: unknown key; parameters of policy tests.moesim.own_policy",
        ),
        ([], "routing: must be a mapping such as"),
        (3, "routing: must be a mapping such as"),
        ([3], r"routing\[0\]: must be a mapping such as"),
        ([{"policy": "none"}, {"policy": "drop"}], r"routing\[1\].capacity_factor: policy drop needs it"),
        ([{"policy": "none"}, {}], r"routing\[1\].policy: name a policy"),
        ({"policy": "switch", "places": 1}, "routing.places: "),
    ],
)
def test_wrong_lists_and_classes_are_refused(spec: Any, message: str) -> None:
    with pytest.raises(PolicyError, match=f"^{message}"):
        policies_from(spec)
