"""Which replica of its expert serves an assignment.

``round_robin``, ``nearest`` and ``hash`` are decided by each home rank alone. ``least_loaded`` and
``balanced`` look at the assignments of all ranks, which a server would have to exchange first.

Axes: L MoE layers, T tokens, K experts per token, E logical experts, R most replicas of an expert,
G home ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.routing.copies import Copies
from moesim.routing.replica_split import balanced
from traces.base.jit import jit

ReplicaChoice = Callable[[NDArray[np.int16], NDArray[np.int64], Copies], NDArray[np.int16]]
"""(ids_LTK, offsets_G, copies) → slot_LTK, int16: the slot that serves each assignment.

An id of -1, for no expert, stays -1. Tokens offsets_G[g] to offsets_G[g + 1] have their home on rank g.
"""

# 2³² / golden ratio: neighbours are scattered (Knuth, The Art of Computer Programming 3, section 6.4).
_GOLDEN = np.uint64(2654435769)


def round_robin(
    ids_LTK: NDArray[np.int16], offsets_G: NDArray[np.int64], copies: Copies
) -> NDArray[np.int16]:
    """Each home rank cycles through an expert's replicas, rank g starting at replica g.

    The n-th assignment (from 0) of an expert at home rank g goes to replica (g + n) mod count: spread
    evenly inside a rank, and over ranks that send only a few.

    Example: expert 0 has slots 4 and 7; rank 0 sends it three tokens, rank 1 one.

    >>> slot_gpu_S = np.repeat([0, 1], 4).astype(np.int32)
    >>> copies = Copies(np.array([[2]], np.int32), np.array([[[4, 7]]], np.int32), slot_gpu_S, 2, 2)
    >>> round_robin(np.zeros((1, 4, 1), np.int16), np.array([0, 3, 4]), copies).ravel().tolist()
    [4, 7, 4, 7]
    """
    slot_LTK = np.empty(ids_LTK.shape, np.int16)
    _in_turn(ids_LTK, offsets_G, copies.count_LE[:, None], copies.slots_LER[:, None], slot_LTK)
    return slot_LTK


def nearest(ids_LTK: NDArray[np.int16], offsets_G: NDArray[np.int64], copies: Copies) -> NDArray[np.int16]:
    """Each home rank cycles through the replicas on its own GPU, else on its node, else through all.

    Expert 0 in slots 2 (GPU 0) and 7 (GPU 1): every token finds it at home.

    >>> slot_gpu_S = np.repeat([0, 1], 4).astype(np.int32)
    >>> copies = Copies(np.array([[2]], np.int32), np.array([[[2, 7]]], np.int32), slot_gpu_S, 2, 2)
    >>> nearest(np.zeros((1, 4, 1), np.int16), np.array([0, 3, 4]), copies).ravel().tolist()
    [2, 2, 2, 7]
    """
    slot_LTK = np.empty(ids_LTK.shape, np.int16)
    E, R = copies.slots_LER.shape[1:]
    count_GE, slots_GER = np.empty((copies.gpus, E), np.int32), np.empty((copies.gpus, E, R), np.int32)
    for row in range(len(ids_LTK)):
        count_E, slots_ER = copies.count_LE[row], copies.slots_LER[row]
        _nearest(count_E, slots_ER, copies.slot_gpu_S, copies.gpus_per_node, count_GE, slots_GER)
        _in_turn(ids_LTK[row : row + 1], offsets_G, count_GE[None], slots_GER[None], slot_LTK[row : row + 1])
    return slot_LTK


def hashed(ids_LTK: NDArray[np.int16], offsets_G: NDArray[np.int64], copies: Copies) -> NDArray[np.int16]:
    """The place of an assignment in its home rank's batch, scattered by a hash, names the replica.

    No counters, so that a kernel needs no order; spread evenly only where an expert has many tokens.

    >>> slot_gpu_S = np.repeat([0, 1], 4).astype(np.int32)
    >>> copies = Copies(np.array([[2]], np.int32), np.array([[[4, 7]]], np.int32), slot_gpu_S, 2, 2)
    >>> hashed(np.zeros((1, 4, 1), np.int16), np.array([0, 3, 4]), copies).ravel().tolist()
    [4, 7, 4, 4]
    """
    slot_LTK = np.empty(ids_LTK.shape, np.int16)
    _hashed(ids_LTK, offsets_G, copies.count_LE, copies.slots_LER, slot_LTK)
    return slot_LTK


def least_loaded(
    ids_LTK: NDArray[np.int16], offsets_G: NDArray[np.int64], copies: Copies
) -> NDArray[np.int16]:
    """One token after the other takes the replica on the GPU that has least so far, of equal ones the first.

    What has no choice, experts with one replica, counts from the start.

    Expert 0 in slots 0 (GPU 0) and 2 (GPU 1), expert 1 in slot 1 (GPU 0), which serves two tokens.

    >>> slots_LER = np.array([[[0, 2], [1, -1]]], np.int32)
    >>> copies = Copies(np.array([[2, 1]], np.int32), slots_LER, np.array([0, 0, 1], np.int32), 2, 2)
    >>> ids_LTK = np.array([[[0], [0], [0], [1], [1]]], np.int16)
    >>> least_loaded(ids_LTK, np.array([0, 5, 5]), copies).ravel().tolist()
    [2, 2, 0, 1, 1]
    """
    slot_LTK = np.empty(ids_LTK.shape, np.int16)
    _least_loaded(ids_LTK, copies.count_LE, copies.slots_LER, copies.slot_gpu_S, copies.gpus, slot_LTK)
    return slot_LTK


REPLICA_CHOICES: Mapping[str, ReplicaChoice] = MappingProxyType(
    {
        "round_robin": round_robin,
        "nearest": nearest,
        "hash": hashed,
        "least_loaded": least_loaded,
        "balanced": balanced,
    }
)

AGREED = frozenset({"least_loaded", "balanced"})
"""Those for which ranks must first tell each other what they have."""


@jit
def _nearest(
    count_E: Any, slots_ER: Any, gpu_S: Any, gpus_per_node: int, count_GE: Any, slots_GER: Any
) -> None:
    """Write the slots that are nearest to each GPU, ascending, and how many these are."""
    G, E = count_GE.shape
    for gpu in range(G):
        for expert in range(E):
            nearest, count = 3, 0
            for replica in range(count_E[expert]):
                slot = slots_ER[expert, replica]
                distance = 0 if gpu_S[slot] == gpu else 2
                if distance and gpu_S[slot] // gpus_per_node == gpu // gpus_per_node:
                    distance = 1
                if distance < nearest:
                    nearest, count = distance, 0
                if distance == nearest:
                    slots_GER[gpu, expert, count] = slot
                    count += 1
            count_GE[gpu, expert] = count


@jit
def _in_turn(ids_LTK: Any, offsets_G: Any, count_LHE: Any, slots_LHER: Any, slot_LTK: Any) -> None:
    """Cycle through slots_LHER; H is 1 where all home ranks choose from the same."""
    L, _, K = ids_LTK.shape
    H, E = count_LHE.shape[1:]
    next_E = np.empty(E, np.int32)
    for layer in range(L):
        for home in range(len(offsets_G) - 1):
            count_E = count_LHE[layer, home % H]
            slots_ER = slots_LHER[layer, home % H]
            for expert in range(E):
                next_E[expert] = home % count_E[expert]
            for token in range(offsets_G[home], offsets_G[home + 1]):
                for k in range(K):
                    expert = ids_LTK[layer, token, k]
                    if expert < 0:
                        slot_LTK[layer, token, k] = -1
                        continue
                    replica = next_E[expert]
                    slot_LTK[layer, token, k] = slots_ER[expert, replica]
                    replica += 1
                    next_E[expert] = 0 if replica == count_E[expert] else replica


@jit
def _hashed(ids_LTK: Any, offsets_G: Any, count_LE: Any, slots_LER: Any, slot_LTK: Any) -> None:
    L, _, K = ids_LTK.shape
    for layer in range(L):
        count_E, slots_ER = count_LE[layer], slots_LER[layer]
        for home in range(len(offsets_G) - 1):
            first = offsets_G[home]
            for token in range(first, offsets_G[home + 1]):
                for k in range(K):
                    expert = ids_LTK[layer, token, k]
                    if expert < 0:
                        slot_LTK[layer, token, k] = -1
                        continue
                    # The high bits of a product of 32 bits, as a fraction of the count.
                    scattered = (np.uint64((token - first) * K + k) * _GOLDEN) & np.uint64(0xFFFFFFFF)
                    replica = (scattered * np.uint64(count_E[expert])) >> np.uint64(32)
                    slot_LTK[layer, token, k] = slots_ER[expert, np.int64(replica)]


@jit
def _least_loaded(ids_LTK: Any, count_LE: Any, slots_LER: Any, gpu_S: Any, gpus: int, slot_LTK: Any) -> None:
    L, T, K = ids_LTK.shape
    for layer in range(L):
        count_E, slots_ER = count_LE[layer], slots_LER[layer]
        load_G = np.zeros(gpus, np.int64)
        for token in range(T):
            for k in range(K):
                expert = ids_LTK[layer, token, k]
                if expert < 0:
                    slot_LTK[layer, token, k] = -1
                elif count_E[expert] == 1:
                    slot_LTK[layer, token, k] = slots_ER[expert, 0]
                    load_G[gpu_S[slots_ER[expert, 0]]] += 1
        for token in range(T):
            for k in range(K):
                expert = ids_LTK[layer, token, k]
                if expert < 0 or count_E[expert] == 1:
                    continue
                best = slots_ER[expert, 0]
                for replica in range(1, count_E[expert]):
                    slot = slots_ER[expert, replica]
                    if load_G[gpu_S[slot]] < load_G[gpu_S[best]]:
                        best = slot
                slot_LTK[layer, token, k] = best
                load_G[gpu_S[best]] += 1
