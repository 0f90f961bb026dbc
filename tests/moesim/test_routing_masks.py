"""Experts that are off, by list or by use: naive oracles, what stands in for them, and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import PolicyError
from moesim.routing.masks import Mask, MaskLeast
from moesim.routing.policies import policy_from, spec_of
from moesim.routing.policy import Batch, Outcome, Policy
from tests.moesim.policy_batches import batches, chosen_of, next_best, weight_in
from tests.tolerance import rounding

instead = st.sampled_from(["candidates", "nothing"])


def check(found: Outcome, batch: Batch, off: list[set[int]], instead: str) -> None:
    """Each token visits what a naive choice without its ``off`` gives, with the weights that belong to it."""
    assert found.weights_TK is not None
    for token, ids in enumerate(found.ids_TK.tolist()):
        chosen = chosen_of(batch, token)
        expected = {place: expert for place, expert, _ in chosen if expert not in off[token]}
        free = [place for place, expert, _ in chosen if expert in off[token]]
        if instead == "candidates":
            expected |= next_best(batch, token, set(range(batch.experts)) - off[token], free)
        assert {place: expert for place, expert in enumerate(ids) if expert >= 0} == expected
        for place, expert in expected.items():
            weight = weight_in(batch, token, expert)
            assert float(found.weights_TK[token, place]) == pytest.approx(weight, rel=rounding(16, "float32"))


def category_of(batch: Batch, token: int) -> int:
    assert batch.category_T is not None
    return int(batch.category_T[token])


@given(
    batches(), st.sets(st.integers(0, 7)), instead, st.sampled_from([None, (), ("chat",), ("chat", "code")])
)
def test_listed_experts_are_off(
    batch: Batch, experts: set[int], instead: str, categories: tuple[str, ...] | None
) -> None:
    listed = {expert for expert in experts if expert < batch.experts}
    found = Mask(tuple(listed), categories=categories, instead=instead).apply(batch)
    concerned = {-1, 0, 1} if categories is None else {batch.categories.index(name) for name in categories}
    tokens = range(len(batch.ids_TK))
    off = [listed if category_of(batch, token) in concerned else set[int]() for token in tokens]
    check(found, batch, off, instead)
    if instead == "nothing":
        assert found.rerouted == found.added == 0


@given(batches(), st.integers(0, 7), instead, st.sampled_from(["load", "score"]), st.booleans())
def test_the_least_used_experts_are_off(batch: Batch, off: int, instead: str, by: str, split: bool) -> None:
    protect = tuple(range(0, batch.experts, 3))
    off = min(off, batch.experts - len(protect))
    tokens = range(len(batch.ids_TK))
    use: Counter[tuple[int, int]] = Counter()
    kind = {token: category_of(batch, token) if split else 0 for token in tokens}
    for token in tokens:
        for _, expert, weight in chosen_of(batch, token):
            # Weights are eighths.
            use[kind[token], expert] += 1 if by == "load" else round(8 * weight)
    least = {
        each: set(
            sorted(set(range(batch.experts)) - set(protect), key=lambda expert: (use[each, expert], expert))[
                :off
            ]
        )
        for each in set(kind.values())
    }
    policy = MaskLeast(off, by, "category" if split else "all", protect, instead)
    check(policy.apply(batch), batch, [least[kind[token]] for token in tokens], instead)


@given(batches(), st.integers(0, 7), instead, st.sampled_from(["load", "score"]), st.booleans())
def test_what_a_trace_lists_is_what_a_batch_of_all_of_it_finds(
    batch: Batch, off: int, instead: str, by: str, split: bool
) -> None:
    """With another layer before it, in which other experts are off."""
    off = min(off, batch.experts - 1)
    policy = MaskLeast(off, by, "category" if split else "all", (), instead)
    ids_TK = np.where(batch.ids_TK < 0, batch.ids_TK, np.int16(batch.experts - 1) - batch.ids_TK)
    listed = policy.listed([replace(batch, ids_TK=ids_TK, layer=0), batch])
    again = policy_from(json.loads(json.dumps(spec_of(listed))))
    wanted, found = policy.apply(batch), again.apply(batch)
    assert np.array_equal(found.ids_TK, wanted.ids_TK)
    assert (found.kept, found.gate_mass_lost) == (wanted.kept, wanted.gate_mass_lost)


def test_of_what_a_trace_does_not_show_nothing_is_off() -> None:
    """The window has tokens of the first category only, of three: expert 1 is off for them."""
    ids_TK, category_T = np.array([[0, 2], [0, 2]], np.int16), np.array([0, 0], np.int16)
    window = Batch(ids_TK, None, np.array([0, 2]), 3, layer=5, category_T=category_T)
    listed = MaskLeast(1, among="category", instead="nothing", of="trace").listed([window])
    assert listed.off == (((), (1,)),)
    category_T = np.array([-1, 0, 2], np.int16)
    batch = Batch(np.array([[1]] * 3, np.int16), None, np.array([0, 3]), 3, layer=5, category_T=category_T)
    assert listed.apply(batch).ids_TK.ravel().tolist() == [1, -1, 1]
    with pytest.raises(PolicyError, match=r"routing\.layers: must list every layer \(got 'no layer 6'\)"):
        listed.apply(replace(batch, layer=6))
    with pytest.raises(PolicyError, match=r"routing\.of: must be batch where no trace is replayed"):
        MaskLeast(1, instead="nothing", of="trace").apply(batch)


@given(batches())
def test_without_anything_off_nothing_changes(batch: Batch) -> None:
    for policy in (Mask(()), Mask((0,), layers=(0, 7)), Mask((0,), categories=()), MaskLeast(0)):
        found = policy.apply(batch)
        assert np.array_equal(found.ids_TK, batch.ids_TK)
        assert (found.kept, found.gate_mass_lost) == (found.wished, 0.0)


@given(batches(full=True), st.data())
def test_where_all_experts_are_candidates_nothing_is_lost(batch: Batch, data: st.DataObject) -> None:
    off = data.draw(st.integers(0, batch.experts - batch.ids_TK.shape[1]))
    for policy in (Mask(tuple(range(off))), MaskLeast(min(off, batch.experts - 1))):
        found = policy.apply(batch)
        assert (found.dropped, found.added) == (0, 0)
        assert found.wished == found.kept + found.rerouted == np.count_nonzero(found.ids_TK >= 0)


def test_worked_by_hand() -> None:
    # Assignments: expert 0 three, 1 two, 2 one, 3 none; weights: 0 has 1.0, 1 has 1.5, 2 has 0.5.
    ids_TK = np.array([[0, 1], [0, 1], [0, 2]], dtype=np.int16)
    weights_TK = np.array([[0.25, 0.75], [0.25, 0.75], [0.5, 0.5]], dtype=np.float32)
    batch = Batch(ids_TK, weights_TK, np.array([0, 3]), 4, category_T=np.array([0, 0, 1], np.int16))
    for policy, ids in (
        (MaskLeast(2, instead="nothing"), [[0, 1], [0, 1], [0, -1]]),  # 3 and 2
        (MaskLeast(3, by="score", instead="nothing"), [[-1, 1], [-1, 1], [-1, -1]]),  # 3, 2, then 0
        (MaskLeast(3, by="score", protect=(0,), instead="nothing"), [[0, -1], [0, -1], [0, -1]]),
        (MaskLeast(2, among="category", instead="nothing"), [[0, 1], [0, 1], [0, 2]]),  # 2 and 3; 1 and 3
        (MaskLeast(3, among="category", instead="nothing"), [[-1, 1], [-1, 1], [-1, 2]]),  # ties: lower ids
        (Mask((1, 2), instead="nothing"), [[0, -1], [0, -1], [0, -1]]),
    ):
        assert policy.apply(batch).ids_TK.tolist() == ids, policy


@pytest.mark.parametrize(
    ("policy", "needs"),
    [
        (Mask((0,)), {"candidates"}),
        (Mask((0,), instead="nothing"), set()),
        (Mask((0,), categories=("chat",), instead="nothing"), {"categories"}),
        (MaskLeast(1, by="score"), {"weights", "candidates"}),
        (MaskLeast(1, among="category", instead="nothing"), {"categories"}),
    ],
)
def test_a_mask_needs_what_its_parameters_look_at(policy: Policy, needs: set[str]) -> None:
    assert policy.needs == needs
    bare = Batch(np.zeros((2, 1), np.int16), None, np.array([0, 2]), experts=3)
    if needs:
        with pytest.raises(PolicyError, match=rf"^routing\.policy: policy {policy.name} needs "):
            policy.apply(bare)
    else:
        assert policy.apply(bare).dropped == 2


def test_a_batch_lacks_what_the_parameters_name() -> None:
    batch = Batch(
        np.zeros((2, 1), np.int16),
        None,
        np.array([0, 2]),
        experts=3,
        category_T=np.zeros(2, np.int16),
        categories=("code", "chat"),
    )
    with pytest.raises(PolicyError, match=r"routing\.experts: must be below the 3 experts"):
        Mask((3,)).apply(batch)
    with pytest.raises(PolicyError, match=r"routing\.categories: must be .*: code, chat \(got 'prose'\)"):
        Mask((0,), categories=("code", "prose")).apply(batch)
    with pytest.raises(PolicyError, match=r"routing\.off: must be at most 2: 3 experts, 0 protected"):
        MaskLeast(3).apply(batch)
    with pytest.raises(PolicyError, match=r"routing\.protect: must be below"):
        MaskLeast(0, protect=(99,)).apply(batch)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"policy": "mask"}, "routing.experts: policy mask needs it"),
        ({"policy": "mask", "experts": 3}, "routing.experts: must be a list of whole numbers (got 3)"),
        ({"policy": "mask", "experts": [3, -1]}, "routing.experts: must be at least 0 (got -1)"),
        ({"policy": "mask", "experts": [3, 1.5]}, "routing.experts: must be a whole number (got 1.5)"),
        (
            {"policy": "mask", "experts": [], "layers": "all"},
            "routing.layers: must be a list of whole numbers (got 'all')",
        ),
        (
            {"policy": "mask", "experts": [], "categories": [1]},
            "routing.categories: must be a list of names (got [1])",
        ),
        (
            {"policy": "mask", "experts": [], "instead": "drop"},
            "routing.instead: must be one of: candidates, nothing (got 'drop')",
        ),
        ({"policy": "mask_least", "off": -1}, "routing.off: must be at least 0 (got -1)"),
        (
            {"policy": "mask_least", "off": 1, "by": "weight"},
            "routing.by: must be one of: load, score (got 'weight')",
        ),
        (
            {"policy": "mask_least", "off": 1, "among": "token"},
            "routing.among: must be one of: all, category (got 'token')",
        ),
    ],
)
def test_a_wrong_parameter_is_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError) as caught:
        policy_from(spec)
    assert str(caught.value) == message
