"""Who stays where not all fit: the first n by a key, unit by unit.

Axes: N assignments, U limited units.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from traces.jit import jit

_MAGNITUDE, _HIGHEST, _LOWEST = 0x7FFFFFFF, 0x7FFFFFFF, -0x80000000

_FEW = 32
"""Up to here insertion finds the n-th largest, above it bits do, which are slow for a handful of keys.
With 16,384 tokens on 128, 32 and 8 ranks any value from 16 to 64 is within a tenth of the best."""


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
    count_U = np.zeros(units, dtype=np.int64)
    for index in range(len(unit_N)):
        if unit_N[index] >= 0:
            count_U[unit_N[index]] += 1
    end_U = np.zeros(units, dtype=np.int64)
    above = total = 0
    for unit in range(units):
        end_U[unit] = total
        total += count_U[unit]
        above += max(0, count_U[unit] - room_U[unit])
    if above == 0:
        return 0
    # From here on every unit is treated alike: a branch on whether it is above its limit would be
    # mispredicted so often that it costs more than the work it saves.
    pool_N = np.empty(total, dtype=np.int32)
    for index in range(len(unit_N)):
        unit = unit_N[index]
        if unit >= 0:
            pool_N[end_U[unit]] = sort_key(bits_N[index])
            end_U[unit] += 1
    threshold_U = np.full(units, np.int32(_LOWEST))
    ties_U = np.zeros(units, dtype=np.int64)
    for unit in range(units):
        if room_U[unit] == 0:
            threshold_U[unit] = _HIGHEST
        elif count_U[unit] > room_U[unit]:
            keys_N = pool_N[end_U[unit] - count_U[unit] : end_U[unit]]
            threshold_U[unit], ties_U[unit] = _threshold(keys_N, room_U[unit])
    for index in range(len(unit_N)):
        unit = unit_N[index]
        if unit >= 0:
            own = sort_key(bits_N[index])
            stays_N[index] = own >= threshold_U[unit]
            if own == threshold_U[unit]:
                ties_U[unit] -= 1
                stays_N[index] = ties_U[unit] >= 0
    return above


@jit
def sort_key(bits: np.int32) -> np.int32:
    """An integer in the order of the float32 with these bits (sign and magnitude); −0.0 equals 0.0."""
    return bits if bits >= 0 else np.int32(-(bits & _MAGNITUDE))


@jit
def _threshold(keys_N: npt.NDArray[np.int32], limit: int) -> tuple[np.int32, int]:
    """(the ``limit``-th largest key, how many equal to it are among the ``limit`` largest). Reorders keys."""
    threshold = _nth_by_insertion(keys_N, limit) if len(keys_N) <= _FEW else _nth_by_bits(keys_N, limit)
    larger = 0
    for key in keys_N:
        larger += key > threshold
    return threshold, limit - larger


@jit
def _nth_by_insertion(keys_N: npt.NDArray[np.int32], nth: int) -> np.int32:
    """The ``nth`` largest key; moves the ``nth`` largest to the front, in descending order."""
    for position in range(1, len(keys_N)):
        key, hole = keys_N[position], position
        if position >= nth:
            if key <= keys_N[nth - 1]:
                continue
            hole = nth - 1
            keys_N[position] = keys_N[hole]
        while hole > 0 and keys_N[hole - 1] < key:
            keys_N[hole] = keys_N[hole - 1]
            hole -= 1
        keys_N[hole] = key
    found: np.int32 = keys_N[nth - 1]
    return found


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
