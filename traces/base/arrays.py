"""The types of arrays by short names; what an axis is, the end of an array's name says."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Int8s = npt.NDArray[np.int8]
Int16s = npt.NDArray[np.int16]
Int32s = npt.NDArray[np.int32]


def ranks(group_N: npt.NDArray[np.integer]) -> Ints:
    """int64 [N], how many entries of the same number stand before each.

    >>> ranks(np.array([5, 0, 5, 5]))
    array([0, 0, 1, 2])
    """
    by_group_N = np.argsort(group_N, kind="stable")
    sorted_N = group_N[by_group_N]
    rank_N = np.empty(len(group_N), dtype=np.int64)
    rank_N[by_group_N] = np.arange(len(group_N)) - np.searchsorted(sorted_N, sorted_N)
    return rank_N
