"""Who stays where not all fit, against a naive choice: few and many, any bits of a float, no room."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.routing.cut import cut
from tests.examples import examples

VALUES = [0.0, -0.0, 1e-45, 0.1, 0.1000001, 0.5, 1.0, 3e38, -0.2, -3e38]
"""Ties, denormals, both zeros, all signs: what a weight or any other key may be."""


@settings(max_examples=examples(60))
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0, 1, 6, 32, 33, 123, 431]),
    st.integers(1, 9),
    st.sampled_from(["few values", "any", "counts"]),
)
def test_the_largest_of_each_unit_stay(seed: int, size: int, units: int, kind: str) -> None:
    chance = np.random.default_rng(seed)
    unit_N = chance.integers(-1, units, size).astype(np.int16)
    if kind == "counts":
        bits_N = chance.integers(0, 2**31 - 1, size).astype(np.int32)
    elif kind == "any":
        bits_N = chance.standard_exponential(size).astype(np.float32).view(np.int32)
    else:
        bits_N = chance.choice(np.array(VALUES, np.float32), size).view(np.int32)
    room_U = chance.integers(0, 1 + size // units * 2, units)
    stays_N = np.ones(size, np.bool_)
    above = cut(unit_N, bits_N, room_U, stays_N)
    key_N = bits_N.tolist() if kind == "counts" else bits_N.view(np.float32).tolist()
    taken: Counter[int] = Counter()
    for index in sorted(range(size), key=lambda index: (-key_N[index], index)):
        unit = int(unit_N[index])
        taken[unit] += 1
        assert stays_N[index] == (unit < 0 or taken[unit] <= room_U[unit])
    assert above == np.count_nonzero(~stays_N)
