"""Counting straight from the trace, where tokens go to the copies of what the router chose, in turn.

One pass over the trace's own bytes: no experts gathered, no slots written down. Rows of one home rank at a
time, so that they stay in a near cache for all layers.

Axes as in :mod:`moesim.dispatch.work`; R most replicas of an expert, N nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from traces.base.jit import jit, jit_inside

_BITS = 64

# 64 counters of seven bits, the bits of one weight in a word each: 127 tokens before they are read.
_NONE = (np.uint64(0),) * 7
_MOST = 127


@dataclass(frozen=True)
class Replayed:
    """Assignments of a step as they stand in a trace.

    The n-th assignment (from 0) of an expert at home rank g goes to its replica (g + n) mod count, as
    ``round_robin`` has it (``moesim.routing.replicas``).

    Attributes:
        ids_TLK: unsigned, contiguous: the experts of all rows of the trace.
        row_B: the row of each token of the step, sorted by home rank.
        count_LE: replicas of each expert.
        slots_LER: their slots, ascending; entries beyond the count are not read.
    """

    ids_TLK: NDArray[np.uint8] | NDArray[np.uint16]
    row_B: NDArray[np.int64]
    count_LE: NDArray[np.int32]
    slots_LER: NDArray[np.int32]


def count_replayed(
    replayed: Replayed,
    offsets_G: NDArray[np.int64],
    gpu_S: NDArray[np.int32],
    P: int,
    way: int,
    tokens_LS: NDArray[Any],
    unique_LG: NDArray[Any],
    sent_LGG: NDArray[Any],
    relayed_LGG: NDArray[Any],
) -> None:
    """Fill the tables, which hold zeros.

    Args:
        way: 0 where each assignment is a copy, 1 where each distinct GPU of a token is, 2 where those for
            another node also enter it once.
    """
    T, _, K = replayed.ids_TLK.shape
    _count_replayed(
        replayed.ids_TLK.reshape(T, -1),
        K,
        replayed.row_B,
        offsets_G,
        replayed.count_LE,
        replayed.slots_LER,
        gpu_S,
        P,
        way,
        tokens_LS,
        unique_LG,
        sent_LGG,
        relayed_LGG,
    )


@jit
def _count_replayed(
    ids_TA: Any,
    K: int,
    row_B: Any,
    offsets_G: Any,
    count_LE: Any,
    slots_LER: Any,
    gpu_S: Any,
    P: int,
    way: int,
    tokens_LS: Any,
    unique_LG: Any,
    sent_LGG: Any,
    relayed_LGG: Any,
) -> None:
    L, E = count_LE.shape
    S, G = len(gpu_S), len(offsets_G) - 1
    # Distinct places of a token: its GPUs, and behind them its nodes where copies enter these once.
    D = G + G // P if way == 2 else G
    node_S = G + gpu_S // P
    tokens_E, tokens_S = np.zeros(E, np.int32), np.zeros(S, np.int32)
    slot_E, next_E, bits_LE = np.empty(E, np.int32), np.empty(E, np.int32), np.zeros((L, E), np.uint64)
    alone_L = np.zeros(L, np.bool_)
    for layer in range(L):
        alone_L[layer] = D <= _BITS and count_LE[layer].max() == 1
        for expert in range(E):
            slot = slots_LER[layer, expert, 0]
            bits_LE[layer, expert] = np.uint64(1) << np.uint64(gpu_S[slot] % _BITS)
            if way == 2:
                bits_LE[layer, expert] |= np.uint64(1) << np.uint64(node_S[slot] % _BITS)
    all_G, distinct_D = np.empty(G, np.int32), np.empty(D, np.int32)
    seen_D, stamp = np.zeros(D, np.int32), np.int32(0)
    for home in range(G):
        rows_B = row_B[offsets_G[home] : offsets_G[home + 1]]
        for layer in range(L):
            all_G[:] = 0
            distinct_D[:] = 0
            ids_TK = ids_TA[:, layer * K : layer * K + K]
            count_E, slots_ER = count_LE[layer], slots_LER[layer]
            if alone_L[layer]:
                _alone(ids_TK, rows_B, bits_LE[layer], tokens_E, distinct_D)
                for expert in range(E):
                    tokens_S[slots_ER[expert, 0]] = tokens_E[expert]
                    tokens_E[expert] = 0
            else:
                for expert in range(E):
                    # A remainder takes as long as twenty of these steps.
                    next_E[expert] = home % count_E[expert] if count_E[expert] > 1 else 0
                    slot_E[expert] = slots_ER[expert, next_E[expert]]
                places = (gpu_S, node_S, seen_D, stamp, way == 2)
                stamp = _in_turn(
                    ids_TK, rows_B, count_E, slots_ER, next_E, slot_E, places, tokens_S, distinct_D
                )
            for slot in range(S):
                tokens_LS[layer, slot] += tokens_S[slot]
                all_G[gpu_S[slot]] += tokens_S[slot]
                tokens_S[slot] = 0
            write_copies(
                layer, home, P, way, all_G, distinct_D[:G], distinct_D[G:], unique_LG, sent_LGG, relayed_LGG
            )


@jit_inside
def _alone(ids_TK: Any, rows_B: Any, bits_E: Any, tokens_E: Any, distinct_D: Any) -> None:
    """Tokens of a home rank whose experts have one slot each: the places of a token are bits of a word."""
    planes, counted = _NONE, 0
    for b in range(len(rows_B)):
        row: Any = np.uintp(rows_B[b])
        places = np.uint64(0)
        for k in range(ids_TK.shape[1]):
            # Unsigned indices spare numba's test for negative ones.
            expert: Any = np.uintp(ids_TK[row, np.uintp(k)])
            tokens_E[expert] += np.int32(1)
            places |= bits_E[expert]
        planes = _counted(planes, places)
        counted += 1
        if counted == _MOST or b == len(rows_B) - 1:
            for place in range(len(distinct_D)):
                distinct_D[place] += _count(planes, np.uint64(place))
            planes, counted = _NONE, 0


@jit_inside
def _in_turn(
    ids_TK: Any,
    rows_B: Any,
    count_E: Any,
    slots_ER: Any,
    next_E: Any,
    slot_E: Any,
    places: Any,
    tokens_S: Any,
    distinct_D: Any,
) -> Any:
    """Tokens of a home rank whose experts may have several slots; stamps tell which places are new."""
    gpu_S, node_S, seen_D, stamp, by_node = places
    for b in range(len(rows_B)):
        row: Any = np.uintp(rows_B[b])
        stamp += np.int32(1)
        for k in range(ids_TK.shape[1]):
            expert: Any = np.uintp(ids_TK[row, np.uintp(k)])
            slot: Any = np.uintp(slot_E[expert])
            tokens_S[slot] += np.int32(1)
            if count_E[expert] > 1:
                following = next_E[expert] + np.int32(1)
                if following == count_E[expert]:
                    following = np.int32(0)
                next_E[expert] = following
                slot_E[expert] = slots_ER[expert, np.uintp(following)]
            gpu: Any = np.uintp(gpu_S[slot])
            # Adding the comparison, not branching on it: which GPU is new cannot be predicted.
            distinct_D[gpu] += np.int32(seen_D[gpu] != stamp)
            seen_D[gpu] = stamp
            if by_node:
                node: Any = np.uintp(node_S[slot])
                distinct_D[node] += np.int32(seen_D[node] != stamp)
                seen_D[node] = stamp
    return stamp


@jit_inside
def _counted(planes: Any, places: Any) -> Any:
    """Each of 64 counters one higher where its bit is set: plane by plane, with what is carried."""
    a, b, c, d, e, f, g = planes
    to_b = a & places
    to_c = b & to_b
    to_d = c & to_c
    to_e = d & to_d
    to_f = e & to_e
    to_g = f & to_f
    return a ^ places, b ^ to_b, c ^ to_c, d ^ to_d, e ^ to_e, f ^ to_f, g ^ to_g


@jit_inside
def _count(planes: Any, place: Any) -> Any:
    """The counter of a bit."""
    count = np.int32(0)
    for i in range(len(planes)):
        count += np.int32((planes[i] >> place) & np.uint64(1)) << np.int32(i)
    return count


@jit_inside
def write_copies(
    layer: int,
    home: int,
    P: int,
    way: int,
    all_G: Any,
    distinct_G: Any,
    distinct_N: Any,
    unique_LG: Any,
    sent_LGG: Any,
    relayed_LGG: Any,
) -> None:
    """Write down the copies of one home rank.

    Args:
        all_G: assignments to each GPU.
        distinct_G, distinct_N: its tokens that go to each GPU, and to each node.
    """
    G = len(all_G)
    for gpu in range(G):
        unique_LG[layer, gpu] += distinct_G[gpu]
        sent_LGG[layer, home, gpu] = all_G[gpu] if way == 0 else distinct_G[gpu]
    if way == 2:
        for node in range(G // P):
            if node == home // P:
                continue
            entry = node * P + home % P
            for gpu in range(node * P, node * P + P):
                sent_LGG[layer, home, gpu] = 0
                if gpu != entry:
                    relayed_LGG[layer, entry, gpu] += distinct_G[gpu]
            sent_LGG[layer, home, entry] = distinct_N[node]
    sent_LGG[layer, home, home] = 0
