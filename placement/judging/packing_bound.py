"""A lower bound that sees copies, slots and speeds: the small copies must fit what large ones leave of a GPU.

Suppose every GPU finishes within T. Choose μ ≥ 0 and c ≥ 0, and price a copy of cost p at::

    h(p) = max(min(p, μ), p − c)

A GPU of speed s with k slots then holds copies worth at most u = max(min(k · μ, T · s), T · s − c): if j of
them are priced p − c, all are worth T · s − j · c at most; if none is, each is worth μ at most and all T · s
at most. An expert in r copies of cost p(r) is worth r · h(p(r)), and p(r) ≤ T · max s. So where::

    Σ_experts min_r r · h(p(r))  >  Σ_GPUs u

no placement finishes within T, whatever the numbers of copies, and also if slots stay empty. In this are the
mean (c = 0), the count of slots (μ → 0), and without spare slots what the B largest experts need with the
least company that they must have. It is a dual-feasible function (Fekete and Schepers, "New classes of fast
lower bounds for bin packing problems", 2001) for bins that also limit the number of their items.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from traces.base.arrays import Floats, Ints
from traces.base.jit import jit, jit_inside

PRECISION = 1e-6
"""Relative, of the bound that is found."""

_MU_STEP, _MU_STEPS = 0.85, 24


class Loads(NamedTuple):
    """One window of a layer, as compiled code reads it.

    Attributes:
        token_E: float64 [E], cost of all tokens of an expert.
        quiet_E: float64 [E], ln(1 − p) for the probability p that the expert is activated.
        per_active: cost of an activated expert.
    """

    token_E: Floats
    quiet_E: Floats
    per_active: float


@jit_inside
def cost_of_copy(loads: Loads, expert: int, copies: int) -> float:
    """What one of ``copies`` costs at speed 1; see :func:`placement.judging.evaluation.copy_cost`."""
    cost: float = loads.token_E[expert] / copies
    if loads.per_active > 0.0:
        cost += loads.per_active * (1.0 - np.exp(loads.quiet_E[expert] / copies))
    return cost


@jit
def packing_bound(loads: Loads, slots_G: Ints, speed_G: Floats, most_E: Ints, least: float) -> float:
    """The largest T found that is ruled out for some μ and c; at least ``least``, which is above 0.

    Args:
        most_E: int64 [E], most copies of each expert.
        least: a bound that is known already.
    """
    # In units of what is known, so that no load is too small or too large to compare.
    loads = Loads(loads.token_E / least, loads.quiet_E, loads.per_active / least)
    bound = 1.0
    gpu_C = _corners(slots_G, speed_G)
    for step in range(_MU_STEPS):
        for gpu in gpu_C:
            share = _MU_STEP**step / max(1, slots_G[gpu])
            low, high = bound, bound * (1.0 + 1e-4)
            # Whatever is ruled out is a bound, as less time is then too short as well.
            while _ruled_out(loads, slots_G, speed_G, most_E, high, share, gpu):
                low, high = high, high + 4.0 * (high - bound)
            while low > bound and high - low > PRECISION * low:
                middle = 0.5 * (low + high)
                if _ruled_out(loads, slots_G, speed_G, most_E, middle, share, gpu):
                    low = middle
                else:
                    high = middle
            bound = low
    return bound * least


@jit_inside
def _corners(slots_G: Ints, speed_G: Floats) -> Ints:
    """Indices of GPUs that stand for all: with most and fewest slots, and the slowest."""
    gpu_C, kinds = np.empty(3, np.int64), 0
    for gpu in (np.argmax(slots_G), np.argmin(slots_G), np.argmin(speed_G)):
        # Where two are of one kind they are also the same: each is the first that is extreme.
        if gpu not in gpu_C[:kinds]:
            gpu_C[kinds] = gpu
            kinds += 1
    return gpu_C[:kinds]


@jit_inside
def _ruled_out(
    loads: Loads, slots_G: Ints, speed_G: Floats, most_E: Ints, within: float, share: float, gpu: int
) -> bool:
    """Whether nothing finishes ``within``: μ is a share of one GPU's time, c what k times μ leaves of it."""
    mu = share * within * speed_G[gpu]
    c = within * speed_G[gpu] - slots_G[gpu] * mu
    fastest = speed_G.max() * within
    budget = 0.0
    for other in range(len(slots_G)):
        if slots_G[other] > 0:
            budget += max(min(slots_G[other] * mu, within * speed_G[other]), within * speed_G[other] - c)
    # Rounding must not rule out what is just possible.
    budget *= 1.0 + 1e-12
    worth = 0.0
    for expert in range(len(most_E)):
        least = np.inf
        for copies in range(1, most_E[expert] + 1):
            cost = cost_of_copy(loads, expert, copies)
            if cost > fastest:
                continue
            least = min(least, copies * max(min(cost, mu), cost - c))
            if cost - c <= mu:
                break  # more copies are only worth more
        worth += least
        if worth > budget:
            return True
    return False
