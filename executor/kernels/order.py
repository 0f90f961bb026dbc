"""Sorting the assignments of a batch by slot: a permutation and a histogram, the same in every run.

An assignment's place is a count, not a matter of who comes first: there are no atomic operations.
Axes: A assignments (token t's choice k is t · K + k), S slots, C chunks of assignments.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_SMALL = 2048
"""Assignments up to which every pair of them is compared: 4 M comparisons in one launch. Not yet measured."""
_QUERIES, _KEYS = 32, 128
_CHUNK, _CHUNKS = 1024, 256
"""Least assignments of a chunk, and most chunks: the registers of one program hold them all."""
_CELLS = 4096
"""Counts that it adds up at a time, of all chunks for some slots."""


class Order(NamedTuple):
    """Assignments by slot, within a slot in their own order.

    Attributes:
        assignment_A: int32; from ``end_S[-1]`` on it holds nothing of use.
        end_S: int32, where each slot's stretch of it ends.
    """

    assignment_A: Tensor
    end_S: Tensor


def sort_by_slot(ids_A: Tensor, slots: int) -> Order:
    """Which assignments each slot serves; ids from 0 to ``slots`` - 1, any other means: nobody serves it.

    ids [2, 0, -1, 2] and three slots: assignment 1 is slot 0's, 0 and 3 are slot 2's, so that
    ``assignment_A`` begins [1, 0, 3] and ``end_S`` is [1, 1, 3].
    """
    assignments = len(ids_A)
    assignment_A = torch.empty(assignments, dtype=torch.int32, device=ids_A.device)
    end_S = torch.empty(slots, dtype=torch.int32, device=ids_A.device)
    if assignments <= _SMALL:
        _compare_all[(triton.cdiv(assignments + slots, _QUERIES),)](
            ids_A, assignment_A, end_S, assignments, slots, QUERIES=_QUERIES, KEYS=_KEYS
        )
        return Order(assignment_A, end_S)
    chunk = max(_CHUNK, triton.next_power_of_2(triton.cdiv(assignments, _CHUNKS)))
    chunks = triton.cdiv(assignments, chunk)
    # Two more: for what nobody serves, and for what lies behind the last assignment.
    bins = max(16, triton.next_power_of_2(slots + 2))
    count_CS, start_CS = (torch.empty(chunks, bins, dtype=torch.int32, device=ids_A.device) for _ in range(2))
    _count[(chunks,)](ids_A, count_CS, assignments, slots, chunk, BINS=bins, KEYS=_CHUNK)
    height = triton.next_power_of_2(chunks)
    at_a_time = min(bins, _CELLS // height)
    _add_up[(1,)](count_CS, start_CS, end_S, chunks, slots, bins, CHUNKS=height, BINS=at_a_time, num_warps=8)
    _place[(triton.cdiv(assignments, _QUERIES),)](
        ids_A, start_CS, assignment_A, assignments, slots, chunk, bins, QUERIES=_QUERIES, KEYS=_KEYS
    )
    return Order(assignment_A, end_S)


@triton.jit
def _keys(ids, a, assignments, slots):
    """Their slots; ``slots`` where nobody serves them, ``slots`` + 1 behind the last assignment."""
    slot = tl.load(ids + a, mask=a < assignments, other=0)
    key = tl.where((slot >= 0) & (slot < slots), slot, slots).to(tl.int32)
    return tl.where(a < assignments, key, slots + 1)


@triton.jit(do_not_specialize=("assignments",))
def _compare_all(ids, assignment, end, assignments, slots, QUERIES: tl.constexpr, KEYS: tl.constexpr):
    """An assignment's place is how many come before it. Slot s ends where an assignment of its own would
    stand that came behind all others: so it is asked as assignment ``assignments`` + s.
    """
    q = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    asked = tl.where(q < assignments, _keys(ids, q, assignments, slots), q - assignments)
    before = tl.zeros((QUERIES, KEYS), tl.int32)
    for first in range(0, assignments, KEYS):
        a = first + tl.arange(0, KEYS)
        key = _keys(ids, a, assignments, slots)
        tie = (key[None, :] == asked[:, None]) & (a[None, :] < q[:, None])
        before += ((key[None, :] < asked[:, None]) | tie).to(tl.int32)
    place = tl.sum(before, axis=1)
    tl.store(assignment + place, q, mask=q < assignments)
    tl.store(end + (q - assignments), place, mask=(q >= assignments) & (q < assignments + slots))


@triton.jit(do_not_specialize=("assignments",))
def _count(ids, count, assignments, slots, chunk, BINS: tl.constexpr, KEYS: tl.constexpr):
    """The histogram of one chunk."""
    first = tl.program_id(0) * chunk
    total = tl.zeros((BINS,), tl.int32)
    for a in range(first, first + chunk, KEYS):
        total += tl.histogram(_keys(ids, a + tl.arange(0, KEYS), assignments, slots), BINS)
    tl.store(count + tl.program_id(0) * BINS + tl.arange(0, BINS), total)


@triton.jit(do_not_specialize=("chunks",))
def _add_up(count, start, end, chunks, slots, bins, CHUNKS: tl.constexpr, BINS: tl.constexpr):
    """From counts of chunk and slot the place of the first such assignment, slots first, then chunks.

    Not in the place of the counts: a thread may hold a copy of a count that another thread would replace.
    """
    c = tl.arange(0, CHUNKS)
    before = 0
    for first in range(0, bins, BINS):
        s = first + tl.arange(0, BINS)
        cell, mask = c[:, None] * bins + s[None, :], c[:, None] < chunks
        in_chunk = tl.load(count + cell, mask=mask, other=0)
        in_slot = tl.sum(in_chunk, axis=0)
        slot_end = before + tl.cumsum(in_slot, axis=0)
        first_place = (slot_end - in_slot)[None, :] + tl.cumsum(in_chunk, axis=0) - in_chunk
        tl.store(start + cell, first_place, mask=mask)
        tl.store(end + s, slot_end, mask=s < slots)
        before += tl.sum(in_slot)


@triton.jit(do_not_specialize=("assignments",))
def _place(
    ids, start, assignment, assignments, slots, chunk, bins, QUERIES: tl.constexpr, KEYS: tl.constexpr
):
    """Behind those of the same slot that stand earlier in the chunk."""
    q_first = tl.program_id(0) * QUERIES
    q = q_first + tl.arange(0, QUERIES)
    asked = _keys(ids, q, assignments, slots)
    served = asked < slots
    its_chunk = q_first // chunk
    before = tl.zeros((QUERIES, KEYS), tl.int32)
    for first in range(its_chunk * chunk, q_first + QUERIES, KEYS):
        a = first + tl.arange(0, KEYS)
        key = _keys(ids, a, assignments, slots)
        before += ((key[None, :] == asked[:, None]) & (a[None, :] < q[:, None])).to(tl.int32)
    place = tl.load(start + its_chunk * bins + asked, mask=served, other=0) + tl.sum(before, axis=1)
    tl.store(assignment + place, q, mask=served)
