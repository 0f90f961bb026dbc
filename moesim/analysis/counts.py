"""Whether two tables of counted work say the same."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from traces.timeline import WorkTable


def same_counts(counted: WorkTable, simulated: WorkTable) -> bool:
    """Whether both hold the same counts and bytes, exactly, in whatever order.

    Rows of one slot, or of one pair of GPUs and hop, count together.
    """
    tables = zip(_summed(counted), _summed(simulated), strict=True)
    return all(np.array_equal(ours, theirs) for ours, theirs in tables)


def _summed(work: WorkTable) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What rows are about, each once in ascending order, and its counts and bytes."""
    about = (work.step_N, work.layer_N, work.phase_N, work.hop_N, work.source_N, work.destination_N)
    keys, row_N = np.unique(np.stack(about, axis=1).astype(np.int64), axis=0, return_inverse=True)
    sums = np.zeros((len(keys), 2), np.int64)
    np.add.at(sums, row_N, np.stack([work.count_N, work.bytes_N], axis=1))
    return keys, sums
