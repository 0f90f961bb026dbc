"""The best split of a batch over replicas, by a linear programme.

Axes: L MoE layers, T tokens, K experts per token, E logical experts, R most replicas of an expert, G GPUs,
V replicas of experts that have several.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.routing.copies import Copies
from moesim.routing.errors import PolicyError
from traces.base.jit import jit

# HiGHS meets constraints to 1e-7; so much below a whole number is that number.
_TOLERANCE = 1e-6


def balanced(ids_LTK: NDArray[np.int16], offsets_G: NDArray[np.int64], copies: Copies) -> NDArray[np.int16]:
    """The split over replicas in which the fullest GPU has least, by a linear programme for each layer.

    min M such that each expert's assignments are split over its replicas and no GPU has more than M. With
    ⌈M⌉ for every GPU this is a flow with whole capacities, so that a whole split exists and none is better.
    Of an expert's tokens those go first to a replica that are at home on its GPU, then those on its node.

    Expert 0 in slots 0 (GPU 0) and 2 (GPU 1), expert 1 in slot 1 (GPU 0), which serves two tokens.

    >>> slots_LER = np.array([[[0, 2], [1, -1]]], np.int32)
    >>> copies = Copies(np.array([[2, 1]], np.int32), slots_LER, np.array([0, 0, 1], np.int32), 2, 2)
    >>> ids_LTK = np.array([[[0], [0], [0], [1], [1]]], np.int16)
    >>> balanced(ids_LTK, np.array([0, 5, 5]), copies).ravel().tolist()
    [0, 2, 2, 1, 1]

    Raises:
        PolicyError: scipy, whose solver this needs, is not installed.
    """
    slot_LTK = np.empty(ids_LTK.shape, np.int16)
    E, R = copies.slots_LER.shape[1:]
    for row, ids_TK in enumerate(ids_LTK):
        count_E, slots_ER = copies.count_LE[row], copies.slots_LER[row]
        load_E = np.bincount(ids_TK[ids_TK >= 0], minlength=E)
        gpu_ER = copies.slot_gpu_S[slots_ER]
        quota_ER = np.zeros((E, R), np.int64)
        quota_ER[:, 0] = load_E
        shared_E = (count_E > 1) & (load_E > 0)
        at_V = np.nonzero(shared_E[:, None] & (np.arange(R) < count_E[:, None]))
        if len(at_V[0]):
            base_G = np.bincount(gpu_ER[:, 0], np.where(shared_E, 0.0, load_E), minlength=copies.gpus)
            quota_ER[at_V] = _split(load_E, base_G, at_V[0], gpu_ER[at_V])
        _hand_out(ids_TK, offsets_G, count_E, slots_ER, gpu_ER, copies.gpus_per_node, quota_ER, slot_LTK[row])
    return slot_LTK


def _split(
    load_E: NDArray[np.intp],
    base_G: NDArray[Any],
    expert_V: NDArray[np.intp],
    gpu_V: NDArray[np.int32],
) -> NDArray[np.int64]:
    """[V]: assignments of each replica."""
    try:
        from scipy.optimize import linprog
        from scipy.sparse import coo_array
    except ImportError as error:
        rule = "needs scipy, which is not installed here: install it, or choose another"
        raise PolicyError(rule, field="replicas", got="balanced") from error
    experts, row_V = np.unique(expert_V, return_inverse=True)
    V, G = len(expert_V), len(base_G)
    column_V, ones_V = np.arange(V), np.ones(V)
    of_expert = coo_array((ones_V, (row_V, column_V)), shape=(len(experts), V + 1)).tocsr()
    on_gpu = coo_array(
        (
            np.append(ones_V, -np.ones(G)),
            (np.append(gpu_V, np.arange(G)), np.append(column_V, np.full(G, V))),
        ),
        shape=(G, V + 1),
    ).tocsr()
    least = np.append(np.zeros(V), 1.0)
    asked: dict[str, Any] = {"A_ub": on_gpu, "b_ub": -base_G, "A_eq": of_expert, "b_eq": load_E[experts]}
    most = linprog(least, **asked, method="highs-ds").x[V]
    whole = np.ceil(most - _TOLERANCE)
    bounds = [(0, None)] * V + [(whole, whole)]
    found = linprog(np.zeros(V + 1), **asked, bounds=bounds, integrality=1, method="highs")
    split_V: NDArray[np.int64] = np.rint(found.x[:V]).astype(np.int64)
    return split_V


@jit
def _hand_out(
    ids_TK: Any,
    offsets_G: Any,
    count_E: Any,
    slots_ER: Any,
    gpu_ER: Any,
    gpus_per_node: int,
    quota_ER: Any,
    slot_TK: Any,
) -> None:
    """Give each assignment a slot of the quota: on its token's GPU, then on its node, then anywhere."""
    K = ids_TK.shape[1]
    slot_TK[:] = -1
    for distance in range(3):
        for home in range(len(offsets_G) - 1):
            for token in range(offsets_G[home], offsets_G[home + 1]):
                for k in range(K):
                    expert = ids_TK[token, k]
                    if expert < 0 or slot_TK[token, k] >= 0:
                        continue
                    for replica in range(count_E[expert]):
                        gpu = gpu_ER[expert, replica]
                        near = distance == 2 or gpu == home
                        near |= distance == 1 and gpu // gpus_per_node == home // gpus_per_node
                        if near and quota_ER[expert, replica] > 0:
                            quota_ER[expert, replica] -= 1
                            slot_TK[token, k] = slots_ER[expert, replica]
                            break
