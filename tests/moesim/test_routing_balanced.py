"""Choices by experts, by assignment and by chance: naive oracles, balance, and what is refused."""

from __future__ import annotations

import itertools
from decimal import ROUND_CEILING, Decimal
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.errors import PolicyError
from moesim.routing.balanced import ExpertChoice, UniformRandom
from moesim.routing.base import Base
from moesim.routing.noise import noise
from moesim.routing.policies import policy_from
from moesim.routing.policy import Batch, Candidates, Outcome
from tests.examples import examples
from tests.moesim.policy_batches import batches, scores_of, weight_in
from tests.tolerance import rounding

scopes = st.sampled_from(["source", "global"])
gammas = st.sampled_from([0.3, 1.0, 1.1, 2.0, 50.0])


def sources_of(batch: Batch, scope: str) -> list[range]:
    bounds = batch.offsets_G.tolist() if scope == "source" else [0, len(batch.ids_TK)]
    return [range(first, last) for first, last in itertools.pairwise(bounds)]


def capacity(gamma: float, batch: Batch, tokens: int) -> int:
    return int(
        (Decimal(str(gamma)) * tokens * batch.ids_TK.shape[1] / batch.experts).to_integral(ROUND_CEILING)
    )


def check_weights(found: Outcome, batch: Batch) -> None:
    assert found.weights_TK is not None
    for token, ids in enumerate(found.ids_TK.tolist()):
        for place, expert in enumerate(ids):
            if expert >= 0:
                weight = weight_in(batch, token, expert)
                assert float(found.weights_TK[token, place]) == pytest.approx(
                    weight, rel=rounding(16, "float32")
                )


@given(batches(), gammas, scopes)
def test_each_expert_chooses_its_best_tokens(batch: Batch, gamma: float, scope: str) -> None:
    found = ExpertChoice(gamma, scope).apply(batch)
    chosen: list[set[int]] = [set() for _ in batch.ids_TK]
    room = 0
    for tokens in sources_of(batch, scope):
        most = capacity(gamma, batch, len(tokens))
        room += most * batch.experts
        for expert in range(batch.experts):
            seen = [token for token in tokens if expert in scores_of(batch, token)]
            for token in sorted(seen, key=lambda token: (-scores_of(batch, token)[expert], token))[:most]:
                chosen[token].add(expert)
    for token, ids in enumerate(found.ids_TK.tolist()):
        visited = [expert for expert in ids if expert >= 0]
        # Best first, without gaps.
        assert visited == [expert for expert in scores_of(batch, token) if expert in chosen[token]]
        assert ids[: len(visited)] == visited
    assert found.room == room
    check_weights(found, batch)


@given(batches(full=True), scopes)
def test_experts_that_see_all_tokens_are_balanced(batch: Batch, scope: str) -> None:
    found = ExpertChoice(1.0, scope).apply(batch)
    per_expert = sum(min(capacity(1, batch, len(each)), len(each)) for each in sources_of(batch, scope))
    load_E = np.bincount(found.ids_TK[found.ids_TK >= 0], minlength=batch.experts)
    assert load_E.tolist() == [per_expert] * batch.experts


@settings(max_examples=examples(50))
@given(batches(), scopes)
def test_an_assignment_is_balanced(batch: Batch, scope: str) -> None:
    found = Base(scope).apply(batch)
    room = 0
    for tokens in sources_of(batch, scope):
        most = capacity(1, batch, len(tokens))
        room += most * batch.experts
        ids = found.ids_TK[tokens.start : tokens.stop]
        assert np.bincount(ids[ids >= 0], minlength=1).max(initial=0) <= most
    assert found.room == room
    for token, row in enumerate(found.ids_TK.tolist()):
        visited = [expert for expert in row if expert >= 0]
        assert len(set(visited)) == len(visited)
        assert set(visited) <= set(scores_of(batch, token))
    check_weights(found, batch)


@given(st.integers(1, 3), st.integers(0, 6), st.integers(0, 99))
def test_one_expert_for_each_token_is_the_best_balanced_assignment(
    experts: int, tokens: int, seed: int
) -> None:
    score_TE = np.random.default_rng(seed).random((tokens, experts)).astype(np.float32)
    batch = top_1(score_TE)
    found = Base("global").apply(batch)
    most = -(-tokens // experts)
    best = max(
        sum(float(score_TE[token, expert]) for token, expert in enumerate(chosen))
        for chosen in itertools.product(range(experts), repeat=tokens)
        if all(chosen.count(expert) <= most for expert in range(experts))
    )
    total = sum(float(score_TE[token, expert]) for token, expert in enumerate(found.ids_TK[:, 0].tolist()))
    assert total == pytest.approx(best)
    assert found.dropped == 0


def top_1(score_TE: npt.NDArray[np.float32]) -> Batch:
    """Each token's best expert, with all experts as candidates, at one source."""
    ids_TE = np.argsort(-score_TE, axis=1, kind="stable").astype(np.int16)
    candidates = Candidates(ids_TE, np.take_along_axis(score_TE, ids_TE.astype(np.intp), axis=1))
    ids_TK = np.ascontiguousarray(ids_TE[:, :1])
    return Batch(ids_TK, None, np.array([0, len(ids_TE)]), score_TE.shape[1], candidates)


def test_worked_by_hand() -> None:
    # Both tokens prefer expert 0; the sum is largest if the second gives way: .9 + .4 against .1 + .6.
    batch = top_1(np.array([[0.9, 0.1], [0.6, 0.4]], np.float32))
    assert Base().apply(batch).ids_TK.tolist() == [[0], [1]]
    assert ExpertChoice().apply(batch).ids_TK.tolist() == [[0], [1]]
    # Both experts prefer the first token, which then visits two; the second visits none.
    found = ExpertChoice().apply(top_1(np.array([[0.9, 0.5], [0.6, 0.4]], np.float32)))
    assert found.ids_TK.tolist() == [[0, 1], [-1, -1]]
    assert (found.kept, found.rerouted, found.dropped, found.added, found.room) == (1, 0, 1, 1, 2)


def test_an_assignment_of_too_many_tokens_is_refused() -> None:
    batch = top_1(np.ones((513, 2), np.float32))
    with pytest.raises(
        PolicyError, match=r"base assigns at most 512 .* use expert_choice \(got '513 tokens'"
    ):
        Base().apply(batch)


@given(batches(), st.integers(0, 2**63 - 1))
def test_chance_draws_as_floyd_does(batch: Batch, seed: int) -> None:
    found = UniformRandom(seed).apply(batch)
    numbers = noise(seed, batch.draw, batch.ids_TK.shape).tolist()
    for token, ids in enumerate(batch.ids_TK.tolist()):
        drawn: list[int] = []
        count = sum(expert >= 0 for expert in ids)
        for place, expert in enumerate(ids):
            if expert >= 0:
                last = batch.experts - count + len(drawn)
                pick = numbers[token][place] % (last + 1)
                drawn.append(last if pick in drawn else pick)
        assert [expert for expert in found.ids_TK[token].tolist() if expert >= 0] == drawn
        assert len(set(drawn)) == count
    assert ((found.ids_TK >= 0) == (batch.ids_TK >= 0)).all()
    assert (found.dropped, found.added) == (0, 0)
    assert found.weights_TK is batch.weights_TK


def test_chance_is_uniform_and_another_one_in_each_batch() -> None:
    ids_TK = np.tile(np.arange(4, dtype=np.int16), (20_000, 1))
    first, again, other = (
        UniformRandom().apply(Batch(ids_TK, None, np.array([0, 20_000]), 16, draw=draw)).ids_TK
        for draw in (3, 3, 4)
    )
    assert np.array_equal(first, again)
    assert (first != other).mean() > 0.9
    # Each expert is in a quarter of the rows; standard deviation √(20,000 · ¼ · ¾) = 61.
    assert np.abs(np.bincount(first.ravel()) - 5000).max() < 5 * 61


@pytest.mark.parametrize("policy", [ExpertChoice(), Base()])
def test_what_is_lacking_is_refused(policy: ExpertChoice | Base) -> None:
    batch = Batch(np.zeros((2, 1), dtype=np.int16), None, np.array([0, 2]), experts=1)
    with pytest.raises(PolicyError, match=rf"policy {policy.name} needs the scores of more experts"):
        policy.apply(batch)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"policy": "expert_choice", "capacity_factor": 0},
            "routing.capacity_factor: must be finite and above 0 (got 0)",
        ),
        ({"policy": "base", "scope": "rank"}, "routing.scope: must be one of: source, global (got 'rank')"),
        (
            {"policy": "uniform_random", "seed": -1},
            "routing.seed: must be from 0 to 9223372036854775807 (got -1)",
        ),
    ],
)
def test_a_wrong_parameter_is_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError) as caught:
        policy_from(spec)
    assert str(caught.value) == message
