"""Where a token is between MoE layers where outputs return to anchors: it stays where its expert was.

Axes: L MoE layers, X = L + 1 moments between them, T tokens, K experts per token, S slots.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from traces.base.jit import jit


def anchor_T(
    slot_TK: NDArray[np.int16],
    weights_TK: NDArray[np.float32] | None,
    here_T: NDArray[np.int32],
    slot_gpu_S: NDArray[np.int32],
) -> NDArray[np.int32]:
    """The GPU on which each token's outputs of a layer are combined, and from which it goes on.

    It is the GPU of the served assignment with the largest gate weight, of equal ones the first; without
    weights that of the first served one. A token that no slot serves stays where it is.

    Args:
        slot_TK: the slot that serves each assignment; -1 where it was dropped.
        weights_TK: gate weights without NaN, ignored where the slot is -1; None where the trace has none.
        here_T: the GPU on which each token is before the layer.
        slot_gpu_S: the GPU of each slot.

    Returns:
        int32: the GPU on which each token is after the layer.

    Example: slots 0 to 2 on GPUs 4 to 6. The first token's larger weight is slot 2's, but it was dropped
    from there; the second token was dropped everywhere and stays on GPU 9.

    >>> slot_TK = np.array([[0, 1, -1], [-1, -1, -1]], np.int16)
    >>> weights_TK = np.array([[0.1, 0.3, 0.6], [0.2, 0.2, 0.2]], np.float32)
    >>> anchor_T(slot_TK, weights_TK, np.array([9, 9], np.int32), np.array([4, 5, 6], np.int32)).tolist()
    [5, 9]
    """
    if weights_TK is None:
        weights_TK = np.zeros(slot_TK.shape, np.float32)
    gpu_T = here_T.astype(np.int32)
    _anchor(
        np.ascontiguousarray(slot_TK, np.int16),
        np.ascontiguousarray(weights_TK, np.float32),
        slot_gpu_S.astype(np.int32),
        gpu_T,
    )
    return gpu_T


def path_XT(
    slot_LTK: NDArray[np.int16],
    weights_LTK: NDArray[np.float32] | None,
    here_T: NDArray[np.int32],
    slot_gpu_S: NDArray[np.int32],
    home_T: NDArray[np.int32] | None = None,
) -> NDArray[np.int32]:
    """The GPU on which each token is before each of some layers in a row, and after the last of them.

    ``home_T``: where the last of them ends a step, all tokens go home after it.

    >>> slot_LTK = np.array([[[2, 0]], [[1, 0]]], np.int16)
    >>> path_XT(slot_LTK, None, np.array([0], np.int32), np.array([0, 1, 2], np.int32)).ravel().tolist()
    [0, 2, 1]
    """
    path = np.empty((len(slot_LTK) + 1, len(here_T)), np.int32)
    path[0] = here_T
    for layer, slot_TK in enumerate(slot_LTK):
        weights_TK = None if weights_LTK is None else weights_LTK[layer]
        path[layer + 1] = anchor_T(slot_TK, weights_TK, path[layer], slot_gpu_S)
    if home_T is not None:
        path[-1] = home_T
    return path


@jit
def _anchor(slot_TK: Any, weights_TK: Any, gpu_S: Any, gpu_T: Any) -> None:
    T, K = slot_TK.shape
    for token in range(T):
        heaviest = -1
        for k in range(K):
            if slot_TK[token, k] < 0:
                continue
            if heaviest < 0 or weights_TK[token, k] > weights_TK[token, heaviest]:
                heaviest = k
        if heaviest >= 0:
            gpu_T[token] = gpu_S[slot_TK[token, heaviest]]
