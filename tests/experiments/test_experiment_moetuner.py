"""MoETuner's settings: the routing that is assumed, and where the gain comes from."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.comparison import Row
from experiments.moetuner.experiment import SETTINGS, faster, less, scenario_of, tensor_parallel_s, times
from experiments.moetuner.routing import Dependence, routing
from moesim.spec.model import Model
from traces.co_activation import co_activations, transitions

_, TWO_NODES = SETTINGS


@pytest.fixture(scope="module")
def mixtral() -> Model:
    return scenario_of(TWO_NODES, "per_gpu").model


def test_routing_is_valid_and_the_same_every_time(mixtral: Model) -> None:
    trace = routing(mixtral, Dependence())
    trace.validate()
    assert trace.digest() == routing(mixtral, Dependence()).digest()


def test_independent_routing_has_no_favourites(mixtral: Model) -> None:
    ids_TLK = routing(mixtral, Dependence(skew=0.0, follow=0.0)).ids_TLK
    tokens = len(ids_TLK)
    # Two of eight experts each: an expert has a quarter of the tokens, a pair 1 in 28, a transition 1 in 16.
    pairs_LEE, onward_LEE = co_activations(ids_TLK, 8), transitions(ids_TLK, 8)
    off_diagonal = pairs_LEE[:, ~np.eye(8, dtype=bool)]
    np.testing.assert_allclose(np.diagonal(pairs_LEE, axis1=1, axis2=2) / tokens, 1 / 4, rtol=0.06)
    np.testing.assert_allclose(off_diagonal / tokens, 1 / 28, rtol=0.15)
    np.testing.assert_allclose(onward_LEE / tokens, 1 / 16, rtol=0.15)


def test_partners_are_followed_and_mates_chosen_as_often_as_asked(mixtral: Model) -> None:
    followed = transitions(routing(mixtral, Dependence(skew=0.0, follow=1.0)).ids_TLK, 8)
    assert ((followed > 0).any(axis=2)).all()
    ids_TLK = routing(mixtral, Dependence(skew=0.0, follow=1.0)).ids_TLK
    for layer in (1, 17):
        partner_E = np.zeros(8, int)
        partner_E[ids_TLK[:, layer - 1, 0]] = ids_TLK[:, layer, 0]
        assert sorted(partner_E) == list(range(8))
        assert (partner_E[ids_TLK[:, layer - 1]] == ids_TLK[:, layer]).all()
    together = co_activations(routing(mixtral, Dependence(skew=0.0, follow=0.0, together=0.5)).ids_TLK, 8)
    mates = (together - np.diagonal(together, axis1=1, axis2=2)[:, :, None] * np.eye(8)).max(axis=2)
    # Half of an expert's tokens by choice, and one in seven of the rest by chance.
    np.testing.assert_allclose(mates / np.diagonal(together, axis1=1, axis2=2), 0.5 + 0.5 / 7, rtol=0.06)


def test_tensor_parallel_seconds_by_hand() -> None:
    # 64 all-reduces of 4096 × 4096 bf16 among four: 1.5 × 33.6 MB over 450 GB/s × 0.78, twice 0.6 µs, 2 µs.
    expected = 64 * (1.5 * 4096 * 4096 * 2 / (450e9 * 0.78) + 2 * 0.6e-6 + 2e-6)
    assert tensor_parallel_s(scenario_of(TWO_NODES, "per_gpu"), 4) == pytest.approx(expected)


def test_percentages() -> None:
    assert less(4.0, 3.0) == 25.0
    assert Row("", "%", 20.0, 25.0).error == 0.25


def test_the_mapping_gains_where_tokens_stay_and_nothing_where_they_go_home() -> None:
    assumed = Dependence()
    stay = [times(TWO_NODES, assumed, solver) for solver in ("swap", "moetuner")]
    home = [times(TWO_NODES, assumed, solver, "per_gpu") for solver in ("swap", "moetuner")]
    assert faster(*stay) > 2.0
    assert abs(faster(*home)) < 0.6


def test_experts_of_the_same_tokens_together_gain_where_tokens_go_home() -> None:
    assumed = Dependence(together=0.5)
    swap, locality = (times(TWO_NODES, assumed, solver, "per_gpu") for solver in ("swap", "locality at 20 %"))
    assert less(swap.links, locality.links) > 10.0
    assert faster(swap, locality) > 1.5
