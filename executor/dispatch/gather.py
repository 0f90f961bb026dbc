"""Two operations on rows that every mode is made of: counting by key, and summing by key.

Axes: A entries, N keys, X rows, H hidden width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def tally(key_A: Tensor, keys: int) -> Tensor:
    """int64 [N]: how often each key from 0 to ``keys`` - 1 occurs; unlike ``bincount`` it waits for no GPU.

    >>> tally(torch.tensor([2, 0, 2]), 3).tolist()
    [1, 0, 2]
    """
    count_N = torch.zeros(keys, dtype=torch.int64, device=key_A.device)
    return count_N.scatter_add_(0, key_A, torch.ones_like(key_A))


def sum_rows(
    rows_XH: Tensor,
    key_A: Tensor,
    keys: int,
    *,
    row_A: Tensor | None = None,
    weight_A: Tensor | None = None,
) -> Tensor:
    """[N, H]: the weighted sum of the rows of each key; zeros for a key without any.

    One pass over the rows: ``embedding_bag`` sums in float32 whatever the dtype, and was 2 to 6 times as fast
    on one CPU thread as ``index_add_`` on weighted rows (256 x 512 to 1024 x 4096, fp32 and bf16).

    Args:
        rows_XH: the rows.
        key_A: int64, the key that each entry counts for.
        keys: N.
        row_A: the row of each entry; by default entry a is row a.
        weight_A: by default 1.

    >>> rows_XH = torch.tensor([[1.0], [2.0], [4.0]])
    >>> sum_rows(rows_XH, torch.tensor([1, 0, 1]), 3).ravel().tolist()
    [2.0, 5.0, 0.0]
    """
    order_A = torch.argsort(key_A, stable=True)
    count_N = tally(key_A, keys)
    return torch.nn.functional.embedding_bag(
        order_A if row_A is None else row_A[order_A],
        rows_XH,
        count_N.cumsum(0) - count_N,
        mode="sum",
        per_sample_weights=None if weight_A is None else weight_A[order_A].to(rows_XH.dtype),
    )
