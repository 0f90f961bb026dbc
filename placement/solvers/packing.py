"""One layer in the hands of compiled code: who is where, what that costs, and the packing to begin with.

Axes: W windows, E experts, G GPUs, K the most slots of a GPU.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from placement.problem.placement import EMPTY
from traces.base.arrays import Floats, Ints
from traces.base.jit import jit, jit_inside

Bytes = npt.NDArray[np.uint8]

HELD, CLOSED, PINNED = 1, 2, 4
"""Bits of ``mark_EG``: the GPU holds the expert, must not get it, must keep it."""


class Pack(NamedTuple):
    """One layer's experts on GPUs; every function here keeps the arrays consistent.

    Attributes:
        token_EW: cost of all tokens of an expert in a window; ``quiet_EW``, ln(1 − p) for its
            probability p to be activated; ``per_active``, cost of an activated expert.
        most_E: most copies of each expert.
        room_G: slots of each GPU; ``pace_G``, one over its speed.
        worst: whether the worst window counts, instead of the mean; true where there is one.
        copies_E: copies of each expert, held or planned; ``share_EW``, the cost of each, and ``peak_E``, that
            of the worst window.
        item_GK: experts on each GPU, ``EMPTY`` from ``used_G`` on; ``mark_EG``, bits as above.
        load_GW: cost of what each GPU holds, by its speed.
        fast_N: the GPUs with slots, the fastest first.
    """

    token_EW: Floats
    quiet_EW: Floats
    per_active: float
    most_E: Ints
    room_G: Ints
    pace_G: Floats
    worst: bool
    copies_E: Ints
    share_EW: Floats
    peak_E: Floats
    item_GK: Ints
    used_G: Ints
    mark_EG: Bytes
    load_GW: Floats
    fast_N: Ints


@jit_inside
def set_copies(pack: Pack, expert: int, copies: int) -> None:
    """Plan for so many copies; loads follow when the expert is placed or its GPUs are counted again."""
    pack.copies_E[expert] = copies
    peak = 0.0
    for window in range(pack.share_EW.shape[1]):
        pack.share_EW[expert, window] = copy_share(pack, expert, copies, window)
        peak = max(peak, pack.share_EW[expert, window])
    pack.peak_E[expert] = peak


@jit_inside
def copy_share(pack: Pack, expert: int, copies: int, window: int) -> float:
    """Cost of one of so many copies; see :func:`placement.judging.evaluation.copy_cost`."""
    share: float = pack.token_EW[expert, window] / copies
    if pack.per_active > 0.0:
        share += pack.per_active * (1.0 - np.exp(pack.quiet_EW[expert, window] / copies))
    return share


@jit_inside
def put(pack: Pack, expert: int, gpu: int) -> None:
    """Add a copy to a GPU that has room for it; the caller sees to ``copies_E``."""
    pack.item_GK[gpu, pack.used_G[gpu]] = expert
    pack.used_G[gpu] += 1
    pack.mark_EG[expert, gpu] |= HELD


@jit_inside
def take(pack: Pack, gpu: int, item: int) -> None:
    """Remove the copy at an index of a GPU's items; the last takes its place."""
    expert = pack.item_GK[gpu, item]
    pack.mark_EG[expert, gpu] &= ~np.uint8(HELD)
    pack.used_G[gpu] -= 1
    pack.item_GK[gpu, item] = pack.item_GK[gpu, pack.used_G[gpu]]
    pack.item_GK[gpu, pack.used_G[gpu]] = EMPTY


@jit_inside
def count(pack: Pack, gpu: int) -> None:
    """Sum a GPU's load anew, so that rounding never adds up."""
    for window in range(pack.load_GW.shape[1]):
        load = 0.0
        for item in range(pack.used_G[gpu]):
            load += pack.share_EW[pack.item_GK[gpu, item], window]
        pack.load_GW[gpu, window] = load * pack.pace_G[gpu]


@jit_inside
def clear(pack: Pack) -> None:
    """Take every copy away; plans and rules stay."""
    for gpu in range(len(pack.room_G)):
        for item in range(pack.used_G[gpu]):
            pack.mark_EG[pack.item_GK[gpu, item], gpu] &= ~np.uint8(HELD)
            pack.item_GK[gpu, item] = EMPTY
    pack.used_G[:] = 0
    pack.load_GW[:] = 0.0


@jit
def cost(pack: Pack) -> float:
    """What the loaded GPUs cost: the objective, the prices of copies across nodes and of moves left out."""
    total = 0.0
    for window in range(pack.load_GW.shape[1]):
        largest = pack.load_GW[:, window].max()
        total = max(total, largest) if pack.worst else total + largest
    return total if pack.worst else total / pack.load_GW.shape[1]


@jit
def restore(pack: Pack, item_GK: Ints) -> None:
    """Hold exactly these copies."""
    clear(pack)
    pack.copies_E[:] = 0
    for gpu in range(len(item_GK)):
        for expert in item_GK[gpu]:
            if expert != EMPTY:
                put(pack, expert, gpu)
                pack.copies_E[expert] += 1
    for expert in range(len(pack.copies_E)):
        if pack.copies_E[expert] > 0:
            set_copies(pack, expert, pack.copies_E[expert])
    for gpu in range(len(item_GK)):
        count(pack, gpu)


@jit_inside
def largest_first(peak_E: Floats) -> Ints:
    """int64 [E], experts by falling cost of a copy, equals in their order."""
    # By insertion: numba's sorts take seconds to compile, and these few entries do not.
    order_E = np.empty(len(peak_E), np.int64)
    for expert in range(len(peak_E)):
        at = expert
        while at > 0 and peak_E[order_E[at - 1]] < peak_E[expert]:
            order_E[at] = order_E[at - 1]
            at -= 1
        order_E[at] = expert
    return order_E


@jit_inside
def keep_least(value_N: Ints, key_N: Floats, known: int, value: int, key: float) -> int:
    """Enter a value into a list of those with the least keys, least first, equals in order of entry.

    Returns:
        how many of the list's places are taken then.
    """
    at = known
    while at > 0 and key_N[at - 1] > key:
        at -= 1
        if at < len(value_N) - 1:
            value_N[at + 1], key_N[at + 1] = value_N[at], key_N[at]
    if at == len(value_N):
        return known
    value_N[at], key_N[at] = value, key
    return min(known + 1, len(value_N))


@jit_inside
def resort(peak_E: Floats, order_E: Ints, expert: int) -> None:
    """Move an expert to where the cost of its copies belongs now."""
    peak, at = peak_E[expert], 0
    while order_E[at] != expert:
        at += 1
    while at > 0 and peak_E[order_E[at - 1]] < peak:
        order_E[at] = order_E[at - 1]
        at -= 1
    while at < len(order_E) - 1 and peak_E[order_E[at + 1]] > peak:
        order_E[at] = order_E[at + 1]
        at += 1
    order_E[at] = expert


@jit_inside
def place_in_order(pack: Pack, order_E: Ints) -> bool:
    """Place all planned copies, largest first, each on the least loaded GPU with room; rules are not asked.

    Returns:
        whether all found a GPU with room that does not hold the expert yet.
    """
    clear(pack)
    # Names of their own for the arrays: a tuple that is handed on in an inner loop costs more than the loop.
    room_G, used_G, item_GK, mark_EG = pack.room_G, pack.used_G, pack.item_GK, pack.mark_EG
    load_GW, share_EW, pace_G = pack.load_GW, pack.share_EW, pack.pace_G
    gpus, windows = load_GW.shape
    # A heap of the GPUs that have something and room for more, least loaded on top.
    heap_load_G, heap_G, full = np.empty(gpus), np.empty(gpus, np.int64), 0
    peak_G, aside_G = np.zeros(gpus), np.empty(gpus, np.int64)
    begun = 0
    for expert in order_E:
        left, waiting = pack.copies_E[expert], 0
        # The first copies each go to an empty GPU, the fastest first, and need no heap.
        while left > 0 and begun < len(pack.fast_N):
            gpu = pack.fast_N[begun]
            item_GK[gpu, 0] = expert
            used_G[gpu] = 1
            mark_EG[expert, gpu] |= HELD
            for window in range(windows):
                load_GW[gpu, window] = share_EW[expert, window] * pace_G[gpu]
                peak_G[gpu] = max(peak_G[gpu], load_GW[gpu, window])
            left -= 1
            begun += 1
            if begun == len(pack.fast_N):
                for gpu in pack.fast_N[::-1]:
                    if room_G[gpu] > 1:
                        _rise(heap_load_G, heap_G, full, peak_G[gpu], gpu)
                        full += 1
        while left > 0 and full > 0:
            gpu = heap_G[0]
            if mark_EG[expert, gpu] & HELD == 0:
                item_GK[gpu, used_G[gpu]] = expert
                used_G[gpu] += 1
                mark_EG[expert, gpu] |= HELD
                for window in range(windows):
                    load_GW[gpu, window] += share_EW[expert, window] * pace_G[gpu]
                    peak_G[gpu] = max(peak_G[gpu], load_GW[gpu, window])
                left -= 1
                if left == 0 and waiting == 0 and used_G[gpu] < room_G[gpu]:
                    _sink(heap_load_G, heap_G, full, peak_G[gpu], gpu)
                    break
            # It must not get a second copy: aside with it until the expert is done.
            full -= 1
            _sink(heap_load_G, heap_G, full, heap_load_G[full], heap_G[full])
            if used_G[gpu] < room_G[gpu]:
                aside_G[waiting] = gpu
                waiting += 1
        for gpu in aside_G[:waiting]:
            _rise(heap_load_G, heap_G, full, peak_G[gpu], gpu)
            full += 1
        if left > 0:
            return False
    return True


@jit_inside
def _sink(load_N: Floats, gpu_N: Ints, full: int, load: float, gpu: int) -> None:
    """Replace the top of a heap of ``full`` entries."""
    at = 0
    while True:
        child = 2 * at + 1
        if child >= full:
            break
        if child + 1 < full and load_N[child + 1] < load_N[child]:
            child += 1
        if load_N[child] >= load:
            break
        load_N[at], gpu_N[at] = load_N[child], gpu_N[child]
        at = child
    load_N[at], gpu_N[at] = load, gpu


@jit_inside
def _rise(load_N: Floats, gpu_N: Ints, full: int, load: float, gpu: int) -> None:
    """Add to a heap that has ``full`` entries."""
    at = full
    while at > 0 and load_N[(at - 1) >> 1] > load:
        load_N[at], gpu_N[at] = load_N[(at - 1) >> 1], gpu_N[(at - 1) >> 1]
        at = (at - 1) >> 1
    load_N[at], gpu_N[at] = load, gpu
