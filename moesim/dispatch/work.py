"""Work, and the rules by which it is counted, assignment by assignment: the hot loop.

Axes: L MoE layers, T tokens (rows sorted by home rank), K experts per token, S slots, G GPUs of the
expert-parallel group, P GPUs per node, X = L + 1 moments between layers. GPU g stands in node g // P at local
position (rail) g % P.

A *copy* is one token vector on a wire; what is counted as one belongs to the dispatch mode
(``moesim.dispatch.modes``). What stays on its own GPU is never a copy. Unless tokens return to anchors,
combine sends the same copies back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from moesim.dispatch.replayed import Replayed, count_replayed, write_copies
from traces.base.jit import jit

# Int32 where they were counted; what if they were even is asked in float64.
Counts = NDArray[np.int32] | NDArray[np.float64]


@dataclass(frozen=True)
class Work:
    """What one step asks of slots, GPUs and wires.

    Attributes:
        tokens_LS: assignments served by each slot.
        served_LG: the same, summed over the slots of each GPU.
        unique_LG: distinct tokens that have at least one slot on the GPU, those at home included.
        sent_LGG: copies from the home GPU (row) to where they first arrive (column).
        relayed_LGG: copies from an entry GPU (row) on to a GPU of its node (column).
        returned_LGG: copies from the GPU of a slot (row) to where its token goes (column), where that is not
            where the token came from; None where combine is dispatch backwards.
        asked_LGG: ``sent_LGG`` before pairs of GPUs were padded; None where they are not.
    """

    tokens_LS: NDArray[np.int32]
    served_LG: Counts
    unique_LG: Counts
    sent_LGG: Counts
    relayed_LGG: Counts
    returned_LGG: Counts | None = None
    asked_LGG: Counts | None = None

    @classmethod
    def zeros(cls, L: int, S: int, G: int, *, returned: bool) -> Self:
        """Nothing counted yet."""
        shapes = [(L, S), (L, G), (L, G), *[(L, G, G)] * (3 if returned else 2)]
        return cls(*(np.zeros(shape, np.int32) for shape in shapes))

    @classmethod
    def join(cls, blocks: Sequence[Work]) -> Work:
        """Blocks of layers, in order, as one."""
        if len(blocks) == 1:
            return blocks[0]
        names = [field.name for field in fields(cls) if getattr(blocks[0], field.name) is not None]
        return cls(**{name: np.concatenate([getattr(block, name) for block in blocks]) for name in names})


@dataclass(frozen=True)
class Routed:
    """What a counting rule looks at.

    Attributes:
        chosen: int16 slot_LTK, contiguous, the slot that serves each assignment, -1 where it was dropped; or
            rows of a trace.
        offsets_G: [G + 1]; tokens offsets_G[g] to offsets_G[g + 1] have their home on GPU g.
        gpu_S: the GPU of each slot.
        gpus_per_node: P; it divides G.
        relayed: whether copies for another node enter it once and are relayed inside it.
        path_XT: the GPU on which each token is before each layer and after the last; None where all are at
            home.
    """

    chosen: NDArray[np.int16] | Replayed
    offsets_G: NDArray[np.int64]
    gpu_S: NDArray[np.int32]
    gpus_per_node: int
    relayed: bool
    path_XT: NDArray[np.int32] | None = None

    @property
    def slot_LTK(self) -> NDArray[np.int16]:
        """Where they have been chosen: of a mode that is not ``by_rows``, always."""
        assert not isinstance(self.chosen, Replayed)
        return self.chosen


Rule = Callable[[Routed, Work], None]
"""Fills a ``Work`` of zeros, all but ``served_LG``."""


def each_slot(routed: Routed, work: Work) -> None:
    """A copy for each assignment, never relayed."""
    _count(routed, work, every=True)


def each_gpu(routed: Routed, work: Work) -> None:
    """A copy for each distinct GPU that holds one of the token's slots."""
    _count(routed, work, relayed=routed.relayed)


def every_gpu(routed: Routed, work: Work) -> None:
    """A copy for every GPU, wherever the slots are."""
    _count(routed, work)
    tokens_G = np.diff(routed.offsets_G)
    P = routed.gpus_per_node if routed.relayed else len(tokens_G)
    work.sent_LGG[:], work.relayed_LGG[:] = _to_every_gpu(tokens_G, P)


def from_anchors(routed: Routed, work: Work) -> None:
    """As :func:`each_gpu`, from where a token is before the layer; its outputs go where it is after it."""
    tables = (work.tokens_LS, work.unique_LG, work.sent_LGG, work.returned_LGG)
    _count_moving(routed.slot_LTK, routed.path_XT, routed.gpu_S, *tables)


def _count(routed: Routed, work: Work, *, every: bool = False, relayed: bool = False) -> None:
    P, way = routed.gpus_per_node, 0 if every else 2 if relayed else 1
    tables = (work.tokens_LS, work.unique_LG, work.sent_LGG, work.relayed_LGG)
    if isinstance(routed.chosen, Replayed):
        count_replayed(routed.chosen, routed.offsets_G, routed.gpu_S, P, way, *tables)
        return
    L, _, K = routed.slot_LTK.shape
    node_S = routed.gpu_S // np.int32(P)
    slot_LA = routed.slot_LTK.reshape(L, -1)
    _count_layers(slot_LA, K, routed.offsets_G, routed.gpu_S, node_S, P, way, *tables)


def _to_every_gpu(tokens_G: NDArray[np.int64], P: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(sent_GG, relayed_GG) when every GPU needs all tokens: once to each P GPUs, then among these."""
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
    way: int,
    tokens_LS: Any,
    unique_LG: Any,
    sent_LGG: Any,
    relayed_LGG: Any,
) -> None:
    """Fill the arrays of ``Work``; A = T·K assignments of a layer, token by token.

    ``way`` is 0 where each assignment is a copy, 1 where each distinct GPU of a token is, 2 where those for
    another node also enter it once: one number, for the loop is a tenth slower with two truth values.
    """
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
                    if way == 0:
                        all_G[at_gpu] += np.int32(1)
            write_copies(layer, home, P, way, all_G, distinct_G, distinct_N, unique_LG, sent_LGG, relayed_LGG)


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
