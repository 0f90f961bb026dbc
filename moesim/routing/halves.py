"""Which tokens of a step make up its first micro-batch, where two of them overlap.

Axes: T tokens sorted by home rank, G ranks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def first_half_T(offsets_G: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Of each rank the first half of its tokens, rounded up.

    Args:
        offsets_G: [G + 1]; tokens offsets_G[g] to offsets_G[g + 1] are at home on rank g, the first is 0.

    >>> first_half_T(np.array([0, 3, 3, 4])).tolist()
    [True, True, False, True]
    """
    tokens_G = np.diff(offsets_G)
    place_T = np.arange(offsets_G[-1]) - np.repeat(offsets_G[:-1], tokens_G)
    first_T: NDArray[np.bool_] = place_T < np.repeat(-(-tokens_G // 2), tokens_G)
    return first_T
