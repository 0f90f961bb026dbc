"""The generator against a naive version of its model, and what each of its parameters does alone."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tolerance import rounding
from traces.base.errors import TraceError
from traces.generator import Generator, _draw, _take_back, generate
from traces.locality import LAGS, Locality
from traces.meta import TraceMeta
from traces.routing import RoutingTrace
from traces.statistics import expert_loads

_MASK = 2**64 - 1


def generator(
    layers: int = 2,
    experts: int = 8,
    top_k: int = 2,
    *,
    topics: int = 3,
    spread: float = 1.0,
    candidates: int = 0,
    **change: Any,
) -> Generator:
    """Random weights; nothing that makes tokens alike."""
    rng = np.random.default_rng(0)
    plain: dict[str, Any] = {
        "meta": TraceMeta("tiny", experts, top_k, tuple(range(layers)), "a test", "", candidates),
        "log_weight_CLE": spread * rng.standard_normal((topics, layers, experts)),
        "topics_NC": rng.dirichlet(np.ones(topics), 4),
        "category_N": np.array([0, 1, 1, -1]),
        "categories": ("code", "prose"),
        "stay": 0.0,
        "recall": 0.0,
        "passage_tokens": 4.0,
        **{name: np.zeros(layers) for name in ("lasting_L", "passing_L", "kept_L", "score_level_L")},
        **{name: np.ones(layers) for name in ("sharpness_L", "gate_sum_L")},
    }
    return Generator(**{**plain, **change})


def splitmix64(state: int) -> tuple[int, int]:
    state = (state + 0x9E3779B97F4A7C15) & _MASK
    z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return state, z ^ (z >> 31)


def overlap(trace: RoutingTrace, lag: int) -> float:
    locality = Locality(trace.meta)
    locality.add(trace)
    return float(locality.overlap_DL()[LAGS.index(lag)].mean())


def test_draws_against_a_naive_version() -> None:
    rng = np.random.default_rng(1)
    weight_CLE = np.exp(rng.standard_normal((3, 2, 6)))
    topic_RT = rng.integers(0, 3, (2, 9))
    turns_RT = rng.random((2, 9)) < 0.3
    stream_RL = rng.integers(0, 2**64, (2, 2), np.uint64, endpoint=False)
    shares = {"lasts": [0.3, 0.0], "passes": [0.4, 0.5], "kept": [0.5, 0.2]}
    ids_TLC, share_TLC = np.zeros((18, 2, 3), np.uint8), np.zeros((18, 2, 3), np.float32)
    lasts_L, passes_L, kept_L = (np.array(values) for values in shares.values())
    _draw(weight_CLE, topic_RT, turns_RT, stream_RL, lasts_L, passes_L, kept_L, 1, 1, ids_TLC, share_TLC)
    for request in range(2):
        for layer in range(2):
            limit = {name: int(values[layer] * 2**24) for name, values in shares.items()}
            state = int(stream_RL[request, layer])
            noise, lasts, passes = [0.0] * 6, [False] * 6, [False] * 6
            for t in range(9):
                for e in range(6):
                    state, bits = splitmix64(state)
                    lot = bits >> 40
                    if t == 0:
                        state, more = splitmix64(state)
                        lasts[e] = more >> 40 < limit["lasts"]
                    if t == 0 or turns_RT[request, t]:
                        passes[e] = lot < limit["passes"]
                        fresh = t == 0 or not lasts[e]
                    else:
                        fresh = not (lasts[e] or passes[e] or lot < limit["kept"])
                    if fresh:
                        noise[e] = -math.log(((bits & (2**40 - 1)) + 0.5) / 2**40)
                score = [weight_CLE[topic_RT[request, t], layer, e] / noise[e] for e in range(6)]
                best = sorted(range(6), key=lambda e: -score[e])[:3]
                row = request * 9 + t
                assert ids_TLC[row, layer].tolist() == best
                total = sum(score[e] for e in best)
                assert np.allclose(
                    share_TLC[row, layer], [score[e] / total for e in best], rtol=rounding(16, "float32")
                )


def test_topics_are_taken_from_where_they_stand() -> None:
    topic_RT = np.array([[5, 6, 7, 8, 9]])
    _take_back(topic_RT, np.array([[1, 1, 0, 2, 5]]))
    # The first has nobody before it; the fourth takes what the second took from the first.
    assert topic_RT.tolist() == [[5, 5, 7, 5, 9]]


def test_one_choice_follows_the_weights() -> None:
    """One topic and K = 1: an expert's share is w / Σ w, whatever noise is shared; 4 standard deviations."""
    for shared in (0.0, 0.6):
        made = generate(
            generator(1, 4, 1, topics=1, lasting_L=np.array([shared]), kept_L=np.array([shared])), 20_000, 2
        )
        last_T = made.ids_TLK[made.position_T == 1, 0, 0]
        weight_E = np.exp(generator(1, 4, 1, topics=1).log_weight_CLE[0, 0])
        share_E = weight_E / weight_E.sum()
        found_E = np.bincount(last_T, minlength=4) / 20_000
        assert (np.abs(found_E - share_E) < 4 * np.sqrt(share_E * (1 - share_E) / 20_000)).all()


def test_noise_that_lasts_makes_a_request_one_and_the_same() -> None:
    made = generate(generator(topics=1, lasting_L=np.array([1.0, 0.0])), 20, 30)
    for request in range(20):
        ids_TLK = made.ids_TLK[made.request_T == request]
        assert (ids_TLK[:, 0] == ids_TLK[0, 0]).all()
        assert not (ids_TLK[:, 1] == ids_TLK[0, 1]).all()


def test_a_passage_is_alike_and_the_next_is_not() -> None:
    """With one topic and all noise of a passage shared, tokens change where passages do, every 4 tokens."""
    made = generate(generator(topics=1, experts=64, passing_L=np.ones(2)), 200, 50)
    same_T = (made.ids_TLK[1:] == made.ids_TLK[:-1]).all(axis=(1, 2))[np.diff(made.request_T) == 0]
    assert np.mean(~same_T) == pytest.approx(1 / 4, abs=0.02)


@pytest.mark.parametrize("name", ["lasting_L", "passing_L", "kept_L", "stay", "recall"])
def test_what_makes_neighbours_alike(name: str) -> None:
    """More of it, more overlap; and only what lasts for the request reaches tokens far apart."""
    made = []
    for much in (0.0, 0.4, 0.8):
        value: Any = much if name in ("stay", "recall") else np.full(2, much)
        change: dict[str, Any] = {"spread": 2.0, "passage_tokens": 3.0, name: value}
        made.append(generate(generator(experts=16, **change), 200, 80))
    near = [overlap(trace, 1) for trace in made]
    far = [overlap(trace, 64) for trace in made]
    assert near[0] + 0.01 < near[1] < near[2] - 0.01
    assert (far[2] > far[0] + 0.05) == (name == "lasting_L")


def test_requests_have_the_category_of_their_record() -> None:
    made = generate(generator(topics_NC=np.eye(3)[[0, 1, 1, 2]], spread=3.0), 60, 5)
    assert made.category_T is not None
    assert made.categories == ("code", "prose")
    for request in range(60):
        assert len(set(made.category_T[made.request_T == request].tolist())) == 1
    assert set(made.category_T.tolist()) == {-1, 0, 1}
    shares = []
    for code in (0, 1):
        ids_TLK = made.ids_TLK[made.category_T == code]
        shares.append(np.bincount(ids_TLK.ravel(), minlength=8) / ids_TLK.size)
    assert np.abs(shares[0] - shares[1]).sum() / 2 > 0.2


@given(
    st.integers(0, 2**40), st.sampled_from([(1, 1), (4, 2), (4, 4)]), st.sampled_from([0, 5]), st.booleans()
)
def test_what_is_made_is_valid(seed: int, groups: tuple[int, int], candidates: int, logit: bool) -> None:
    made = generate(
        generator(
            experts=16,
            candidates=candidates,
            groups=groups[0],
            top_groups=groups[1],
            score_is_logit=logit,
            score_level_L=np.full(2, -1.0),
            gate_sum_L=np.array([1.0, 2.5]),
        ),
        3,
        7,
        seed,
    )
    made.validate()
    assert made.weights_TLK is not None
    assert (np.diff(made.weights_TLK.astype(np.float32), axis=2) <= 0).all()
    assert np.allclose(made.weights_TLK.astype(np.float32).sum(axis=2), [1.0, 2.5], atol=2**-8)
    assert all(len({e // (16 // groups[0]) for e in row}) <= groups[1] for row in made.ids_TLK[:, 0].tolist())
    if candidates:
        assert made.candidate_scores_TLC is not None
        assert made.candidate_ids_TLC is not None
        assert (made.candidate_ids_TLC[:, :, :2] == made.ids_TLK).all()
        scores = made.candidate_scores_TLC.astype(np.float64)
        assert (np.diff(scores, axis=2) <= 0).all()
        assert np.allclose(scores[:, :, 0], -1.0 if logit else math.exp(-1.0))
        # Gate weights are the softmax of logits, or in proportion to probabilities.
        ratio_TL = scores[:, :, 0] - scores[:, :, 1] if logit else np.log(scores[:, :, 0] / scores[:, :, 1])
        weights = made.weights_TLK.astype(np.float64)
        clear = weights[:, :, 1] > 0.05
        assert np.allclose(ratio_TL[clear], np.log(weights[:, :, 0] / weights[:, :, 1])[clear], atol=0.02)


def test_a_seed_fixes_everything() -> None:
    first, again, other = (generate(generator(), 3, 4, seed).digest() for seed in (3, 3, 4))
    assert first == again != other


def test_the_same_shape_stays_as_it_was() -> None:
    fitted = generator(candidates=4)
    again = fitted.scaled((0, 1), 8, 2)
    assert generate(again, 3, 9).digest() == generate(fitted, 3, 9).digest()


@pytest.mark.parametrize(("layers", "experts", "top_k"), [(5, 64, 4), (1, 4, 1), (2, 8, 3), (3, 300, 8)])
def test_another_shape_keeps_popularity(layers: int, experts: int, top_k: int) -> None:
    """Without saturation (few chosen of many), sorted loads over the mean stay what they were."""
    fitted = generator(2, 32, 1, topics=1, candidates=3)
    indices = tuple(range(3, 3 + layers))
    other = fitted.scaled(indices, experts, top_k, model="big")
    made = generate(other, 50, 40)
    made.validate()
    assert (made.meta.model, made.meta.layers, made.meta.candidates) == (
        "big",
        indices,
        min(experts, top_k + 2),
    )
    if experts == 64:
        before, after = (
            generate(fitted, 2_000, 10),
            generate(replace(other, meta=replace(other.meta, top_k=1)), 2_000, 10),
        )
        ratios = [
            np.sort(expert_loads(trace)[0]) / expert_loads(trace)[0].mean() for trace in (before, after)
        ]
        quantiles = [np.quantile(ratio, [0.1, 0.5, 0.9]) for ratio in ratios]
        assert quantiles[1] == pytest.approx(quantiles[0], rel=0.15)


def test_experts_of_one_topic_still_meet_in_another_shape() -> None:
    """Topic c favours eight experts: choices of a token stay within one topic's share of a larger model."""
    weight_CLE = np.where(np.arange(32)[None, None] // 8 == np.arange(4)[:, None, None], 6.0, 0.0)
    fitted = generator(1, 32, 2, topics=4, log_weight_CLE=weight_CLE, topics_NC=np.full((4, 4), 0.25))
    other = fitted.scaled((0,), 64, 4)
    favours_CE = other.log_weight_CLE[:, 0] > other.log_weight_CLE[:, 0].mean(axis=0)
    made = generate(other, 20, 20)
    within = [favours_CE[:, row].all(axis=1).any() for row in made.ids_TLK[:, 0].tolist()]
    assert np.mean(within) > 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stay": 1.1}, "stay: must be between 0 and 1 (got 1.1)"),
        ({"stay": 0.6, "recall": 0.5}, "recall: must be between 0 and 0.4 (got 0.5)"),
        ({"passage_tokens": math.nan}, "passage_tokens: must be between 1 and 1e+06 (got nan)"),
        ({"kept_L": np.array([0.0, 2.0])}, "kept_L: must be between 0 and 1 (got 2.0)"),
        ({"kept_L": np.zeros(3)}, "kept_L: must have shape (2,), with a topic and a request (got (3,))"),
        ({"topics_NC": np.ones((4, 3))}, "topics_NC: rows must sum to 1"),
        ({"category_N": np.array([0, 1, 2, 0])}, "category_N: must be between -1 and 1 (got 2)"),
        ({"groups": 3}, "groups: must divide 8 experts (got 3)"),
        ({"groups": 4, "top_groups": 5}, "top_groups: must be between 1 and 4 (got 5)"),
        ({"groups": 8, "top_groups": 1}, "top_k: must be at most 1, the experts in reach (got 2)"),
    ],
)
def test_a_bad_parameter_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TraceError) as caught:
        generator(**change)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("requests", "tokens", "message"),
    [
        (0, 1, "requests: must be at least 1"),
        (1, -1, "tokens: must be at least 1"),
        (10**9, 10**6, "needs .* GiB"),
    ],
)
def test_impossible_amounts_are_refused(requests: int, tokens: int, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        generate(generator(), requests, tokens)
