"""Which experts meet in a token: inside a layer, and from one layer to the next.

Axes: T tokens, L MoE layers, K experts of a token, E experts of a layer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from traces.jit import jit

Ints = npt.NDArray[np.int64]


def co_activations(ids_TLK: npt.NDArray[Any], experts: int) -> Ints:
    """int64 [L, E, E]: tokens that chose both experts of a layer; on the diagonal, tokens of the expert.

    Token 0 chose 0 and 1, token 1 chose 1 and 2:

    >>> co_activations(np.array([[[0, 1]], [[1, 2]]]), experts=3)[0]
    array([[1, 1, 0],
           [1, 2, 1],
           [0, 1, 1]])

    Args:
        ids_TLK: integers from 0 to ``experts`` − 1, distinct within a token and layer.
    """
    pairs_LEE = np.zeros((ids_TLK.shape[1], experts, experts), np.int64)
    _count_pairs(_by_layer(ids_TLK), _by_layer(ids_TLK), pairs_LEE)
    return pairs_LEE


def transitions(ids_TLK: npt.NDArray[Any], experts: int) -> Ints:
    """int64 [L − 1, E, E]: tokens that chose the row's expert in a layer and the column's in the next.

    A token counts once for each of its K² pairs. One token goes from experts 0, 1 to 2, 0:

    >>> transitions(np.array([[[0, 1], [2, 0]]]), experts=3)[0]
    array([[1, 0, 1],
           [1, 0, 1],
           [0, 0, 0]])

    Args:
        ids_TLK: integers from 0 to ``experts`` − 1.
    """
    pairs_LEE = np.zeros((max(ids_TLK.shape[1] - 1, 0), experts, experts), np.int64)
    ids_LTK = _by_layer(ids_TLK)
    _count_pairs(ids_LTK[:-1], ids_LTK[1:], pairs_LEE)
    return pairs_LEE


def _by_layer(ids_TLK: npt.NDArray[Any]) -> npt.NDArray[np.int16]:
    """int16 [L, T, K]: one dtype, which compiles once, and the table of one layer at a time in the cache."""
    return np.ascontiguousarray(ids_TLK.transpose(1, 0, 2), dtype=np.int16)


@jit
def _count_pairs(
    from_LTK: npt.NDArray[np.int16], to_LTK: npt.NDArray[np.int16], pairs_LEE: npt.NDArray[np.int64]
) -> None:
    """Add for each token all pairs of an expert of ``from_LTK`` and one of ``to_LTK``."""
    layers, tokens, chosen = from_LTK.shape
    for layer in range(layers):
        for token in range(tokens):
            for k in range(chosen):
                expert = from_LTK[layer, token, k]
                for other in range(chosen):
                    pairs_LEE[layer, expert, to_LTK[layer, token, other]] += 1
