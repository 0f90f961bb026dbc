"""Counting the work of one step, assignment by assignment: the hot loop.

Axes: L MoE layers, T tokens (rows sorted by home rank), K experts per token, S slots, G GPUs of the
expert-parallel group, P GPUs per node. GPU g stands in node g // P at local position (rail) g % P.

A *copy* is one token vector on a wire. What is counted as one belongs to the dispatch mode:

- ``per_expert``: one copy for each assignment whose slot is on another GPU.
- ``per_gpu``: one copy for each distinct other GPU that holds one of the token's slots.
- ``per_node``: inside the home node as ``per_gpu``; to every other node one copy, over the NIC, to the
  *entry* GPU (the one of the home GPU's rail), which relays it to each further GPU of its node.

- ``all_gather`` and ``all_reduce``: every token to every GPU, over the same two hops, wherever its experts
  are. ``all_gather`` combines by a reduce-scatter, which is the way back; ``all_reduce`` leaves the sums on
  every GPU, which is the way back and then there again (Patarasuk and Yuan 2009: (G - 1) / G of the data
  through each port for each of the two halves).

- ``expert_to_expert``: as ``per_gpu``, but a token is not always at home. It starts there, and after each
  layer it is on its *anchor* (``moesim.dispatch.anchor``): the outputs are combined there, and the next layer
  dispatches from there. The last layer of a step combines at home. A token that no slot serves goes as it is.

What stays on its own GPU is never a copy. But for ``expert_to_expert``, combine sends the same copies back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.dispatch.anchor import path_XT
from moesim.dispatch.modes import MODES, DispatchMode
from traces.base.jit import jit


@dataclass(frozen=True)
class Work:
    """What one step asks of slots, GPUs and wires. All counts are int32.

    Attributes:
        tokens_LS: assignments served by each slot.
        served_LG: the same, summed over the slots of each GPU.
        unique_LG: distinct tokens that have at least one slot on the GPU, those at home included.
        sent_LGG: copies from the home GPU (row) to where they first arrive (column).
        relayed_LGG: copies from an entry GPU (row) on to a GPU of its node (column).
        returned_LGG: copies from the GPU of a slot (row) to where its token goes (column), where that is not
            where the token came from; None where combine is dispatch backwards.
    """

    tokens_LS: NDArray[np.int32]
    served_LG: NDArray[np.int32]
    unique_LG: NDArray[np.int32]
    sent_LGG: NDArray[np.int32]
    relayed_LGG: NDArray[np.int32]
    returned_LGG: NDArray[np.int32] | None = None

    @classmethod
    def join(cls, blocks: Sequence[Work]) -> Work:
        """Blocks of layers, in order, as one."""
        if len(blocks) == 1:
            return blocks[0]
        names = [field.name for field in fields(cls) if getattr(blocks[0], field.name) is not None]
        return cls(*(np.concatenate([getattr(block, name) for block in blocks]) for name in names))


def count_work(
    slot_LTK: NDArray[np.int16],
    offsets_G: NDArray[np.int64],
    slot_gpu_S: NDArray[np.int32],
    gpus_per_node: int,
    mode: DispatchMode,
    *,
    pad: bool = False,
    path: NDArray[np.int32] | None = None,
) -> Work:
    """Count the work of the chosen slots.

    Args:
        slot_LTK: the slot that serves each assignment; -1 where it was dropped.
        offsets_G: [G + 1]; tokens offsets_G[g] to offsets_G[g + 1] have their home on GPU g.
        slot_gpu_S: the GPU of each slot.
        gpus_per_node: P; it divides G.
        mode: what counts as a copy.
        pad: whether each pair of GPUs sends as many copies as the pair of its layer that needs most.
        path: [L + 1, T] for ``expert_to_expert``: the GPU on which each token is before each layer and after
            the last; by default it follows anchors without weights, from home and back.

    Example: one node of two GPUs, one slot each, one token at home on GPU 0 that visits both slots:
    ``tokens`` is [1, 1] and one copy goes 0 → 1.

    >>> work = count_work(np.array([[[0, 1]]], np.int16), np.array([0, 1, 1]),
    ...                   np.array([0, 1], np.int32), 2, "per_gpu")
    >>> work.tokens_LS.tolist(), work.sent_LGG.tolist()
    ([[1, 1]], [[[0, 1], [0, 0]]])
    """
    L, _, K = slot_LTK.shape
    G, S, P = len(offsets_G) - 1, len(slot_gpu_S), gpus_per_node
    work = Work(
        np.zeros((L, S), np.int32),
        np.zeros((L, G), np.int32),
        np.zeros((L, G), np.int32),
        np.zeros((L, G, G), np.int32),
        np.zeros((L, G, G), np.int32),
        np.zeros((L, G, G), np.int32) if mode == "expert_to_expert" else None,
    )
    slots, gpu_S = np.ascontiguousarray(slot_LTK, np.int16), slot_gpu_S.astype(np.int32)
    if work.returned_LGG is not None:
        if path is None:
            home_T = np.repeat(np.arange(G, dtype=np.int32), np.diff(offsets_G))
            path = path_XT(slots, None, home_T, gpu_S)
            path[-1] = home_T
        _count_moving(slots, path, gpu_S, work.tokens_LS, work.unique_LG, work.sent_LGG, work.returned_LGG)
    else:
        _count_layers(
            slots.reshape(L, -1),
            K,
            offsets_G,
            gpu_S,
            gpu_S // np.int32(P),
            P,
            MODES.index(mode),
            work.tokens_LS,
            work.unique_LG,
            work.sent_LGG,
            work.relayed_LGG,
        )
    np.add.at(work.served_LG.T, slot_gpu_S, work.tokens_LS.T)
    if mode in ("all_gather", "all_reduce"):
        work.sent_LGG[:], work.relayed_LGG[:] = _to_every_gpu(np.diff(offsets_G), P)
    if pad:
        most_L11 = work.sent_LGG.max(axis=(1, 2), keepdims=True)
        work.sent_LGG[:] = most_L11 * (1 - np.eye(G, dtype=np.int32))
    return work


def _to_every_gpu(tokens_G: NDArray[np.int64], P: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(sent_GG, relayed_GG) when every GPU needs all tokens: once over the NIC, then inside the node."""
    G = len(tokens_G)
    gpu_G = np.arange(G)
    same_node_GG = gpu_G[:, None] // P == gpu_G[None, :] // P
    entry_GG = gpu_G[:, None] % P == gpu_G[None, :] % P
    sent_GG = np.where((same_node_GG | entry_GG) & ~np.eye(G, dtype=bool), tokens_G[:, None], 0)
    # What enters over its NIC a GPU relays to the others of its node.
    entered_G = np.where(entry_GG & ~same_node_GG, tokens_G[:, None], 0).sum(axis=0)
    relayed_GG = np.where(same_node_GG & ~np.eye(G, dtype=bool), entered_G[:, None], 0)
    return sent_GG.astype(np.int32), relayed_GG.astype(np.int32)


@jit
def _count_layers(
    slot_LA: Any,
    K: int,
    offsets_G: Any,
    gpu_S: Any,
    node_S: Any,
    P: int,
    mode: int,
    tokens_LS: Any,
    unique_LG: Any,
    sent_LGG: Any,
    relayed_LGG: Any,
) -> None:
    """Fill the arrays of ``Work``; A = T·K assignments of a layer, token by token."""
    G = len(offsets_G) - 1
    N = G // P
    # The token that last touched a GPU or node: a stamp is one load and one store, clearing a set costs G.
    seen_G = np.empty(G, np.int32)
    seen_N = np.empty(N, np.int32)
    all_G = np.empty(G, np.int32)
    distinct_G = np.empty(G, np.int32)
    distinct_N = np.empty(N, np.int32)
    for layer in range(len(slot_LA)):
        slot_A = slot_LA[layer]
        tokens_S = tokens_LS[layer]
        seen_G[:] = -1
        seen_N[:] = -1
        for home in range(G):
            all_G[:] = 0
            distinct_G[:] = 0
            distinct_N[:] = 0
            # Unsigned indices spare numba's test for negative ones: three times as fast.
            a: Any = np.uintp(offsets_G[home] * K)
            for row in range(offsets_G[home], offsets_G[home + 1]):
                token = np.int32(row)
                for _ in range(K):
                    chosen = slot_A[a]
                    a += np.uintp(1)
                    if chosen < 0:
                        continue
                    slot: Any = np.uintp(chosen)
                    tokens_S[slot] += np.int32(1)
                    at_gpu: Any = np.uintp(gpu_S[slot])
                    at_node: Any = np.uintp(node_S[slot])
                    # Adding the comparison, not branching on it: which GPU is new cannot be predicted.
                    distinct_G[at_gpu] += np.int32(seen_G[at_gpu] != token)
                    seen_G[at_gpu] = token
                    distinct_N[at_node] += np.int32(seen_N[at_node] != token)
                    seen_N[at_node] = token
                    if mode == 0:
                        all_G[at_gpu] += np.int32(1)
            for gpu in range(G):
                unique_LG[layer, gpu] += distinct_G[gpu]
                sent_LGG[layer, home, gpu] = all_G[gpu] if mode == 0 else distinct_G[gpu]
            if mode == 2:
                for node in range(N):
                    if node == home // P:
                        continue
                    entry = node * P + home % P
                    for gpu in range(node * P, node * P + P):
                        sent_LGG[layer, home, gpu] = 0
                        if gpu != entry:
                            relayed_LGG[layer, entry, gpu] += distinct_G[gpu]
                    sent_LGG[layer, home, entry] = distinct_N[node]
            sent_LGG[layer, home, home] = 0


@jit
def _count_moving(
    slot_LTK: Any,
    path: Any,
    gpu_S: Any,
    tokens_LS: Any,
    unique_LG: Any,
    sent_LGG: Any,
    returned_LGG: Any,
) -> None:
    """Fill the arrays of ``Work`` for tokens that are on ``path[layer]`` before a layer."""
    L, T, K = slot_LTK.shape
    seen_G = np.empty(unique_LG.shape[1], np.int32)
    for layer in range(L):
        seen_G[:] = -1
        for token in range(T):
            here, there = path[layer, token], path[layer + 1, token]
            served = False
            for k in range(K):
                slot = slot_LTK[layer, token, k]
                if slot < 0:
                    continue
                served = True
                tokens_LS[layer, slot] += 1
                gpu = gpu_S[slot]
                if seen_G[gpu] == token:
                    continue
                seen_G[gpu] = token
                unique_LG[layer, gpu] += 1
                if gpu != here:
                    sent_LGG[layer, here, gpu] += 1
                if gpu != there:
                    returned_LGG[layer, gpu, there] += 1
            if here != there and not served:
                returned_LGG[layer, here, there] += 1
