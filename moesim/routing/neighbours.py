"""Experts that share a GPU or a node.

Axes: E logical experts, G GPUs, N nodes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moesim.routing.policy import Held


def neighbours(held: Held, reach: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int16]]:
    """(first_E, near): the experts that share a ``gpu`` or ``node`` with expert e, ascending.

    They are ``near[first_E[e] : first_E[e + 1]]``, without e itself. Of replicas one with them is enough.

    Experts 0 and 1 on GPU 0, expert 2 on GPU 1:

    >>> gpus_EG = np.array([[True, False], [True, False], [False, True]])
    >>> first_E, near = neighbours(Held(gpus_EG, np.zeros(2, np.int32)), "gpu")
    >>> first_E.tolist(), near.tolist()
    ([0, 1, 2, 2], [1, 0])
    """
    at_EX = held.gpus_EG
    if reach == "node":
        at_EX = np.stack(
            [held.gpus_EG[:, held.node_G == node].any(axis=1) for node in range(held.node_G.max() + 1)],
            axis=1,
        )
    near_EE = at_EX.astype(np.float32) @ at_EX.T.astype(np.float32) > 0
    np.fill_diagonal(near_EE, val=False)
    first_E = np.concatenate([[0], np.cumsum(near_EE.sum(axis=1))]).astype(np.int64)
    return first_E, np.nonzero(near_EE)[1].astype(np.int16)
