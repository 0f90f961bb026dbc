"""What generated routing is drawn with: random numbers, and the choice of K experts by their scores."""

from __future__ import annotations

import numpy as np

from traces.base.arrays import Array
from traces.base.jit import jit

STEP = np.uint64(0x9E3779B97F4A7C15)
"""From one state of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) to the next."""


@jit
def mix64(state: np.uint64) -> np.uint64:
    """The output of SplitMix64 in a state."""
    bits = state
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


@jit
def uniform40(bits: np.uint64) -> float:
    """A uniform number strictly between 0 and 1 from the lowest 40 bits."""
    return (float(bits & np.uint64(0xFFFFFFFFFF)) + 0.5) * 2.0**-40


@jit
def choose(score_E: Array, groups: int, top_groups: int, ids_K: Array, weights_K: Array) -> None:
    """The K best experts of the best groups, best first, with normalised scores; ties to the lowest id."""
    size = score_E.size // groups
    allowed = np.ones(groups, np.bool_)
    if top_groups < groups:
        sum_of_two = np.empty(groups)
        for group in range(groups):
            best, second = 0.0, 0.0
            for score in score_E[group * size : (group + 1) * size]:
                if score > best:
                    best, second = score, best
                elif score > second:
                    second = score
            sum_of_two[group] = best + second
        # numba takes seconds to compile a sort; the groups are few.
        for _ in range(groups - top_groups):
            worst = -1
            for group in range(groups):
                if allowed[group] and (worst < 0 or sum_of_two[group] <= sum_of_two[worst]):
                    worst = group
            allowed[worst] = False
    chosen = ids_K.size
    best_K = np.zeros(chosen)  # scores are positive
    for group in range(groups):
        if not allowed[group]:
            continue
        for expert in range(group * size, (group + 1) * size):
            score = score_E[expert]
            if score <= best_K[chosen - 1]:
                continue
            k = chosen - 1
            while k > 0 and best_K[k - 1] < score:
                best_K[k] = best_K[k - 1]
                ids_K[k] = ids_K[k - 1]
                k -= 1
            best_K[k] = score
            ids_K[k] = expert
    total = 0.0
    for k in range(chosen):
        total += best_K[k]
    for k in range(chosen):
        weights_K[k] = best_K[k] / total
