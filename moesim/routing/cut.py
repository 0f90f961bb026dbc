"""Who stays where not all fit: the first n by a key, unit by unit.

Axes: N assignments, U limited units, D values of a digit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from traces.base.jit import jit, jit_inside

_MAGNITUDE = 0x7FFFFFFF

# An element to sort: how far its key is below the largest in the upper half, its index in the lower.
_HALF, _INDEX = np.uint64(32), np.uint64(0xFFFFFFFF)

# Gate weights, float32 over ten octaves, are sorted in three passes with tables that fit the first cache.
_DIGIT, _VALUES = np.uint64(9), 1 << 9
_MASK = np.uint64(_VALUES - 1)

_FEW = 32
"""So many assignments are compared in pairs, before tables of units and digits are clear."""


@jit
def cut(
    unit_N: npt.NDArray[np.int16],
    bits_N: npt.NDArray[np.int32],
    room_U: npt.NDArray[np.int64],
    stays_N: npt.NDArray[np.bool_],
) -> int:
    """Keep of each unit's assignments as many as it has room for, the largest keys first; -1 stands for none.

    What asks a unit without room for all is sorted by key, equal ones by index, and takes what room there is
    in this order: linear for any input, and no branch depends on a key, which nobody could predict.

    Returns:
        how many do not stay; False is written into ``stays_N`` where they stand.
    """
    if len(unit_N) <= _FEW:
        return _cut_few(unit_N, bits_N, room_U, stays_N)
    units = len(room_U)
    # Entry 0 is that of no unit, which is without limit; unsigned indices need no test for negative values.
    count_U = np.zeros(units + 1, np.int32)
    for index in range(len(unit_N)):
        count_U[np.uint64(unit_N[index] + 1)] += 1
    full_U, left_U = np.zeros(units + 1, np.uint64), np.empty(units + 1, np.int32)
    above = asking = 0
    for unit in range(1, units + 1):
        left_U[unit] = min(room_U[unit - 1], np.int64(count_U[unit]))
        full_U[unit] = left_U[unit] < count_U[unit]
        above += count_U[unit] - left_U[unit]
        asking += count_U[unit] if left_U[unit] < count_U[unit] else 0
    if above == 0:
        return 0
    for index in _in_order(unit_N, bits_N, full_U, asking):
        entry = np.uint64(unit_N[index] + 1)
        left_U[entry] -= 1
        stays_N[index] = left_U[entry] >= 0
    return above


@jit_inside
def sort_key(bits: np.int32) -> np.int32:
    """An integer in the order of the float32 with these bits (sign and magnitude); −0.0 equals 0.0."""
    return bits if bits >= 0 else np.int32(-(bits & _MAGNITUDE))


@jit_inside
def _cut_few(unit_N: Any, bits_N: Any, room_U: Any, stays_N: Any) -> int:
    """As :func:`cut`: an assignment stays if fewer of its unit go before it than there is room for."""
    above = 0
    for index in range(len(unit_N)):
        unit, key = unit_N[index], sort_key(bits_N[index])
        if unit < 0:
            continue
        before = 0
        for other in range(len(unit_N)):
            ahead = (sort_key(bits_N[other]) > key) | ((sort_key(bits_N[other]) == key) & (other < index))
            before += ahead & (unit_N[other] == unit)
        stays_N[index] = before < room_U[unit]
        above += before >= room_U[unit]
    return above


@jit_inside
def _in_order(unit_N: Any, bits_N: Any, full_U: Any, asking: int) -> Any:
    """uint64: the indices of the ``asking`` assignments of full units, the largest keys first."""
    lowest, highest = np.int32(_MAGNITUDE), np.int32(-_MAGNITUDE)
    for bits in bits_N:
        lowest, highest = min(lowest, sort_key(bits)), max(highest, sort_key(bits))
    # The last place takes what is overwritten, so that nothing branches on whether a unit is full.
    sorted_N, other_N = np.empty(asking + 1, np.uint64), np.empty(asking, np.uint64)
    at = np.uint64(0)
    for index in range(len(unit_N)):
        below = np.uint64(np.int64(highest) - sort_key(bits_N[index]))
        sorted_N[at] = below << _HALF | np.uint64(index)
        at += full_U[np.uint64(unit_N[index] + 1)]
    sorted_N = sorted_N[:asking]
    first_D, shift = np.empty(_VALUES, np.int32), _HALF
    span = np.uint64(np.int64(highest) - lowest)
    while span > 0:
        _sort_by_digit(sorted_N, shift, first_D, other_N)
        sorted_N, other_N = other_N, sorted_N
        span, shift = span >> _DIGIT, shift + _DIGIT
    for place in range(asking):
        sorted_N[place] &= _INDEX
    return sorted_N


@jit_inside
def _sort_by_digit(from_N: Any, shift: Any, first_D: Any, to_N: Any) -> None:
    """A counting sort, stable, by the digit that begins at bit ``shift``; overwrites ``first_D``."""
    first_D[:] = 0
    for element in from_N:
        first_D[element >> shift & _MASK] += 1
    before = np.int32(0)
    for value in range(_VALUES):
        first_D[value], before = before, before + first_D[value]
    for element in from_N:
        value = element >> shift & _MASK
        to_N[np.uint64(first_D[value])] = element
        first_D[value] += 1
