"""Generated routing: against a naive version of its model, and the properties that it promises."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tolerance import rounding
from traces.base.errors import TraceError
from traces.draws import choose
from traces.statistics import trace_statistics
from traces.synthesis import SynthSpec, _draw, synthesize

_MASK = 2**64 - 1


def spec(**change: Any) -> SynthSpec:
    fields: dict[str, Any] = {
        "model": "tiny",
        "layers": (2, 5),
        "experts": 16,
        "top_k": 4,
        "requests": 6,
        "tokens_per_request": 20,
        "skew": 0.7,
        "persistence": 0.5,
    }
    return SynthSpec(**{**fields, **change})


def splitmix64(state: int) -> tuple[int, int]:
    """Next state and output, after the reference code of Steele, Lea and Flood."""
    state = (state + 0x9E3779B97F4A7C15) & _MASK
    z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return state, z ^ (z >> 31)


def chosen_naively(score_E: list[float], groups: int, top_groups: int, top_k: int) -> list[int]:
    size = len(score_E) // groups
    in_group = [range(group * size, (group + 1) * size) for group in range(groups)]
    best_two = [sum(sorted((score_E[e] for e in members), reverse=True)[:2]) for members in in_group]
    allowed = sorted(range(groups), key=lambda group: (-best_two[group], group))[:top_groups]
    reachable = [expert for group in allowed for expert in in_group[group]]
    return sorted(reachable, key=lambda expert: (-score_E[expert], expert))[:top_k]


@given(st.data())
def test_choice_against_sorting(data: st.DataObject) -> None:
    groups = data.draw(st.sampled_from([1, 2, 4]))
    top_groups = data.draw(st.integers(1, groups))
    size = data.draw(st.integers(1, 5))
    top_k = data.draw(st.integers(1, size * top_groups))
    # Few values, so that ties are common; multiples of 1/4, so that their sums are exact.
    score_E = [
        value / 4
        for value in data.draw(st.lists(st.integers(1, 9), min_size=size * groups, max_size=size * groups))
    ]
    ids_K, weights_K = np.zeros(top_k, np.uint8), np.zeros(top_k, np.float32)
    choose(np.array(score_E), groups, top_groups, ids_K, weights_K)
    expected = chosen_naively(score_E, groups, top_groups, top_k)
    assert ids_K.tolist() == expected
    total = sum(score_E[expert] for expert in expected)
    assert np.allclose(
        weights_K, [score_E[expert] / total for expert in expected], rtol=rounding(16, "float32")
    )


@pytest.mark.parametrize("persistence", [0.0, 0.6])
def test_draws_against_a_naive_version(persistence: float) -> None:
    rng = np.random.default_rng(1)
    popularity_LE = np.exp(rng.standard_normal((2, 8)))
    stream_RL = rng.integers(0, 2**64, (3, 2), np.uint64, endpoint=False)
    ids_TLK, weights_TLK = np.zeros((12, 2, 3), np.uint8), np.zeros((12, 2, 3), np.float32)
    _draw(popularity_LE, stream_RL, 4, persistence, 2, 1, ids_TLK, weights_TLK)
    for request in range(3):
        for layer in range(2):
            state, score_E = int(stream_RL[request, layer]), [0.0] * 8
            for position in range(4):
                for expert in range(8):
                    state, bits = splitmix64(state)
                    if position == 0 or bits >> 40 >= int(persistence * 2**24):
                        uniform = ((bits & (2**40 - 1)) + 0.5) / 2**40
                        score_E[expert] = popularity_LE[layer, expert] / -math.log(uniform)
                assert ids_TLK[request * 4 + position, layer].tolist() == chosen_naively(score_E, 2, 1, 3)


def test_splitmix64_against_its_published_output() -> None:
    """First outputs for seed 1234567, as in the test vectors of the Rosetta Code page "Pseudo-random
    numbers/Splitmix64"."""
    state, outputs = 1234567, []
    for _ in range(3):
        state, output = splitmix64(state)
        outputs.append(output)
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_one_choice_follows_popularity() -> None:
    """With K = 1 an expert's share is w / Σ w; 40,000 draws put it within 4 standard deviations."""
    made = synthesize(spec(layers=(0,), experts=4, top_k=1, requests=40_000, tokens_per_request=1, skew=1.0))
    popularity_seed, _ = np.random.SeedSequence(0).spawn(2)
    w_E = np.exp(np.random.default_rng(popularity_seed).standard_normal((1, 4)))[0]
    share_E = w_E / w_E.sum()
    found_E = np.bincount(made.ids_TLK.ravel(), minlength=4) / 40_000
    assert (np.abs(found_E - share_E) < 4 * np.sqrt(share_E * (1 - share_E) / 40_000)).all()


def test_persistence_leaves_each_token_alone_as_it_was() -> None:
    """Token 5 of a request has the same expert loads, within sampling noise, at any persistence."""
    shares = []
    for persistence in (0.0, 0.9):
        made = synthesize(spec(requests=4_000, tokens_per_request=6, persistence=persistence))
        last_TK = made.ids_TLK[made.position_T == 5, 0]
        shares.append(np.bincount(last_TK.ravel(), minlength=16) / len(last_TK))
    assert np.abs(shares[0] - shares[1]).max() < 4 * math.sqrt(2 * 0.25 / 4_000)


def test_persistence_makes_neighbours_alike() -> None:
    overlaps = [
        trace_statistics(synthesize(spec(requests=50, persistence=persistence))).overlap or 0.0
        for persistence in (0.0, 0.4, 0.8)
    ]
    assert overlaps[0] < overlaps[1] - 0.1 < overlaps[2] - 0.2


def test_skew_makes_loads_unequal_and_is_stated() -> None:
    even, skewed = (synthesize(spec(requests=200, skew=skew)) for skew in (0.0, 1.5))
    assert trace_statistics(even).max_over_mean_median < 1.2
    assert trace_statistics(skewed).max_over_mean_median > 2.0
    stated = np.mean([layer.max_over_mean for layer in trace_statistics(skewed).layers])
    assert skewed.meta.origin.endswith(f"gets {stated:.2f} times the mean")


@given(st.integers(0, 2**40), st.sampled_from([(1, 1), (4, 1), (4, 2), (4, 4)]), st.integers(1, 4))
def test_what_is_made_is_valid(seed: int, groups: tuple[int, int], top_k: int) -> None:
    made = synthesize(spec(seed=seed, groups=groups[0], top_groups=groups[1], top_k=top_k))
    made.validate()
    assert made.weights_TLK is not None
    assert (np.diff(made.weights_TLK.astype(np.float32), axis=2) <= 0).all()
    assert np.allclose(made.weights_TLK.astype(np.float32).sum(axis=2), 1, atol=top_k * 2**-11)
    group_TLK = made.ids_TLK // (16 // groups[0])
    assert max(len(set(row)) for row in group_TLK.reshape(-1, top_k).tolist()) <= groups[1]


def test_a_seed_fixes_everything() -> None:
    first, again, other = (synthesize(spec(seed=seed)).digest() for seed in (3, 3, 4))
    assert first == again != other


def test_uint16_ids() -> None:
    made = synthesize(spec(experts=300, requests=2))
    assert made.ids_TLK.dtype == np.uint16
    made.validate()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"experts": 0}, "experts: must be between 1 and 65536 (got 0)"),
        ({"top_k": 17}, "top_k: must be between 1 and 16 (got 17)"),
        ({"requests": 0}, "requests: must be a whole number from 1 (got 0)"),
        ({"tokens_per_request": 1.5}, "tokens_per_request: must be a whole number from 1 (got 1.5)"),
        ({"seed": -1}, "seed: must be a whole number from 0 (got -1)"),
        ({"skew": -0.1}, "skew: must be between 0 and 10 (got -0.1)"),
        ({"skew": math.nan}, "skew: must be between 0 and 10 (got nan)"),
        ({"persistence": 1.0}, "persistence: must be at least 0 and below 1 (got 1.0)"),
        ({"groups": 3}, "groups: must divide 16 experts (got 3)"),
        ({"groups": 4, "top_groups": 5}, "top_groups: must be at most 4 (got 5)"),
        ({"groups": 8, "top_groups": 1}, "top_k: must be at most 2, the experts in reach (got 4)"),
    ],
)
def test_a_bad_parameter_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TraceError) as caught:
        spec(**change)
    assert str(caught.value) == message


def test_more_than_memory_is_refused() -> None:
    with pytest.raises(TraceError, match=r"needs .* GiB of memory"):
        synthesize(SynthSpec(**{**asdict(spec()), "requests": 10**9, "tokens_per_request": 10**6}))


def test_candidates_are_the_best_experts_of_which_the_first_are_chosen() -> None:
    plain, wide = synthesize(spec()), synthesize(spec(candidates=7))
    np.testing.assert_array_equal(wide.ids_TLK, plain.ids_TLK)
    assert wide.weights_TLK is not None
    assert plain.weights_TLK is not None
    np.testing.assert_allclose(
        wide.weights_TLK, plain.weights_TLK, atol=2 * rounding(1, "float16"), rtol=rounding(4, "float16")
    )
    ids_TLC, scores_TLC = wide.candidate_ids_TLC, wide.candidate_scores_TLC
    assert ids_TLC is not None
    assert scores_TLC is not None
    assert ids_TLC.shape[-1] == wide.meta.candidates == 7
    np.testing.assert_array_equal(ids_TLC[..., :4], wide.ids_TLK)
    assert (np.diff(scores_TLC.astype(np.float64), axis=-1) <= 0).all()
    assert (np.diff(np.sort(ids_TLC, axis=-1), axis=-1) > 0).all()
    wide.validate()
    with pytest.raises(TraceError, match="candidates: must be at most 8, the experts in reach"):
        spec(candidates=9, groups=4, top_groups=2)
