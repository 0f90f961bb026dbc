"""The experiment on a small trace: what its statistics count, and that it judges on what was not seen."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

import traces.fitting
from experiments.generator_fit.experiment import compare, halves
from experiments.generator_fit.statistics import (
    STATISTICS,
    batch_skew,
    distance,
    node_co_activation,
    sorted_loads,
    straggler_ratio,
    temporal_overlap,
)
from tests.traces.random_traces import random_trace
from tests.traces.test_generator import generator
from traces.generator import generate

TRACE = generate(generator(2, 16, 2, spread=1.5, lasting_L=np.full(2, 0.3)), 40, 140)


def test_statistics_by_hand() -> None:
    trace = random_trace(experts=8, top_k=2, lengths=(200, 100))
    for layer in range(2):
        ids_TK = trace.ids_TLK[:, layer].astype(int)
        load_E = np.bincount(ids_TK.ravel(), minlength=8)
        assert sorted_loads(trace)[layer] == pytest.approx(np.sort(load_E) / 600)
        assert straggler_ratio(trace)[layer, 0] == pytest.approx(load_E.max() / load_E.mean())
        pairs_NN = np.zeros((4, 4))
        for a, b in ids_TK:
            for one, other in ((a, b), (b, a)):
                pairs_NN[one // 2, other // 2] += 1
        assert node_co_activation(trace)[layer] == pytest.approx(pairs_NN.ravel() / 600)
        chosen_T = [set(row) for row in ids_TK.tolist()]
        # The first request ends after 200 tokens.
        same = [len(chosen_T[t] & chosen_T[t + 1]) / 2 for t in range(299) if t != 199]
        assert temporal_overlap(trace)[layer, 0] == pytest.approx(np.mean(same))
    assert batch_skew(trace, 256) == pytest.approx(_max_over_mean(trace.ids_TLK), rel=0.1)


def _max_over_mean(ids_TLK: np.ndarray) -> np.ndarray:
    loads = [np.bincount(ids_TLK[:, layer].ravel()) for layer in range(ids_TLK.shape[1])]
    return np.array([[load_E.max() / load_E.mean()] for load_E in loads])


def test_a_distance_is_a_layers_sum() -> None:
    assert distance(np.array([[1.0, 2.0], [0.0, 0.0]]), np.array([[0.0, 4.0], [1.0, 0.0]])) == 2.0


def test_halves_share_no_request_and_leave_none() -> None:
    first, second = halves(TRACE, 3)
    seen, unseen = set(first.request_T.tolist()), set(second.request_T.tolist())
    assert not seen & unseen
    assert seen | unseen == set(range(40))
    assert len(seen) == len(unseen) == 20
    assert halves(TRACE, 3)[0].digest() == first.digest() != halves(TRACE, 4)[0].digest()


def test_it_runs_and_tells_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces.fitting, "_DRAWS", 1 << 17)
    monkeypatch.setattr(traces.fitting, "_TURNS", 6)
    found = compare(TRACE, 2, requests=60)
    assert [row.case for row in found.rows] == list(STATISTICS)
    assert all(row.measured > 0 and np.isfinite(row.predicted) for row in found.rows)
    assert len(found.checks) == 2 * len(STATISTICS)
    for case, row in product(["splits within"], found.checks):
        if case in row.case:
            assert 0 <= row.predicted <= row.measured == 2
