"""Who stays where not all fit: the first n by a key, unit by unit.

Axes: N assignments, U limited units.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from traces.jit import jit

_MAGNITUDE, _HIGHEST, _LOWEST = 0x7FFFFFFF, 0x7FFFFFFF, -0x80000000

_FEW = 16
"""So many keys too many are put aside one by one; where more are, bits find the n-th largest.
With 16,384 tokens on 128, 32, 8 and 1 ranks no other power of two is better by more than a tenth."""


@jit
def cut(
    unit_N: npt.NDArray[np.int16],
    bits_N: npt.NDArray[np.int32],
    room_U: npt.NDArray[np.int64],
    stays_N: npt.NDArray[np.bool_],
) -> int:
    """Keep of each unit's assignments as many as it has room for, the largest keys first; -1 stands for none.

    A unit without room for all is cut at a threshold: all that is above it stays, and of what equals it the
    first in order, until the room is filled.

    Returns:
        how many do not stay; False is written into ``stays_N`` where they stand.
    """
    units = len(room_U)
    # Entry 0 is that of no unit, which is without limit; unsigned indices need no test for negative values.
    count_U, end_U = np.zeros(units + 1, np.int64), np.zeros(units + 1, np.int64)
    above = 0
    for index in range(len(unit_N)):
        count_U[np.uint64(unit_N[index] + 1)] += 1
    for unit in range(1, units + 1):
        end_U[unit] = end_U[unit - 1] + count_U[unit - 1]
        above += max(0, count_U[unit] - room_U[unit - 1])
    if above == 0:
        return 0
    # From here on all assignments are treated alike: a branch on whether a unit is above its limit would be
    # mispredicted so often that it costs more than the work it saves.
    pool_N = np.empty(len(unit_N), np.int32)
    for index in range(len(unit_N)):
        entry = np.uint64(unit_N[index] + 1)
        pool_N[np.uint64(end_U[entry])] = sort_key(bits_N[index])
        end_U[entry] += 1
    threshold_U, ties_U = np.full(units + 1, np.int32(_LOWEST)), np.zeros(units + 1, np.int64)
    for unit in range(1, units + 1):
        room = room_U[unit - 1]
        if room == 0:
            threshold_U[unit] = _HIGHEST
        elif count_U[unit] > room:
            first, last = end_U[unit] - count_U[unit], end_U[unit]
            threshold_U[unit], ties_U[unit] = _threshold(pool_N, first, last, room)
    for index in range(len(unit_N)):
        entry = np.uint64(unit_N[index] + 1)
        own = sort_key(bits_N[index])
        tie = own == threshold_U[entry]
        ties_U[entry] -= tie
        stays_N[index] = (own > threshold_U[entry]) | (tie & (ties_U[entry] >= 0))
    return above


@jit
def sort_key(bits: np.int32) -> np.int32:
    """An integer in the order of the float32 with these bits (sign and magnitude); −0.0 equals 0.0."""
    return bits if bits >= 0 else np.int32(-(bits & _MAGNITUDE))


@jit
def _threshold(pool_N: npt.NDArray[np.int32], first: int, last: int, limit: int) -> tuple[np.int32, int]:
    """(the ``limit``-th largest of a part of the keys, how many equal to it are among the ``limit`` largest).

    Reorders the keys.
    """
    few = last - first - limit <= _FEW
    threshold = (
        _nth_by_selection(pool_N, first, last, limit) if few else _nth_by_bits(pool_N[first:last], limit)
    )
    larger = 0
    for index in range(first, last):
        larger += pool_N[index] > threshold
    return threshold, limit - larger


@jit
def _nth_by_selection(pool_N: npt.NDArray[np.int32], first: int, last: int, nth: int) -> np.int32:
    """The ``nth`` largest key of a part: the smallest once all that are too many are put aside at its end."""
    smallest = np.int32(_HIGHEST)
    for end in range(last - 1, first + nth - 2, -1):
        smallest, at = pool_N[first], first
        for index in range(first + 1, end + 1):
            # Two selections in place of a branch that nobody could predict.
            less = pool_N[index] < smallest
            smallest = pool_N[index] if less else smallest
            at = index if less else at
        pool_N[at], pool_N[end] = pool_N[end], pool_N[at]
    return smallest


@jit
def _nth_by_bits(keys_N: npt.NDArray[np.int32], nth: int) -> np.int32:
    """The ``nth`` largest key: the largest number that at least ``nth`` keys reach, found bit by bit.

    32 passes that the compiler turns into vector code: linear for any input, unlike quickselect.
    """
    found = np.int32(_LOWEST)
    for bit in range(31, -1, -1):
        # From the lowest number, adding 2³¹ for the sign bit gives 0.
        candidate = np.int32(0) if bit == 31 else np.int32(found + (1 << bit))
        reached = np.int32(0)
        for key in keys_N:
            reached += np.int32(key >= candidate)
        if reached >= nth:
            found = candidate
    return found
