"""How far durations spread from one time to the next, and how far ranks are slow together.

Axes: R repeats, C cells (steps and layers of one plan), G ranks, N all that were measured of a phase.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import rankdata

from moesim.calibration.observed import Observed
from moesim.calibration.quantity import Quantity
from moesim.spec.profile import Jitter, Phase

FloatArray = NDArray[np.float64]

_KERNELS: tuple[Phase, ...] = ("router", "experts")
_TOGETHER: tuple[Phase, ...] = ("dispatch", "combine")

_PLACES = (np.arange(20) + 0.5) / 20
"""Probabilities of the quantiles that a profile carries."""


def fit_jitter(plans: Sequence[Observed]) -> dict[Phase, Jitter]:
    """The jitter of every phase, from all loads: relative to its median, a duration spreads alike in all."""
    phases = _KERNELS if plans[0].tokens_CG.shape[1] == 1 else (*_KERNELS, *_TOGETHER)
    return {phase: jitter_of(np.concatenate([_ratios(plan, phase) for plan in plans])) for phase in phases}


def jitter_of(ratio_NG: FloatArray) -> Jitter:
    """The distribution of durations over their medians, ranks side by side.

    >>> jitter_of(np.array([[0.9, 0.9], [1.0, 1.0], [1.2, 1.2]])).together
    1.0
    """
    score_NG = ndtri((rankdata(ratio_NG).reshape(ratio_NG.shape) - 0.5) / ratio_NG.size)
    ranks = ratio_NG.shape[1]
    alike = 0.0
    if ranks > 1 and score_NG.any():
        products = (score_NG.sum(axis=1) ** 2 - (score_NG**2).sum(axis=1)).mean() / (ranks * (ranks - 1))
        alike = float(np.clip(products / (score_NG**2).mean(), 0.0, 1.0))
    return Jitter(ratios=tuple(np.quantile(ratio_NG, _PLACES).tolist()), together=alike)


def quantities(jitter: dict[Phase, Jitter]) -> list[Quantity]:
    """What the slowest of twenty takes of each phase, in medians."""
    return [Quantity(f"jitter: {phase}, slowest of 20", each.ratios[-1]) for phase, each in jitter.items()]


def _ratios(plan: Observed, phase: str) -> FloatArray:
    """[N, G]: durations over their median, of cells in which every rank has something to do."""
    busy_C = (plan.work.served_LG > 0).all(axis=1) | (phase != "experts")
    ratio_RCG = plan.repeats[phase][:, busy_C] / plan.seconds[phase][busy_C]
    return ratio_RCG.reshape(-1, ratio_RCG.shape[-1])
