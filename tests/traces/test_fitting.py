"""Fitting finds back what was generated, and follows every trace that has little to say."""

from __future__ import annotations

from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings

import traces.fitting
from tests.examples import examples
from tests.traces.random_traces import any_trace, random_trace
from tests.traces.test_generator import generator, overlap
from traces.base.errors import TraceError
from traces.co_activation import co_activations, pair_excess
from traces.fitting import fitted
from traces.generator import Generator, generate
from traces.routing import RoutingTrace
from traces.statistics import expert_loads
from traces.topics import PRIOR, find_topics, topic_shares


@pytest.fixture(scope="module")
def known() -> RoutingTrace:
    """Six topics of sharp taste in 3 layers of 16 experts, and all that makes tokens alike."""
    return generate(
        generator(
            3,
            16,
            2,
            topics=6,
            spread=2.5,
            topics_NC=np.random.default_rng(2).dirichlet(np.ones(6), 4),
            stay=0.1,
            recall=0.1,
            lasting_L=np.array([0.0, 0.2, 0.4]),
            passing_L=np.array([0.1, 0.2, 0.3]),
            kept_L=np.array([0.1, 0.3, 0.3]),
            sharpness_L=np.array([0.2, 0.5, 1.0]),
            gate_sum_L=np.array([1.0, 1.0, 2.5]),
        ),
        120,
        150,
    )


@pytest.fixture(scope="module")
def again(known: RoutingTrace) -> Generator:
    return fitted(known)


def test_topics_are_found() -> None:
    """Tokens of four topics that share no expert are told apart."""
    rng = np.random.default_rng(0)
    truth_T = rng.integers(0, 4, 800)
    ids_TLK = (truth_T[:, None, None] * 4 + rng.permuted(np.tile(np.arange(4), (800, 3, 1)), axis=2))[
        :, :, :2
    ]
    found_T = find_topics(ids_TLK.astype(np.uint8), 16, 8)
    pairs = set(zip(found_T.tolist(), truth_T.tolist(), strict=True))
    assert len(pairs) == len(set(found_T.tolist()))  # no topic mixes two


def test_shares_against_a_loop() -> None:
    trace = random_trace(lengths=(9, 11))
    topic_T = np.array([-1, 0, 2, 2] * 5)
    found = topic_shares(trace.ids_TLK, topic_T, 8, 3)
    for c in range(3):
        members = [t for t in range(20) if topic_T[t] == c]
        for layer in range(2):
            for e in range(8):
                here = sum(e in trace.ids_TLK[t, layer] for t in members)
                whole = max(0.5, sum(e in trace.ids_TLK[t, layer] for t in range(20))) / 20
                assert found[c, layer, e] == pytest.approx((here + PRIOR * whole) / (len(members) + PRIOR))


def test_the_fit_generates_the_same_loads(known: RoutingTrace, again: Generator) -> None:
    made = generate(again, 240, 150, 1)
    share = [expert_loads(trace) / (trace.tokens * 2) for trace in (known, made)]
    assert np.abs(share[0] - share[1]).sum(axis=1).max() / 2 < 0.05


@pytest.mark.parametrize("lag", [1, 4, 16, 64])
def test_the_fit_generates_the_same_overlap(known: RoutingTrace, again: Generator, lag: int) -> None:
    made = generate(again, 240, 150, 1)
    assert overlap(made, lag) == pytest.approx(overlap(known, lag), abs=0.02)


def test_the_fit_generates_the_same_company(known: RoutingTrace, again: Generator) -> None:
    made = generate(again, 240, 150, 1)
    excess = [
        [pair_excess(pairs_EE) or 0.0 for pairs_EE in co_activations(trace.ids_TLK, 16)]
        for trace in (known, made)
    ]
    assert excess[1] == pytest.approx(excess[0], abs=0.08)
    assert min(excess[0]) > 0.2


def test_gate_weights_and_their_sums_are_found(again: Generator) -> None:
    assert again.sharpness_L == pytest.approx([0.2, 0.5, 1.0], rel=0.25)
    assert again.gate_sum_L == pytest.approx([1.0, 1.0, 2.5], abs=0.01)


def test_equal_traces_give_equal_generators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces.fitting, "_DRAWS", 1 << 14)
    trace = random_trace(lengths=(30,) * 6, categories=("a", "b"))
    first, second = fitted(trace), fitted(trace)
    assert generate(first, 5, 20).digest() == generate(second, 5, 20).digest()
    assert first.categories == ("a", "b")


def test_scores_keep_their_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces.fitting, "_DRAWS", 1 << 14)
    trace = random_trace(lengths=(40,) * 5, candidates=4)
    assert trace.candidate_scores_TLC is not None
    scores = trace.candidate_scores_TLC
    logits = fitted(trace)
    assert logits.score_is_logit
    assert logits.score_level_L == pytest.approx(scores.max(axis=2).mean(axis=0), abs=1e-5)
    made = generate(fitted(replace(trace, candidate_scores_TLC=1 / (1 + np.exp(-scores)))), 4, 10)
    assert made.meta.candidates == 4
    assert made.candidate_scores_TLC is not None
    assert made.candidate_scores_TLC.min() > 0
    assert made.candidate_scores_TLC.max() <= 1


@settings(max_examples=examples(30))
@given(any_trace().filter(lambda trace: trace.meta.experts <= 8))
def test_any_trace_is_followed(trace: RoutingTrace) -> None:
    with mock.patch.object(traces.fitting, "LEAST_TOKENS", 1):
        found = fitted(trace)
    made = generate(found, 2, 5)
    made.validate()
    assert (made.meta.experts, made.meta.top_k, made.meta.layers) == (
        trace.meta.experts,
        trace.meta.top_k,
        trace.meta.layers,
    )


def test_too_few_tokens_are_refused() -> None:
    assert len(fitted(random_trace(lengths=(1,) * 64)).topics_NC) == 64
    with pytest.raises(TraceError, match=r"^tokens: is too short .* at least 64 tokens \(got 63\)$"):
        fitted(random_trace(lengths=(62, 1)))
