"""Random numbers that belong to a place in a batch, and not to a stream."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from traces.base.jit import jit


def noise(seed: int, draw: int, shape: tuple[int, ...]) -> npt.NDArray[np.int32]:
    """Numbers from 0 to 2³¹ − 1, by seed, number of the draw and place alone.

    SplitMix64 (Steele, Lea and Flood 2014, doi 10.1145/2660193.2660195), started from a seed sequence.

    >>> noise(0, 0, (2, 2)).shape, bool((noise(0, 0, (9,)) == noise(0, 1, (9,))).any())
    ((2, 2), False)
    """
    start = np.random.SeedSequence([seed, draw]).generate_state(1, np.uint64)[0]
    noise_N = np.empty(math.prod(shape), np.int32)
    _fill(start, noise_N)
    return noise_N.reshape(shape)


@jit
def _fill(start: Any, noise_N: Any) -> None:
    state = np.uint64(start)
    for place in range(len(noise_N)):
        state += np.uint64(0x9E3779B97F4A7C15)
        mixed = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        noise_N[place] = np.int32((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(33))
