"""What a step consists of, and what its transfers carry."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.dispatch.count import count_work
from moesim.dispatch.modes import MODES
from moesim.hardware.transfer import Bytes, combine_transfer, dispatch_transfer


@pytest.mark.parametrize("mode", MODES)
@given(seed=st.integers(0, 2**32))
def test_combine_takes_every_copy_back_over_the_same_links(mode: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    P, N = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    G = P * N
    slot_LTK = rng.integers(0, G, (1, 4 * G, 3)).astype(np.int16)
    work = count_work(slot_LTK, np.arange(G + 1) * 4, np.arange(G, dtype=np.int32), P, mode)
    sent, relayed = work.sent_LGG[0].astype(float), work.relayed_LGG[0].astype(float)
    there, back = dispatch_transfer(sent, relayed, 10.0), combine_transfer(sent, relayed, 10.0, P)
    total_there = there.first_GG + there.second_GG
    total_back = back.first_GG + back.second_GG
    np.testing.assert_array_equal(total_there, total_back.T)
    assert there.cross_node_bytes(P) == back.cross_node_bytes(P)
    # Bytes sent are bytes received.
    assert total_there.sum(axis=1).sum() == there.received_G.sum()
    if mode in ("per_expert", "per_gpu"):
        assert not there.second_GG.any()
        assert not back.second_GG.any()


def test_combine_sums_in_the_node_before_it_crosses() -> None:
    """Dispatch 0 → 2 over the NIC, relayed 2 → 3. Back: 3 → 2 first, then one copy 2 → 0."""
    sent, relayed = np.zeros((4, 4)), np.zeros((4, 4))
    sent[0, 2], relayed[2, 3] = 5.0, 3.0
    back = combine_transfer(sent, relayed, 2.0, 2)
    assert back.first_GG[3, 2] == 6.0
    assert back.second_GG[2, 0] == 10.0
    assert back.first_GG.sum() + back.second_GG.sum() == 16.0


@pytest.mark.parametrize(
    ("hidden", "dtype", "expected"),
    [(7168, "bf16", 14336.0), (7168, "fp8", 7168 + 56 * 4), (100, "fp8", 100 + 4), (64, "fp32", 256.0)],
)
def test_bytes_of_a_token(hidden: int, dtype: str, expected: float) -> None:
    """fp8 carries one fp32 scale for each 128 values, the last block filled up or not."""
    assert Bytes.of(hidden, dtype, "bf16").dispatch == expected
