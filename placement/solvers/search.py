"""The search in one layer: what to start from, what to try next, and when to leave it."""

from __future__ import annotations

import numpy as np

from placement.judging.bounds import window_loads
from placement.judging.packing_bound import Loads
from placement.problem.placement import EMPTY
from placement.problem.problem import Problem
from placement.problem.rules import FIXED, FORBIDDEN
from placement.solvers.exchange import descend
from placement.solvers.packing import CLOSED, PINNED, Pack, cost, largest_first, place_in_order, restore
from placement.solvers.replication import replan, replicate
from traces.base.arrays import Bools, Floats, Int8s, Ints
from traces.base.jit import jit_for_threads

ENOUGH = 5e-4
"""A layer that is so near its bound is left alone."""

_FAR = 0.05
"""A layer so far above its bound may have too many copies: GPUs that must hold two large ones."""

PACKINGS, STEPS = 160, 400
"""With an effort of 1: packings that replanning tries, and steps of exchange that follow each."""


def pack_of(loads_W: list[Loads], slots_G: Ints, speed_G: Floats, worst: bool, rule: Int8s) -> Pack:
    """An empty layer.

    Args:
        rule: int8 [E, G], entries as in :mod:`placement.problem.rules`.
    """
    experts, gpus, windows = len(rule), len(slots_G), len(loads_W)
    room_G = np.minimum(slots_G, experts)
    mark_EG = np.zeros((experts, gpus), dtype=np.uint8)
    mark_EG[rule == FORBIDDEN] = CLOSED
    mark_EG[rule == FIXED] = PINNED
    spare = int(room_G.sum()) - experts
    return Pack(
        token_EW=np.stack([loads.token_E for loads in loads_W], axis=1),
        quiet_EW=np.stack([loads.quiet_E for loads in loads_W], axis=1),
        per_active=loads_W[0].per_active,
        most_E=np.minimum((rule[:, room_G > 0] != FORBIDDEN).sum(axis=1), spare + 1),
        room_G=room_G,
        pace_G=1.0 / speed_G,
        worst=worst or windows == 1,
        copies_E=np.zeros(experts, dtype=np.int64),
        share_EW=np.zeros((experts, windows)),
        peak_E=np.zeros(experts),
        item_GK=np.full((gpus, int(room_G.max())), EMPTY),
        used_G=np.zeros(gpus, dtype=np.int64),
        mark_EG=mark_EG,
        load_GW=np.zeros((gpus, windows)),
        fast_N=np.argsort(np.where(room_G > 0, -speed_G, np.inf), kind="stable")[: np.count_nonzero(room_G)],
    )


def layer_pack(problem: Problem, row: int, rule: Int8s) -> Pack:
    """The layer of a problem at index ``row``, empty."""
    loads_W = window_loads(problem, row)
    return pack_of(loads_W, problem.slots_G, problem.speed_G, problem.objective.worst_window, rule)


def hold(pack: Pack, held: Bools) -> None:
    """Hold exactly the copies of a bool [E, G]."""
    item_GK = np.full_like(pack.item_GK, EMPTY)
    for gpu in range(len(item_GK)):
        expert_N = np.flatnonzero(held[:, gpu])
        item_GK[gpu, : len(expert_N)] = expert_N
    restore(pack, item_GK)


def from_scratch(pack: Pack, bound: float, effort: float) -> bool:
    """Fill an empty layer well.

    Returns:
        whether the rules about distinct copies left a packing to begin with.
    """
    spare = int(pack.room_G.sum()) - len(pack.copies_E)
    # Where activated experts cost, or a GPU is slow, a copy may cost more than it saves.
    costly = pack.per_active > 0.0 or pack.pace_G.min() < pack.pace_G.max()
    shares = (1.0, 0.5, 0.0) if costly else (1.0, 0.75, 0.5)
    best, best_GK = np.inf, None
    for share in shares if spare > 0 else (1.0,):
        if not costly and best <= bound * (1.0 + _FAR):
            break
        slots = len(pack.copies_E) + round(share * spare)
        found = _search(
            pack, slots, bound, bound * (1.0 + ENOUGH), round(PACKINGS * effort), round(STEPS * effort)
        )
        if found < best:
            best, best_GK = found, pack.item_GK.copy()
    if best_GK is not None:
        restore(pack, best_GK)
    return best_GK is not None


@jit_for_threads
def _search(pack: Pack, slots: int, bound: float, enough: float, packings: int, steps: int) -> float:
    """Cost of what is held in the end; infinite where nothing could be packed."""
    replicate(pack, slots)
    if not place_in_order(pack, largest_first(pack.peak_E)):
        # Copies that found no GPU without one of their expert are given up; experts are not.
        restore(pack, pack.item_GK.copy())
        if pack.copies_E.min() == 0:
            return np.inf
    descend(pack, enough, steps)
    best = cost(pack)
    if best <= enough or slots == len(pack.copies_E) or packings == 0:
        return best
    best_GK = pack.item_GK.copy()
    replicate(pack, slots)
    if replan(pack, bound, enough, packings):
        descend(pack, enough, steps)
        if cost(pack) < best:
            return cost(pack)
    restore(pack, best_GK)
    return best
