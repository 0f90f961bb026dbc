"""Fewer experts by a token's own weights, and by its importance; more for the uncertain: naive oracles."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.errors import PolicyError
from moesim.routing.fewer import Fewer, Gap, Skip, Threshold, TopK, TopP
from moesim.routing.important import Important, Uncertain
from moesim.routing.policies import policy_from
from moesim.routing.policy import Batch
from tests.examples import examples
from tests.moesim.policy_batches import batches, chosen_of, next_best, weight_in
from tests.tolerance import rounding

shares = st.sampled_from([0.0, 0.1, 0.125, 0.3, 0.5, 0.75, 1.0])
rules = st.one_of(
    st.builds(TopK, st.integers(1, 5)),
    st.builds(TopK, st.tuples(st.just(9), st.integers(1, 5))),
    *(st.builds(rule, shares) for rule in (TopP, Threshold, Gap, Skip)),
)


def naive_count(rule: Fewer, weights: list[float]) -> int:
    """How many of some weights, descending, the rule keeps."""
    total = sum(weights)
    if isinstance(rule, TopK):
        return rule.k if isinstance(rule.k, int) else rule.k[1]  # batches are of layer 1
    if isinstance(rule, TopP):
        return next(n for n in range(1, len(weights) + 1) if sum(weights[:n]) >= rule.p * total)
    if isinstance(rule, Threshold):
        return sum(weight >= rule.share * total for weight in weights)
    if isinstance(rule, Gap):
        steps = [first - second for first, second in itertools.pairwise(weights)]
        return next((n for n, step in enumerate(steps, 1) if step > rule.gap * total), len(weights))
    assert isinstance(rule, Skip)
    return sum(weight >= rule.ratio * weights[0] for weight in weights)


def naive_kept(batch: Batch, token: int, count: int) -> list[int]:
    """The token's places with its ``count`` best experts left, at least one."""
    best = sorted(chosen_of(batch, token), key=lambda each: (-each[2], each[0]))[: max(1, count)]
    ids = [-1] * batch.ids_TK.shape[1]
    for place, expert, _ in best:
        ids[place] = expert
    return ids


@given(batches(), rules)
def test_each_token_keeps_what_a_naive_reading_of_the_rule_keeps(batch: Batch, rule: Fewer) -> None:
    found = rule.apply(batch)
    for token, ids in enumerate(found.ids_TK.tolist()):
        weights = sorted((weight for _, _, weight in chosen_of(batch, token)), reverse=True)
        count = naive_count(rule, weights) if weights else 0
        assert ids == naive_kept(batch, token, count)
    assert found.weights_TK is batch.weights_TK
    assert found.rerouted == found.added == 0


@given(batches(), shares, st.integers(1, 4), st.sampled_from(["undecided", "decided"]))
def test_of_each_rank_the_important_tokens_keep_all(batch: Batch, share: float, k: int, which: str) -> None:
    found = Important(share, k, which).apply(batch)

    def decided(token: int) -> float:
        weights = [weight for _, _, weight in chosen_of(batch, token)]
        return max(weights) / sum(weights) if sum(weights) > 0 else 0.0

    sign = 1 if which == "undecided" else -1
    for first, last in itertools.pairwise(batch.offsets_G.tolist()):
        ranked = sorted(range(first, last), key=lambda token: (sign * decided(token), token))
        protected = math.ceil(Fraction(str(share)) * (last - first))
        for place, token in enumerate(ranked):
            count = batch.ids_TK.shape[1] if place < protected else k
            assert found.ids_TK[token].tolist() == naive_kept(batch, token, count)


@given(batches(full=True))
def test_the_neutral_parameters_change_nothing(batch: Batch) -> None:
    K = batch.ids_TK.shape[1]
    assert batch.weights_TK is not None
    weights_TK = batch.weights_TK + np.float32(0.125)
    positive = replace(batch, weights_TK=weights_TK)
    for rule in (TopK(K), TopK(K + 3), TopP(1.0), Threshold(0), Gap(1), Skip(0), Important(1.0, 1)):
        for policy in (rule, replace(rule, renormalise=True)):
            found = policy.apply(positive)
            assert found.weights_TK is not None
            assert np.array_equal(found.ids_TK, positive.ids_TK)
            assert (found.kept, found.dropped, found.gate_mass_lost) == (found.wished, 0, 0.0)
            assert np.array_equal(found.weights_TK, weights_TK)


@given(batches(), rules)
def test_renormalised_weights_have_the_sum_of_before(batch: Batch, rule: Fewer) -> None:
    found = replace(rule, renormalise=True).apply(batch)
    assert np.array_equal(found.ids_TK, rule.apply(batch).ids_TK)
    assert found.weights_TK is not None
    assert batch.weights_TK is not None
    for token, ids in enumerate(found.ids_TK.tolist()):
        kept = [k for k, expert in enumerate(ids) if expert >= 0]
        before = sum(weight for _, _, weight in chosen_of(batch, token))
        if sum(batch.weights_TK[token, kept]) > 0:
            assert sum(found.weights_TK[token, kept]) == pytest.approx(before, rel=rounding(16, "float32"))


@given(batches(), st.sampled_from([TopP, Threshold, Gap, Skip]), shares, shares)
def test_a_milder_parameter_keeps_what_a_harsher_one_keeps(
    batch: Batch, rule: Any, a: float, b: float
) -> None:
    mild, harsh = (max(a, b), min(a, b)) if rule in (TopP, Gap) else (min(a, b), max(a, b))
    assert not ((rule(harsh).apply(batch).ids_TK >= 0) & (rule(mild).apply(batch).ids_TK < 0)).any()


@given(batches(), shares, st.integers(1, 6))
def test_uncertain_tokens_get_their_next_best_candidates(batch: Batch, below: float, k: int) -> None:
    found = Uncertain(below, k).apply(batch)
    assert found.dropped == found.rerouted == 0
    for token, ids in enumerate(found.ids_TK.tolist()):
        chosen = chosen_of(batch, token)
        expected = {place: expert for place, expert, _ in chosen}
        weights = [weight for _, _, weight in chosen]
        if weights and max(weights) < below * sum(weights):
            empty = [place for place in range(len(ids)) if place not in expected]
            expected |= next_best(batch, token, set(range(batch.experts)), empty[: max(0, k - len(chosen))])
        assert {place: expert for place, expert in enumerate(ids) if expert >= 0} == expected
        for place, expert in expected.items():
            assert found.weights_TK is not None
            weight = weight_in(batch, token, expert)
            assert float(found.weights_TK[token, place]) == pytest.approx(weight, rel=rounding(16, "float32"))


@given(batches(full=True), st.integers(1, 6))
def test_certain_tokens_get_nothing_more(batch: Batch, k: int) -> None:
    found = Uncertain(0.0, k).apply(batch)
    assert np.array_equal(found.ids_TK[:, : batch.ids_TK.shape[1]], batch.ids_TK)
    assert (found.kept, found.added) == (batch.ids_TK.size, 0)


def test_worked_by_hand() -> None:
    # Weights of one token, sum 1: best first they are .5, .25, .125, .125 in places 1, 0, 2, 3.
    ids_TK = np.array([[3, 0, 5, 4]], dtype=np.int16)
    weights_TK = np.array([[0.25, 0.5, 0.125, 0.125]], dtype=np.float32)
    batch = Batch(ids_TK, weights_TK, np.array([0, 1]), experts=6, layer=2)
    for rule, ids in (
        (TopK(3), [3, 0, 5, -1]),  # of the equal ones the first
        (TopK((1, 1, 2)), [3, 0, -1, -1]),  # layer 2
        (TopP(0.75), [3, 0, -1, -1]),  # .5 + .25 reach it exactly
        (TopP(0.76), [3, 0, 5, -1]),
        (Threshold(0.25), [3, 0, -1, -1]),
        (Threshold(1.0), [-1, 0, -1, -1]),  # none reaches it: the best stays
        (Gap(0.25), [3, 0, 5, 4]),  # steps are .25, .125, 0
        (Gap(0.2), [-1, 0, -1, -1]),
        (Gap(0.125), [-1, 0, -1, -1]),
        (Skip(0.5), [3, 0, -1, -1]),
        (Skip(0.25), [3, 0, 5, 4]),
    ):
        assert rule.apply(batch).ids_TK.tolist() == [ids], rule
    found = TopK(2, renormalise=True).apply(batch)
    assert found.weights_TK is not None
    assert found.weights_TK[0, :2] == pytest.approx([1 / 3, 2 / 3])
    assert (found.gate_mass, found.gate_mass_lost) == (1.0, 0.25)


def test_a_list_of_k_must_reach_the_layer() -> None:
    batch = Batch(np.zeros((1, 1), np.int16), np.ones((1, 1), np.float32), np.array([0, 1]), 1, layer=2)
    with pytest.raises(PolicyError, match=r"routing\.k: must have .* for layer 2 too \(got \[1, 1\]\)"):
        TopK((1, 1)).apply(batch)


@pytest.mark.parametrize("rule", [TopK(1), TopP(0.5), Important(0.5, 1), Uncertain(0.5, 3)])
def test_what_is_lacking_is_refused(rule: Fewer | Uncertain) -> None:
    batch = Batch(np.zeros((2, 1), dtype=np.int16), None, np.array([0, 2]), experts=1)
    with pytest.raises(PolicyError, match=rf"routing\.policy: policy {rule.name} needs"):
        rule.apply(batch)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"policy": "top_k", "k": 0}, "routing.k: must be at least 1 (got 0)"),
        ({"policy": "top_k", "k": []}, "routing.k: must be a whole number (got [])"),
        ({"policy": "top_k", "k": [4, 2.5]}, "routing.k: must be a whole number (got 2.5)"),
        ({"policy": "top_k", "k": "44"}, "routing.k: must be a whole number (got '44')"),
        ({"policy": "top_k"}, "routing.k: policy top_k needs it"),
        ({"policy": "top_k", "k": 1, "renormalise": 1}, "routing.renormalise: must be true or false (got 1)"),
        ({"policy": "top_p", "p": 1.1}, "routing.p: must be from 0 to 1 (got 1.1)"),
        ({"policy": "threshold", "share": -0.1}, "routing.share: must be from 0 to 1 (got -0.1)"),
        ({"policy": "gap", "gap": math.nan}, "routing.gap: must be finite (got nan)"),
        ({"policy": "skip", "ratio": None}, "routing.ratio: must be a number (got None)"),
        ({"policy": "important", "share": 0.5, "k": 0}, "routing.k: must be at least 1 (got 0)"),
        (
            {"policy": "important", "share": 0.5, "k": 1, "important": "all"},
            "routing.important: must be one of: undecided, decided (got 'all')",
        ),
        ({"policy": "uncertain", "below": 2, "k": 1}, "routing.below: must be from 0 to 1 (got 2)"),
    ],
)
def test_a_wrong_parameter_is_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError) as caught:
        policy_from(spec)
    assert str(caught.value) == message


@settings(max_examples=examples(20))
@given(st.sampled_from([TopK(2), TopP(0.5), Skip(0.2), Important(0.2, 1)]))
def test_a_batch_without_tokens_stays_empty(rule: Fewer) -> None:
    empty = Batch(np.zeros((0, 2), np.int16), np.zeros((0, 2), np.float32), np.array([0, 0]), experts=4)
    assert rule.apply(empty).ids_TK.shape == (0, 2)


@pytest.mark.shared
def test_real_routing_loses_what_the_rule_says(shared: Path) -> None:
    with np.load(shared / "data" / "gptoss20b" / "decode_routing.npz") as trace:
        ids_TK = np.ascontiguousarray(trace["topk_ids"][:512, 12], dtype=np.int16)
        weights_TK = np.ascontiguousarray(trace["topk_weights"][:512, 12], dtype=np.float32)
    batch = Batch(ids_TK, weights_TK, np.arange(0, 513, 64, dtype=np.int64), experts=32)
    found = TopP(0.8).apply(batch)
    assert 0 < found.dropped < found.wished
    assert found.gate_mass is not None
    assert found.gate_mass_lost is not None
    assert found.gate_mass_lost <= 0.2 * found.gate_mass
    kept_T = np.where(found.ids_TK >= 0, weights_TK, 0).sum(axis=1)
    assert (kept_T >= 0.8 * weights_TK.sum(axis=1) - rounding(16, "float32")).all()
