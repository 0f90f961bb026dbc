"""Durations that differ from one time to the next, drawn as a profile has them.

Axes: O operations, G ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from moesim.simulation.operations import Operation
from moesim.spec.profile import Jitter, Phase

FloatArray = NDArray[np.float64]


def jittered(
    operations: Sequence[Operation], jitter: Mapping[Phase, Jitter], ranks: int, rng: np.random.Generator
) -> list[Operation]:
    """Operations that take each rank so many times as long as the jitter of their phases draws.

    Of every phase, whether it jitters or not, as many numbers are drawn: what is drawn for one does not
    depend on the others.
    """
    drawn_OG = rng.standard_normal((len(operations), 1 + ranks))
    return [
        replace(operation, stretch_G=ratios(own, drawn_G))
        if (own := jitter.get(operation.phase))
        else operation
        for operation, drawn_G in zip(operations, drawn_OG, strict=True)
    ]


def ratios(jitter: Jitter, drawn_G: FloatArray) -> FloatArray:
    """[G]: duration over median, from a normal number for all ranks together and one for each.

    A Gaussian copula (Nelsen 2006, An Introduction to Copulas, section 2.3): ranks share the part
    ``together`` of the variance of the normal scores, and each score's quantile is looked up.

    >>> spread = Jitter(ratios=(0.5, 1.0, 1.5), together=0.0)
    >>> ratios(spread, np.array([9.0, -0.4307, 0.0, 0.4307, 9.0])).round(2).tolist()
    [0.75, 1.0, 1.25, 1.5]
    """
    score_G = np.sqrt(jitter.together) * drawn_G[0] + np.sqrt(1.0 - jitter.together) * drawn_G[1:]
    number = len(jitter.ratios)
    places = (np.arange(number) + 0.5) / number
    found_G: FloatArray = np.interp(ndtr(score_G), places, jitter.ratios)
    return found_G
