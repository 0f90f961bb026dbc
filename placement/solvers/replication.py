"""How many copies of each expert: by the largest share, then by what packing the copies shows."""

from __future__ import annotations

import numpy as np

from placement.problem.placement import EMPTY
from placement.solvers.packing import (
    Pack,
    cost,
    keep_least,
    largest_first,
    place_in_order,
    resort,
    set_copies,
)
from traces.base.arrays import Floats, Ints
from traces.base.jit import jit_inside

_DONORS = 8
"""Experts whose spare copy is cheapest to lose; as many are tried for each expert that may get it."""


@jit_inside
def replicate(pack: Pack, slots: int) -> None:
    """Plan the copies: each slot beyond one for each expert goes to the one with the costliest copy."""
    for expert in range(len(pack.copies_E)):
        set_copies(pack, expert, 1)
    order_E = largest_first(pack.peak_E)
    for _ in range(slots - len(order_E)):
        for expert in order_E:
            if pack.copies_E[expert] < pack.most_E[expert]:
                set_copies(pack, expert, pack.copies_E[expert] + 1)
                resort(pack.peak_E, order_E, expert)
                break


@jit_inside
def replan(pack: Pack, bound: float, enough: float, packings: int) -> bool:
    """Move spare copies from expert to expert where the packing that follows is better; leaves the best.

    What is to fall is not the cost, which often stays while several GPUs set it, but the excess of all GPUs
    over a target between ``bound`` and the best cost so far. The target falls when it is reached and rises
    when nothing helps.

    Args:
        enough: a cost to stop at.
        packings: how many to try, and so the time; about 10 µs each with 288 slots.

    Returns:
        whether all copies that were planned could be packed to begin with.
    """
    order_E = largest_first(pack.peak_E)
    if not place_in_order(pack, order_E):
        return False
    best, low = cost(pack), bound
    best_E = pack.copies_E.copy()
    while packings > 0 and best > enough and best - low > 1e-3 * low:
        target = 0.5 * (low + best)
        share = target / cost(pack)
        target_W = np.empty(pack.load_GW.shape[1])
        for window in range(len(target_W)):
            target_W[window] = target if pack.worst else share * pack.load_GW[:, window].max()
        reached = False
        while packings > 0 and not reached:
            expert, donor, tried = _best_change(pack, order_E, target_W)
            packings -= tried
            if expert == EMPTY:
                break
            _change(pack, order_E, expert, donor)
            place_in_order(pack, order_E)
            if cost(pack) < best:
                best = cost(pack)
                best_E = pack.copies_E.copy()
            reached = best <= target
        if not reached:
            low = target
    for expert in range(len(best_E)):
        set_copies(pack, expert, best_E[expert])
    return place_in_order(pack, largest_first(pack.peak_E))


@jit_inside
def _best_change(pack: Pack, order_E: Ints, target_W: Floats) -> tuple[int, int, int]:
    """The expert to get a copy, the donor, and the packings tried; the expert is −1 if none helps."""
    least = _excess(pack, target_W) * (1.0 - 1e-9)
    found = (EMPTY, EMPTY)
    tried = 1
    gpu = np.argmax(pack.load_GW) // pack.load_GW.shape[1]
    # Of the worst GPU's copies, the largest shrinks most, and the smallest where large ones cannot.
    ends = (pack.item_GK[gpu, 0], pack.item_GK[gpu, pack.used_G[gpu] - 1])
    donor_D = _donors(pack)
    for turn in range(2):
        expert = ends[turn]
        if pack.copies_E[expert] >= pack.most_E[expert] or (turn == 1 and ends[0] == ends[1]):
            continue
        for donor in donor_D:
            if donor == expert:
                continue
            _change(pack, order_E, expert, donor)
            if place_in_order(pack, order_E):
                excess = _excess(pack, target_W)
                if excess < least:
                    least = excess
                    found = (expert, donor)
            tried += 1
            _change(pack, order_E, donor, expert)
    place_in_order(pack, order_E)
    return found[0], found[1], tried


@jit_inside
def _change(pack: Pack, order_E: Ints, expert: int, donor: int) -> None:
    """Plan one copy more of an expert and one less of a donor."""
    set_copies(pack, expert, pack.copies_E[expert] + 1)
    resort(pack.peak_E, order_E, expert)
    set_copies(pack, donor, pack.copies_E[donor] - 1)
    resort(pack.peak_E, order_E, donor)


@jit_inside
def _donors(pack: Pack) -> Ints:
    """Experts with a copy to spare whose copies would cost least with one copy less, at most ``_DONORS``."""
    donor_D, share_D, known = np.empty(_DONORS, np.int64), np.empty(_DONORS), 0
    for expert in range(len(pack.copies_E)):
        copies = pack.copies_E[expert]
        if copies < 2:
            continue
        # Near enough for a ranking: what it costs now, over one copy less.
        share = pack.peak_E[expert] * copies / (copies - 1)
        known = keep_least(donor_D, share_D, known, expert, share)
    return donor_D[:known]


@jit_inside
def _excess(pack: Pack, target_W: Floats) -> float:
    """Load above the targets, over GPUs and windows."""
    excess = 0.0
    for gpu in range(len(pack.room_G)):
        for window in range(len(target_W)):
            excess += max(0.0, pack.load_GW[gpu, window] - target_W[window])
    return excess
