"""Which tokens of the trace make up each step of a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import TraceError
from traces.jit import jit

# Positions before this one are tokens of the chat template, the same in almost every request: a batch
# that starts there in lock-step would show an imbalance that no server sees.
FIRST_POSITION = 4


def decode_rows(
    request_offsets: NDArray[np.int64],
    position_T: NDArray[np.int32],
    batch: int,
    steps: int,
    rng: np.random.Generator,
) -> Iterator[NDArray[np.int64]]:
    """Trace rows of each decode step, one for each of ``batch`` sequences.

    A sequence draws a request and a start position of at least 4, then follows the request token by
    token; when it ends, the sequence draws another. At the start each request is drawn equally often
    (once, or never, if there are more requests than sequences); later draws are uniform.

    Args:
        request_offsets: [R + 1]; request r is rows request_offsets[r] to request_offsets[r + 1].
        position_T: position of each row in its request, ascending.
        batch, steps: sequences, and rows for each of them.
        rng: where the draws come from.

    Yields:
        row_B, int64: the row that each sequence decodes in this step.

    Raises:
        TraceError: no request has a token at position 4 or later.
    """
    ends_R = request_offsets[1:]
    starts_R = np.array(
        [
            start + np.searchsorted(position_T[start:end], FIRST_POSITION)
            for start, end in zip(request_offsets[:-1], ends_R, strict=True)
        ],
        np.int64,
    )
    usable_R = np.flatnonzero(starts_R < ends_R)
    if not len(usable_R):
        raise TraceError(
            f"no request has a token at position {FIRST_POSITION} or later, where decoding starts",
            field="position",
            got=f"{len(ends_R)} requests",
        )

    def draw(requests: NDArray[np.int64]) -> NDArray[np.int64]:
        return rng.integers(starts_R[requests], ends_R[requests])

    turns = -(-batch // len(usable_R))
    request_B = np.concatenate([rng.permutation(usable_R) for _ in range(turns)])[:batch]
    row_B = draw(request_B)
    for _ in range(steps):
        yield row_B.copy()
        row_B += 1
        ended_B = np.flatnonzero(row_B == ends_R[request_B])
        request_B[ended_B] = rng.choice(usable_R, len(ended_B))
        row_B[ended_B] = draw(request_B[ended_B])


def home_offsets(tokens_G: NDArray[np.int64]) -> NDArray[np.int64]:
    """[G + 1]: tokens offsets[g] to offsets[g + 1] of a step have their home on rank g."""
    return np.concatenate([[0], np.cumsum(tokens_G)]).astype(np.int64)


def gather_ids(
    ids_TLK: NDArray[np.uint8] | NDArray[np.uint16], row_B: NDArray[np.int64]
) -> NDArray[np.int16]:
    """ids_LBK, int16: the experts of the chosen rows, layer by layer."""
    _, L, K = ids_TLK.shape
    ids_LBK = np.empty((L, len(row_B), K), np.int16)
    _gather(ids_TLK, row_B, ids_LBK)
    return ids_LBK


def gather_weights(weights_TLK: NDArray[np.floating], row_B: NDArray[np.int64]) -> NDArray[np.float32]:
    """weights_LBK, float32: their gate weights."""
    return np.ascontiguousarray(weights_TLK[row_B].astype(np.float32).transpose(1, 0, 2))


@jit
def _gather(ids_TLK: Any, row_B: Any, ids_LBK: Any) -> None:
    L, B, K = ids_LBK.shape
    for b in range(B):
        row = row_B[b]
        for layer in range(L):
            for k in range(K):
                ids_LBK[layer, b, k] = ids_TLK[row, layer, k]
