"""Which experts meet in a token, inside a layer and from one layer to the next; how far that is from chance.

Axes: T tokens, L MoE layers, K experts of a token, E experts of a layer.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from traces.base.arrays import Array, Floats, Ints
from traces.base.jit import jit

LIFT = 1.5
"""Experts of a cluster meet so many times as often as by chance, or more, averaged over their pairs."""


def co_activations(ids_TLK: Array, experts: int) -> Ints:
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


def transitions(ids_TLK: Array, experts: int) -> Ints:
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


def pairs_by_chance(pairs_EE: Ints) -> Floats:
    """Pairs of different experts as they would meet if only their loads counted, float64 [E, E].

    In proportion to both loads, as many in total as in ``pairs_EE``, none on the diagonal.

    >>> pairs_by_chance(np.array([[4, 3, 1], [3, 4, 1], [1, 1, 2]])).round(2)
    array([[0.  , 2.5 , 1.25],
           [2.5 , 0.  , 1.25],
           [1.25, 1.25, 0.  ]])
    """
    load_E = np.diagonal(pairs_EE).astype(np.float64)
    chance_EE = np.outer(load_E, load_E)
    np.fill_diagonal(chance_EE, 0.0)
    met = float(pairs_EE.sum() - np.trace(pairs_EE))
    return chance_EE * (met / (chance_EE.sum() or 1.0))


def pair_excess(pairs_EE: Ints) -> float | None:
    """Share of a layer's pairs that would have to meet others for loads alone to explain them.

    The total variation distance ½ Σ |observed − by chance| / Σ observed: 0 where experts are chosen
    independently. A few tokens show some by accident. None without pairs (K = 1).
    """
    observed_EE = pairs_EE.astype(np.float64)
    np.fill_diagonal(observed_EE, 0.0)
    total = float(observed_EE.sum())
    return float(np.abs(observed_EE - pairs_by_chance(pairs_EE)).sum() / (2 * total)) if total else None


def clusters(pairs_EE: Ints) -> Ints:
    """Experts that keep company: the cluster of each, int64 [E], numbered from 0, the largest first.

    Average linkage over the distance chance / (observed + chance), ½ for independent experts, cut where a
    cluster's pairs meet ``LIFT`` times as often as by chance. An expert without company is a cluster alone.

    Experts 0 and 1 always meet, and so do 2 and 3:

    >>> clusters(np.array([[9, 9, 0, 0], [9, 9, 0, 0], [0, 0, 5, 5], [0, 0, 5, 5]]))
    array([0, 0, 1, 1])
    """
    experts = len(pairs_EE)
    if experts == 1:
        return np.zeros(1, np.int64)
    chance_EE = pairs_by_chance(pairs_EE)
    both_EE = pairs_EE + chance_EE
    # Experts without any load meet nobody, by chance or not: as far apart as can be.
    distance_EE = np.divide(chance_EE, both_EE, out=np.ones_like(chance_EE), where=chance_EE > 0)
    np.fill_diagonal(distance_EE, 0.0)
    tree = hierarchy.average(squareform(distance_EE, checks=False))
    found_E = hierarchy.fcluster(tree, 1.0 / (1.0 + LIFT), criterion="distance")
    size_C = np.bincount(found_E)
    # By size, ties by the first expert.
    _, first_C = np.unique(found_E, return_index=True)
    order = sorted(range(len(first_C)), key=lambda c: (-size_C[c + 1], first_C[c]))
    number_C = np.argsort(np.array(order))
    return np.asarray(number_C[found_E - 1], np.int64)


def mutual_information(onward_EE: Ints, tokens: int) -> float:
    """Bits that one expert of a token tells of one of its experts in the next layer.

    I = Σ p_ab log2(p_ab / (p_a p_b)), less the bias (E_a − 1)(E_b − 1) / (2 T ln 2) that ``tokens``
    independent observations have (Miller 1955), E_a and E_b counting experts that occur; never below 0.

    Args:
        onward_EE: one layer of :func:`transitions`, of at least one token.
    """
    p_EE = onward_EE / onward_EE.sum()
    from_E, to_E = p_EE.sum(axis=1), p_EE.sum(axis=0)
    seen = onward_EE > 0
    bits = float((p_EE[seen] * np.log2(p_EE[seen] / np.outer(from_E, to_E)[seen])).sum())
    degrees = (np.count_nonzero(from_E) - 1) * (np.count_nonzero(to_E) - 1)
    return max(0.0, bits - float(degrees / (2 * tokens * np.log(2))))


def _by_layer(ids_TLK: Array) -> npt.NDArray[np.uint16]:
    """uint16 [L, T, K]: one dtype, which compiles once, and the table of one layer at a time in the cache."""
    return np.ascontiguousarray(ids_TLK.transpose(1, 0, 2), dtype=np.uint16)


@jit
def _count_pairs(from_LTK: npt.NDArray[np.uint16], to_LTK: npt.NDArray[np.uint16], pairs_LEE: Ints) -> None:
    """Add for each token all pairs of an expert of ``from_LTK`` and one of ``to_LTK``."""
    layers, tokens, chosen = from_LTK.shape
    for layer in range(layers):
        for token in range(tokens):
            for k in range(chosen):
                expert = from_LTK[layer, token, k]
                for other in range(chosen):
                    pairs_LEE[layer, expert, to_LTK[layer, token, other]] += 1
