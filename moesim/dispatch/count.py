"""Counting the work of one step in a dispatch mode."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from moesim.dispatch.anchor import path_XT
from moesim.dispatch.modes import MODES
from moesim.dispatch.replayed import Replayed
from moesim.dispatch.work import Routed, Work


def count_work(
    chosen: NDArray[np.int16] | Replayed,
    offsets_G: NDArray[np.int64],
    slot_gpu_S: NDArray[np.int32],
    gpus_per_node: int,
    mode: str,
    *,
    pad: bool = False,
    path: NDArray[np.int32] | None = None,
) -> Work:
    """Count the work of the chosen slots, or of rows of a trace; the first arguments as in :class:`Routed`.

    Args:
        mode: a name of ``MODES``.
        pad: whether each pair of GPUs sends as many copies as the pair of its layer that needs most.
        path: ``path_XT`` where outputs go to anchors; by default it follows anchors without weights, from
            home and back.

    Example: one node of two GPUs, one slot each, one token at home on GPU 0 that visits both slots:
    ``tokens`` is [1, 1] and one copy goes 0 → 1.

    >>> work = count_work(np.array([[[0, 1]]], np.int16), np.array([0, 1, 1]),
    ...                   np.array([0, 1], np.int32), 2, "per_gpu")
    >>> work.tokens_LS.tolist(), work.sent_LGG.tolist()
    ([[1, 1]], [[[0, 1], [0, 0]]])
    """
    record, G = MODES[mode], len(offsets_G) - 1
    gpu_S, moves = slot_gpu_S.astype(np.int32), record.returns == "anchor"
    if isinstance(chosen, Replayed):
        L = len(chosen.count_LE)
    else:
        chosen = np.ascontiguousarray(chosen, np.int16)
        L = len(chosen)
        if moves and path is None:
            home_T = np.repeat(np.arange(G, dtype=np.int32), np.diff(offsets_G))
            path = path_XT(chosen, None, home_T, gpu_S, home_T)
    work = Work.zeros(L, len(gpu_S), G, returned=moves)
    record.count(Routed(chosen, offsets_G, gpu_S, gpus_per_node, record.relayed, path), work)
    np.add.at(work.served_LG.T, gpu_S, work.tokens_LS.T)
    return padded(work) if pad else work


def padded(work: Work) -> Work:
    """The same work where each pair of GPUs sends as many copies as the pair of its layer that needs most."""
    asked_LGG = work.sent_LGG if work.asked_LGG is None else work.asked_LGG
    most_L11 = asked_LGG.max(axis=(1, 2), keepdims=True)
    apart_GG = 1 - np.eye(asked_LGG.shape[1], dtype=asked_LGG.dtype)
    return replace(work, sent_LGG=most_L11 * apart_GG, asked_LGG=asked_LGG)
