"""Which replica of its expert serves an assignment. Every choice is made by the home rank alone.

Axes: L MoE layers, T tokens, K experts per token, E logical experts, R most replicas of an expert,
G home ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.routing.copies import Copies
from traces.jit import jit

ReplicaChoice = Callable[[NDArray[np.int16], NDArray[np.int64], Copies], NDArray[np.int16]]


def round_robin(
    ids_LTK: NDArray[np.int16], offsets_G: NDArray[np.int64], copies: Copies
) -> NDArray[np.int16]:
    """Let each home rank cycle through the replicas of an expert, rank g starting at replica g.

    The n-th assignment (from 0) of an expert at home rank g goes to replica (g + n) mod count: spread
    evenly inside a rank, and over ranks that send only a few. Needs no message between ranks.

    Args:
        ids_LTK: logical experts; -1 (dropped) stays -1.
        offsets_G: [G + 1]; tokens offsets_G[g] to offsets_G[g + 1] have their home on rank g.
        copies: of the experts of these layers.

    Returns:
        slot_LTK, int16: the slot that serves each assignment.

    Example: expert 0 has slots 4 and 7; rank 0 sends it three tokens, rank 1 one.

    >>> slot_gpu_S = np.repeat([0, 1], 4).astype(np.int32)
    >>> copies = Copies(np.array([[2]], np.int32), np.array([[[4, 7]]], np.int32), slot_gpu_S, 2, 2)
    >>> round_robin(np.zeros((1, 4, 1), np.int16), np.array([0, 3, 4]), copies).ravel().tolist()
    [4, 7, 4, 7]
    """
    slot_LTK = np.empty(ids_LTK.shape, np.int16)
    _round_robin(ids_LTK, offsets_G, copies.count_LE, copies.slots_LER, slot_LTK)
    return slot_LTK


@jit
def _round_robin(ids_LTK: Any, offsets_G: Any, count_LE: Any, slots_LER: Any, slot_LTK: Any) -> None:
    L, _, K = ids_LTK.shape
    E = count_LE.shape[1]
    next_E = np.empty(E, np.int32)
    for layer in range(L):
        count_E = count_LE[layer]
        slots_ER = slots_LER[layer]
        for home in range(len(offsets_G) - 1):
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


REPLICA_CHOICES: dict[str, ReplicaChoice] = {"round_robin": round_robin}
