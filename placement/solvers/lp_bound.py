"""A sharper and slower lower bound: the best blend of many prices, found by linear programming.

If by a price h_j a GPU's copies are worth U_j at most, then by any blend Σ_j α_j · h_j / ΣU_j with
Σ_j α_j = 1 all GPUs hold worth 1 at most. Under a blend each expert has one number of copies for all prices,
where it may have another under each price alone: so blends rule out more. The best one is dual to a linear
programme over the experts' numbers of copies. Its solution only proposes α; what α proves is computed anew,
so that tolerances of the programme cannot make a bound wrong.

The prices are those of :mod:`placement.judging.packing_bound`, and for thresholds λ ≤ T / 2 the count::

    h(p) = n for p > T − λ,  1 for λ ≤ p ≤ T − λ,  0 below,

where n is how many copies of λ fit a GPU: a copy above T − λ shares its GPU with none from λ on.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_matrix, hstack

from placement.judging.bounds import window_loads
from placement.judging.packing_bound import Loads, cost_of_copy
from placement.problem.problem import Problem
from placement.solvers.pairs import paired_bound
from placement.solvers.solution import Solution
from traces.base.arrays import Floats, Ints
from traces.base.jit import jit, jit_inside

_PACKINGS, _PACKING_STEP = 16, 0.85
_THRESHOLDS, _THRESHOLD_STEP = 32, 0.93
"""Prices of each kind, and the ratio of μ or λ from one to the next."""

_PROGRAMMES = 3
"""Solved at most; each begins where the blend of the one before fails."""

_PRECISION, _NEAR = 1e-4, 5e-3


def sharpened(problem: Problem, solution: Solution) -> Solution:
    """The solution with a sharper bound for each layer that is not within 0.5 % of the one it has.

    It takes about a tenth of a second a layer; where all GPUs are alike and have two slots, and it is still
    not within 1 %, some seconds. For one window without groups and without a cost of copies across nodes;
    other problems keep their bound.
    """
    if problem.windows > 1 or problem.groups > 1 or problem.objective.per_copy > 0:
        return solution
    most_E = np.full(problem.experts, problem.slots - problem.experts + 1)
    bound_L = solution.bound_L.copy()
    known: dict[tuple[bytes, bytes], float] = {}
    for row in np.flatnonzero((solution.gap_L > _NEAR) & (bound_L > 0)).tolist():
        (loads,) = window_loads(problem, row)
        # The same loads in another order have the same bound.
        order_E = np.lexsort((loads.quiet_E, loads.token_E))
        key = (loads.token_E[order_E].tobytes(), loads.quiet_E[order_E].tobytes())
        if key not in known:
            low, high = float(bound_L[row]), float(solution.cost_L[row])
            low = lp_bound(loads, problem.slots_G, problem.speed_G, most_E, low, high)
            if (problem.slots_G == 2).all() and (problem.speed_G == problem.speed_G[0]).all():
                speed = float(problem.speed_G[0])
                low = paired_bound(loads, problem.gpus, int(most_E[0]), low * speed, high * speed) / speed
            known[key] = low
        bound_L[row] = max(bound_L[row], known[key])
    return replace(solution, prove=lambda: bound_L)


def lp_bound(loads: Loads, slots_G: Ints, speed_G: Floats, most_E: Ints, low: float, high: float) -> float:
    """A bound from ``low``, which is one, to ``high``, which some placement reaches."""
    for _ in range(_PROGRAMMES):
        within = low * (1.0 + _PRECISION)
        if within >= high:
            break
        worth_IJ, first_E = _worths(loads, slots_G, speed_G, most_E, within)
        blend_J = _best_blend(worth_IJ, first_E)
        if not _ruled_out(loads, slots_G, speed_G, most_E, within, blend_J):
            break
        low, above = within, high
        while above - low > 0.1 * _PRECISION * low:
            middle = 0.5 * (low + above)
            if _ruled_out(loads, slots_G, speed_G, most_E, middle, blend_J):
                low = middle
            else:
                above = middle
    return low


def _best_blend(worth_IJ: Floats, first_E: Ints) -> Floats:
    """float64 [J], weights that sum to 1, under which the experts' least worths sum to most, or nearly."""
    entries, prices = worth_IJ.shape
    one_EI = csr_matrix((np.ones(entries), np.arange(entries), first_E))
    found = linprog(
        np.append(np.zeros(entries), 1.0),
        A_ub=hstack([csr_matrix(worth_IJ.T), -np.ones((prices, 1))], format="csr"),
        b_ub=np.zeros(prices),
        A_eq=hstack([one_EI, np.zeros((len(first_E) - 1, 1))], format="csr"),
        b_eq=np.ones(len(first_E) - 1),
        method="highs",
    )
    if found.x is None:  # no dual without a solution; an even blend proves little, and nothing wrong
        return np.full(prices, 1.0 / prices)
    blend_J = np.maximum(-found.ineqlin.marginals, 0.0)
    normalised: Floats = blend_J / blend_J.sum()
    return normalised


def _ruled_out(
    loads: Loads, slots_G: Ints, speed_G: Floats, most_E: Ints, within: float, blend_J: Floats
) -> bool:
    """Whether the experts are worth more than all GPUs can hold if these finish ``within``."""
    worth_IJ, first_E = _worths(loads, slots_G, speed_G, most_E, within)
    least_E = np.minimum.reduceat(worth_IJ @ blend_J, first_E[:-1])
    return bool(least_E.sum() > 1.0 + 1e-9)


@jit
def _worths(loads: Loads, slots_G: Ints, speed_G: Floats, most_E: Ints, within: float) -> tuple[Floats, Ints]:
    """float64 [I, J], the worth of an expert in some number of copies by each price, in shares of all GPUs.

    ``within`` is above the cost of a copy when an expert has as many as it may.

    Returns:
        with it int64 [E + 1], where the numbers of copies of each expert begin.
    """
    time_G = within * speed_G
    mu_M, c_M = _packing_prices(slots_G, time_G)
    time, held_J = time_G[slots_G > 0].max(), np.zeros(len(mu_M) + _THRESHOLDS)
    lambda_N, count_N = 0.5 * time * _THRESHOLD_STEP ** np.arange(_THRESHOLDS), np.zeros(_THRESHOLDS)
    for gpu in range(len(slots_G)):
        count_N = np.maximum(count_N, np.minimum(slots_G[gpu], np.floor(time_G[gpu] / lambda_N * (1 + 1e-9))))
    for gpu in range(len(slots_G)):
        if slots_G[gpu] > 0:
            all_M = np.minimum(slots_G[gpu] * mu_M, time_G[gpu])
            held_J[: len(mu_M)] += np.maximum(all_M, time_G[gpu] - c_M)
            alone_N = np.where(time_G[gpu] > time - lambda_N, count_N, 0.0)
            fit_N = np.minimum(slots_G[gpu], np.floor(time_G[gpu] / lambda_N * (1 + 1e-9)))
            held_J[len(mu_M) :] += np.maximum(fit_N, alone_N)
    # From here on more copies are worth nothing by every threshold and only more by the others.
    settled = min(lambda_N[-1], (mu_M + c_M).min())
    first_E = np.zeros(len(most_E) + 1, np.int64)
    for expert in range(len(most_E)):
        first_E[expert + 1] = first_E[expert]
        for copies in range(1, most_E[expert] + 1):
            cost = cost_of_copy(loads, expert, copies)
            first_E[expert + 1] += cost <= time
            if cost < settled:
                break
    worth_IJ = np.empty((first_E[-1], len(held_J)))
    for expert in range(len(most_E)):
        copies = 1
        while cost_of_copy(loads, expert, copies) > time:
            copies += 1
        for entry in range(first_E[expert], first_E[expert + 1]):
            cost = cost_of_copy(loads, expert, copies)
            worth_IJ[entry, : len(mu_M)] = np.maximum(np.minimum(cost, mu_M), cost - c_M)
            worth_N = np.where(cost > time - lambda_N, count_N, np.where(cost >= lambda_N, 1.0, 0.0))
            worth_IJ[entry, len(mu_M) :] = worth_N
            worth_IJ[entry] *= copies / held_J
            copies += 1
    return worth_IJ, first_E


@jit_inside
def _packing_prices(slots_G: Ints, time_G: Floats) -> tuple[Floats, Floats]:
    """μ and c of each price, for a GPU with the most slots and for one with the fewest."""
    mu_M, c_M = np.empty(2 * _PACKINGS), np.empty(2 * _PACKINGS)
    most = int(np.argmax(slots_G))
    fewest = int(np.argmin(np.where(slots_G > 0, slots_G, slots_G[most] + 1)))
    for kind, gpu in enumerate((most, fewest)):
        here = slice(kind * _PACKINGS, (kind + 1) * _PACKINGS)
        mu_M[here] = time_G[gpu] / slots_G[gpu] * _PACKING_STEP ** np.arange(_PACKINGS)
        c_M[here] = time_G[gpu] - slots_G[gpu] * mu_M[here]
    return mu_M, c_M
