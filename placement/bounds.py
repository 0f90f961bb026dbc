"""What no placement can go below.

Axes as in :mod:`placement.problem`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from placement.evaluation import copy_cost, over_windows
from placement.problem import Problem

Floats = npt.NDArray[np.float64]


def bound_L(problem: Problem) -> Floats:
    """float64 [L], a proven lower bound of the objective of each layer.

    Total work, evenly spread: copies only add to it, as 1 − (1 − p)^(1 / r) ≥ (1 / r) · p.
    """
    mean_WL = copy_cost(problem, 1).sum(axis=2) / problem.speed_G.sum()
    return over_windows(problem.objective, mean_WL)
