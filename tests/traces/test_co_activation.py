"""Counts of experts that meet, against loops over tokens."""

from __future__ import annotations

from itertools import product

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from traces.co_activation import co_activations, transitions

EXPERTS = 5


@st.composite
def traces(draw: st.DrawFn) -> npt.NDArray[np.uint8]:
    """[T, L, K] of distinct experts."""
    tokens, layers, top_k = draw(st.integers(1, 6)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    choices = st.permutations(range(EXPERTS)).map(lambda order: order[:top_k])
    return np.array([[draw(choices) for _ in range(layers)] for _ in range(tokens)], np.uint8)


@given(traces())
def test_pairs_are_counted_token_by_token(ids_TLK: npt.NDArray[np.uint8]) -> None:
    _, layers, _ = ids_TLK.shape
    together, onward = np.zeros((layers, EXPERTS, EXPERTS)), np.zeros((layers - 1, EXPERTS, EXPERTS))
    for ids_LK in ids_TLK.tolist():
        for layer in range(layers):
            for pair in product(ids_LK[layer], repeat=2):
                together[layer][pair] += 1
        for layer in range(layers - 1):
            for pair in product(ids_LK[layer], ids_LK[layer + 1]):
                onward[layer][pair] += 1
    assert co_activations(ids_TLK, EXPERTS).tolist() == together.tolist()
    assert transitions(ids_TLK, EXPERTS).tolist() == onward.tolist()


def test_ids_of_any_integer_type_are_counted_alike() -> None:
    ids_TLK = np.random.default_rng(0).permuted(np.tile(np.arange(300), (20, 2, 1)), axis=2)[:, :, :4]
    expected = co_activations(ids_TLK, 300)
    assert (co_activations(ids_TLK.astype(np.uint16), 300) == expected).all()
    assert expected.sum() == 20 * 2 * 4 * 4
