"""From where the experts are, by the moves that pay best: how far each layer goes on its way of exchanges.

Exchanges make a way of steps, each with a cost and a number of moved copies. Layers share the moves that are
allowed by the steepest fall per move along the lower convex hull of each way, which divides them best among
the corners of these hulls.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from placement.solvers.exchange import descend
from placement.solvers.packing import Pack, cost
from traces.base.arrays import Bools, Floats, Int16s, Ints
from traces.base.jit import jit_for_threads


class Way(NamedTuple):
    """The exchanges of one layer, beginning with none.

    Attributes:
        cost_N: float64 [N], cost after each number of steps.
        moves_N: int64 [N], copies that lie where there was none of the expert.
        item_NGK: int16 [N, G, K], experts on each GPU.
    """

    cost_N: Floats
    moves_N: Ints
    item_NGK: Int16s


def divided(ways: Sequence[Way], price: float, most: float) -> list[int]:
    """Steps of each layer, so that cost and price are least with ``most`` moves in all.

    Two ways; the first gains 4 with its first move, the second 3 with one and 1 with another:

    >>> first = Way(np.array([9.0, 5.0]), np.array([0, 1]), np.empty((2, 1, 1), np.int16))
    >>> second = Way(np.array([9.0, 6.0, 5.0]), np.array([0, 1, 2]), np.empty((3, 1, 1), np.int16))
    >>> divided([first, second], price=0.5, most=2)
    [1, 1]
    """
    hulls = [_hull(way, price) for way in ways]
    at = [0] * len(ways)
    left = most - sum(int(way.moves_N[hull[0]]) for way, hull in zip(ways, hulls, strict=True))
    falls = [_fall(ways[layer], hulls[layer], 0, layer, price) for layer in range(len(ways))]
    heap = [fall for fall in falls if fall is not None]
    heapq.heapify(heap)
    while heap:
        _, layer, moves = heapq.heappop(heap)
        if moves > left:
            continue
        left -= moves
        at[layer] += 1
        fall = _fall(ways[layer], hulls[layer], at[layer], layer, price)
        if fall is not None:
            heapq.heappush(heap, fall)
    return [hull[corner] for hull, corner in zip(hulls, at, strict=True)]


def _hull(way: Way, price: float) -> list[int]:
    """Steps that are corners of the lower convex hull of cost over moves, from the fewest moves on."""
    total_N = way.cost_N + price * way.moves_N
    corners: list[int] = []
    for step in np.lexsort((total_N, way.moves_N)).tolist():
        if corners and total_N[step] >= total_N[corners[-1]]:
            continue
        while len(corners) > 1:
            a, b = corners[-2], corners[-1]
            rise_b = (total_N[b] - total_N[a]) * (way.moves_N[step] - way.moves_N[a])
            if rise_b < (total_N[step] - total_N[a]) * (way.moves_N[b] - way.moves_N[a]):
                break
            corners.pop()
        corners.append(step)
    return corners


def _fall(way: Way, hull: list[int], corner: int, layer: int, price: float) -> tuple[float, int, int] | None:
    """(gain per move, as a negative number; layer; moves) of going on from a corner, None at the last."""
    if corner + 1 == len(hull):
        return None
    here, there = hull[corner], hull[corner + 1]
    moves = int(way.moves_N[there] - way.moves_N[here])
    fall = way.cost_N[there] - way.cost_N[here]
    return float(fall / moves + price), layer, moves


@jit_for_threads
def way_from(pack: Pack, before_EG: Bools, enough: float, steps: int) -> Way:
    """Exchange from what a layer holds until its cost is ``enough``, nothing helps, or after ``steps``."""
    cost_N, moves_N = np.empty(steps + 1), np.empty(steps + 1, np.int64)
    item_NGK = np.empty((steps + 1, *pack.item_GK.shape), np.int16)
    taken = 0
    while True:
        moved = 0
        for gpu in range(len(pack.room_G)):
            for expert in pack.item_GK[gpu, : pack.used_G[gpu]]:
                moved += not before_EG[expert, gpu]
        cost_N[taken], moves_N[taken], item_NGK[taken] = cost(pack), moved, pack.item_GK
        taken += 1
        if taken > steps or descend(pack, enough, 1) == 0:
            return Way(cost_N[:taken], moves_N[:taken], item_NGK[:taken])
