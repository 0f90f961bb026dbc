"""Steps that lower the cost of a packed layer: exchanges of copies, and copies that change owner.

Every step looks at the GPUs that set the cost and takes the best change found. A change is judged by the
cost after it, and where that stays because another GPU sets it too, by the largest load among the GPUs that
it touches. So every step makes progress, and the search ends.
"""

from __future__ import annotations

import numpy as np

from placement.problem.placement import EMPTY
from placement.solvers.packing import (
    CLOSED,
    HELD,
    PINNED,
    Pack,
    copy_share,
    cost,
    count,
    keep_least,
    put,
    set_copies,
    take,
)
from traces.base.arrays import Floats, Ints
from traces.base.jit import jit_inside

_LESS = 1.0 - 1e-9
"""A cost must fall by more than rounding."""

_CYCLE_GPUS = 8
"""Exchanges of three look at so many of the least loaded GPUs."""

_LEADERS = 4
"""One more than an exchange touches."""


@jit_inside
def descend(pack: Pack, enough: float, steps: int) -> int:
    """Take steps until the cost is ``enough`` or nothing helps; returns how many, ``steps`` at most."""
    for taken in range(steps):
        if cost(pack) <= enough:
            return taken
        if not (exchange(pack) or change_owner(pack) or cycle(pack) or give_up(pack)):
            return taken
    return steps


@jit_inside
def exchange(pack: Pack) -> bool:
    """Exchange a copy on a critical GPU for one on another GPU, or move it to an empty slot."""
    # Names of their own for the arrays: a tuple that is handed on in an inner loop costs more than the loop.
    room_G, used_G, item_GK, mark_EG = pack.room_G, pack.used_G, pack.item_GK, pack.mark_EG
    load_GW, share_EW, pace_G, worst = pack.load_GW, pack.share_EW, pack.pace_G, pack.worst
    gpus, windows = load_GW.shape
    leader_WR = _leaders(pack)
    rest_W = np.empty(windows)
    best, best_touched = cost(pack), 0.0
    found = (EMPTY, 0, 0, 0)
    for gpu in _critical(pack):
        if worst:
            best_touched = load_GW[gpu].max()
        for other in range(gpus):
            if other == gpu:
                continue
            for window in range(windows):
                rest_W[window] = _rest(load_GW, leader_WR, window, gpu, other, other)
            for item in range(used_G[gpu]):
                mine = item_GK[gpu, item]
                if mark_EG[mine, other] & (HELD | CLOSED) or mark_EG[mine, gpu] & PINNED:
                    continue
                for place in range(min(used_G[other] + 1, room_G[other])):
                    theirs = item_GK[other, place]
                    after, touched = 0.0, 0.0
                    for window in range(windows):
                        less = share_EW[mine, window]
                        if theirs != EMPTY:
                            less -= share_EW[theirs, window]
                        here = load_GW[gpu, window] - less * pace_G[gpu]
                        there = load_GW[other, window] + less * pace_G[other]
                        largest = max(here, there)
                        touched = max(touched, largest)
                        largest = max(largest, rest_W[window])
                        after = max(after, largest) if worst else after + largest / windows
                    if after >= best * _LESS and (after > best or touched >= best_touched * _LESS):
                        continue
                    if theirs == EMPTY or not (
                        mark_EG[theirs, other] & PINNED or mark_EG[theirs, gpu] & (HELD | CLOSED)
                    ):
                        best, best_touched = after, touched
                        found = (gpu, item, other, place)
    gpu, item, other, place = found
    if gpu == EMPTY:
        return False
    _swap(pack, gpu, item, other, place)
    return True


@jit_inside
def change_owner(pack: Pack) -> bool:
    """Give an expert on a critical GPU one more copy: in an empty slot or for another's spare copy."""
    room_G, used_G, mark_EG, copies_E = pack.room_G, pack.used_G, pack.mark_EG, pack.copies_E
    pace_G, worst = pack.pace_G, pack.worst
    gpus, windows = pack.load_GW.shape
    best = cost(pack) * _LESS
    found = (EMPTY, EMPTY, EMPTY)
    after_GW = np.empty((gpus, windows))
    change_W, largest_W, second_W = np.empty(windows), np.empty(windows), np.empty(windows)
    first_W = np.empty(windows, np.int64)
    for gpu in _critical(pack):
        for expert in pack.item_GK[gpu, : used_G[gpu]]:
            if copies_E[expert] >= pack.most_E[expert]:
                continue
            for donor in range(EMPTY, len(copies_E)):
                if donor == expert or (donor != EMPTY and copies_E[donor] < 2):
                    continue
                _shared_anew(pack, after_GW, change_W, expert, donor)
                _two_largest(after_GW, first_W, largest_W, second_W)
                for other in range(gpus):
                    if mark_EG[expert, other] & (HELD | CLOSED):
                        continue
                    if donor == EMPTY:
                        if used_G[other] == room_G[other]:
                            continue
                    elif mark_EG[donor, other] & (HELD | PINNED) != HELD:
                        continue
                    after = 0.0
                    for window in range(windows):
                        largest = second_W[window] if first_W[window] == other else largest_W[window]
                        there = after_GW[other, window] + change_W[window] * pace_G[other]
                        largest = max(largest, there)
                        after = max(after, largest) if worst else after + largest / windows
                    if after < best:
                        best = after
                        found = (expert, donor, other)
    expert, donor, other = found
    if expert == EMPTY:
        return False
    if donor != EMPTY:
        take(pack, other, _item(pack, other, donor))
        set_copies(pack, donor, copies_E[donor] - 1)
    put(pack, expert, other)
    set_copies(pack, expert, copies_E[expert] + 1)
    for gpu in range(gpus):
        count(pack, gpu)
    return True


@jit_inside
def give_up(pack: Pack) -> bool:
    """Take a copy away from a critical GPU and leave its slot empty: the expert's other copies share."""
    load_GW, share_EW, mark_EG, pace_G = pack.load_GW, pack.share_EW, pack.mark_EG, pack.pace_G
    gpus, windows = load_GW.shape
    best = cost(pack) * _LESS
    found = (EMPTY, EMPTY)
    for gpu in _critical(pack):
        for item in range(pack.used_G[gpu]):
            expert = pack.item_GK[gpu, item]
            if pack.copies_E[expert] < 2 or mark_EG[expert, gpu] & PINNED:
                continue
            after = 0.0
            for window in range(windows):
                share = share_EW[expert, window]
                more = copy_share(pack, expert, pack.copies_E[expert] - 1, window) - share
                largest = load_GW[gpu, window] - share * pace_G[gpu]
                for other in range(gpus):
                    if other != gpu:
                        there = load_GW[other, window]
                        if mark_EG[expert, other] & HELD:
                            there += more * pace_G[other]
                        largest = max(largest, there)
                after = max(after, largest) if pack.worst else after + largest / windows
            if after < best:
                best = after
                found = (gpu, item)
    gpu, item = found
    if gpu == EMPTY:
        return False
    expert = pack.item_GK[gpu, item]
    take(pack, gpu, item)
    set_copies(pack, expert, pack.copies_E[expert] - 1)
    for other in range(gpus):
        count(pack, other)
    return True


@jit_inside
def cycle(pack: Pack) -> bool:
    """Exchange in a ring: a copy of a critical GPU to a second, one of that to a third, one of that back."""
    used_G, item_GK, mark_EG = pack.used_G, pack.item_GK, pack.mark_EG
    load_GW, share_EW, pace_G, worst = pack.load_GW, pack.share_EW, pack.pace_G, pack.worst
    windows = load_GW.shape[1]
    leader_WR = _leaders(pack)
    least_N = _least_loaded(load_GW)
    rest_W = np.empty(windows)
    best, best_touched = cost(pack), 0.0
    found = (EMPTY, 0, 0, 0, 0, 0)
    for gpu in _critical(pack):
        if worst:
            best_touched = load_GW[gpu].max()
        for second in least_N:
            for third in least_N:
                if second in (gpu, third) or third == gpu:
                    continue
                for window in range(windows):
                    rest_W[window] = _rest(load_GW, leader_WR, window, gpu, second, third)
                for item in range(used_G[gpu]):
                    mine = item_GK[gpu, item]
                    if mark_EG[mine, second] & (HELD | CLOSED) or mark_EG[mine, gpu] & PINNED:
                        continue
                    for place in range(used_G[second]):
                        theirs = item_GK[second, place]
                        if mark_EG[theirs, third] & (HELD | CLOSED) or mark_EG[theirs, second] & PINNED:
                            continue
                        for last in range(used_G[third]):
                            back = item_GK[third, last]
                            after, touched = 0.0, 0.0
                            for window in range(windows):
                                x, y = share_EW[mine, window], share_EW[theirs, window]
                                z = share_EW[back, window]
                                largest = max(
                                    load_GW[gpu, window] + (z - x) * pace_G[gpu],
                                    load_GW[second, window] + (x - y) * pace_G[second],
                                    load_GW[third, window] + (y - z) * pace_G[third],
                                )
                                touched = max(touched, largest)
                                largest = max(largest, rest_W[window])
                                after = max(after, largest) if worst else after + largest / windows
                            if after >= best * _LESS and (after > best or touched >= best_touched * _LESS):
                                continue
                            if not (mark_EG[back, gpu] & (HELD | CLOSED) or mark_EG[back, third] & PINNED):
                                best, best_touched = after, touched
                                found = (gpu, item, second, place, third, last)
    gpu, item, second, place, third, last = found
    if gpu == EMPTY:
        return False
    # Two exchanges make the ring: what the second gave away lies in the critical GPU's slot in between.
    _swap(pack, gpu, item, second, place)
    _swap(pack, gpu, item, third, last)
    return True


@jit_inside
def _critical(pack: Pack) -> Ints:
    """The GPU that sets the cost of the worst window; for the mean, those of each window."""
    windows, most = pack.load_GW.shape[1], pack.load_GW.max()
    found_N, kinds = np.empty(windows, np.int64), 0
    for window in range(windows):
        gpu = np.argmax(pack.load_GW[:, window])
        if gpu in found_N[:kinds] or (pack.worst and pack.load_GW[gpu, window] < most):
            continue
        found_N[kinds] = gpu
        kinds += 1
        if pack.worst:
            break
    return found_N[:kinds]


@jit_inside
def _least_loaded(load_GW: Floats) -> Ints:
    """The GPUs with the least load over all windows, least first, ``_CYCLE_GPUS`` at most."""
    least_N, load_N, known = np.empty(_CYCLE_GPUS, np.int64), np.empty(_CYCLE_GPUS), 0
    for gpu in range(len(load_GW)):
        known = keep_least(least_N, load_N, known, gpu, load_GW[gpu].sum())
    return least_N[:known]


@jit_inside
def _leaders(pack: Pack) -> Ints:
    """int64 [W, R], the most loaded GPUs of each window, most loaded first; −1 where there are fewer."""
    gpus, windows = pack.load_GW.shape
    leader_WR, key_R = np.full((windows, _LEADERS), EMPTY), np.empty(_LEADERS)
    for window in range(windows):
        known = 0
        for gpu in range(gpus):
            known = keep_least(leader_WR[window], key_R, known, gpu, -pack.load_GW[gpu, window])
    return leader_WR


@jit_inside
def _rest(load_GW: Floats, leader_WR: Ints, window: int, a: int, b: int, c: int) -> float:
    """The largest load of a window on other GPUs than these."""
    for gpu in leader_WR[window]:
        if gpu == EMPTY:
            break
        if gpu not in (a, b, c):
            load: float = load_GW[gpu, window]
            return load
    return 0.0


@jit_inside
def _shared_anew(pack: Pack, after_GW: Floats, change_W: Floats, expert: int, donor: int) -> None:
    """Loads when an expert's tokens divide over one copy more and a donor's, if any, over one less.

    ``change_W`` gets what it adds to a GPU of speed 1 to hold the expert's copy in place of the donor's.
    """
    mark_EG, load_GW, pace_G = pack.mark_EG, pack.load_GW, pack.pace_G
    for window in range(load_GW.shape[1]):
        share = copy_share(pack, expert, pack.copies_E[expert] + 1, window)
        gain = pack.share_EW[expert, window] - share
        loss = 0.0
        if donor != EMPTY:
            donated = copy_share(pack, donor, pack.copies_E[donor] - 1, window)
            loss = donated - pack.share_EW[donor, window]
            share -= donated
        change_W[window] = share
        for gpu in range(len(load_GW)):
            load = load_GW[gpu, window]
            if mark_EG[expert, gpu] & HELD:
                load -= gain * pace_G[gpu]
            if donor != EMPTY and mark_EG[donor, gpu] & HELD:
                load += loss * pace_G[gpu]
            after_GW[gpu, window] = load


@jit_inside
def _two_largest(load_GW: Floats, first_W: Ints, largest_W: Floats, second_W: Floats) -> None:
    """Of each window: the most loaded GPU, its load, and the next."""
    for window in range(load_GW.shape[1]):
        first, largest, second = 0, load_GW[0, window], 0.0
        for gpu in range(1, len(load_GW)):
            load = load_GW[gpu, window]
            if load > largest:
                first, largest, second = gpu, load, largest
            elif load > second:
                second = load
        first_W[window], largest_W[window], second_W[window] = first, largest, second


@jit_inside
def _item(pack: Pack, gpu: int, expert: int) -> int:
    """Where a GPU has an expert among its items."""
    at = 0
    while pack.item_GK[gpu, at] != expert:
        at += 1
    return at


@jit_inside
def _swap(pack: Pack, gpu: int, item: int, other: int, place: int) -> None:
    """Exchange two copies; a place behind the last is an empty slot."""
    mine, theirs = pack.item_GK[gpu, item], pack.item_GK[other, place]
    if theirs == EMPTY:
        take(pack, gpu, item)
        put(pack, mine, other)
    else:
        pack.item_GK[gpu, item], pack.item_GK[other, place] = theirs, mine
        for expert, old, new in ((mine, gpu, other), (theirs, other, gpu)):
            pack.mark_EG[expert, old] &= ~np.uint8(HELD)
            pack.mark_EG[expert, new] |= HELD
    count(pack, gpu)
    count(pack, other)
