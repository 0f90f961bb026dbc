"""Which of several steps or repeats to show."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from traces.timeline import Timeline


def typical(
    timeline: Timeline, part_N: NDArray[np.int32], middle: Callable[[NDArray[np.float64]], float]
) -> Timeline:
    """Of the parts that ``part_N`` tells apart, the one whose length is closest to the middle one's.

    Args:
        part_N: step or repeat of each span.
        middle: mean or median of the lengths, seconds. Of equally close parts the first is taken.
    """
    parts, index_N = np.unique(part_N, return_inverse=True)
    start_s, end_s = np.full(len(parts), np.inf), np.full(len(parts), -np.inf)
    np.minimum.at(start_s, index_N, timeline.start_s_N)
    np.maximum.at(end_s, index_N, timeline.end_s_N)
    length_s = end_s - start_s
    return timeline.select(index_N == int(np.abs(length_s - middle(length_s)).argmin()))


def over_steps(error_WLG: NDArray[np.float64]) -> NDArray[np.float64]:
    """[L, G]: the median over steps that have a value, NaN where none has."""
    none_LG = np.isnan(error_WLG).all(axis=0)
    median_LG: NDArray[np.float64] = np.nanmedian(np.where(none_LG, 0.0, error_WLG), axis=0)
    return np.where(none_LG, np.nan, median_LG)
