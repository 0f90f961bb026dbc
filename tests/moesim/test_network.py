"""`ports` against its formula written naively, its bounds, and its monotonicity."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from moesim.hardware.network import Fabric
from tests.moesim.flows import ports
from tests.tolerance import rounding

FloatArray = NDArray[np.float64]


def naive(
    start: FloatArray,
    first: FloatArray,
    second: FloatArray,
    fabric: Fabric,
    free: FloatArray | None = None,
) -> FloatArray:
    """Port by port, straight from the docstring."""
    G, P = len(start), fabric.gpus_per_node
    free = np.full(G, -np.inf) if free is None else free
    bandwidth = {True: fabric.nvlink_bandwidth, False: fabric.nic_bandwidth}
    latency = {True: fabric.nvlink_latency_s, False: fabric.nic_latency_s}
    both = first + second

    def ingress(gpu: int, inside: bool) -> float | None:
        senders = [k for k in range(G) if both[k, gpu] > 0 and (k // P == gpu // P) == inside]
        if not senders:
            return None
        begins = {k: max(start[k], free[gpu]) for k in senders}
        later = [
            begins[k] + sum(both[h, gpu] for h in senders if begins[h] >= begins[k]) / bandwidth[inside]
            for k in senders
        ]
        return float(max(later)) + latency[inside]

    def egress(gpu: int, inside: bool) -> float | None:
        receivers = [r for r in range(G) if both[gpu, r] > 0 and (r // P == gpu // P) == inside]
        if not receivers:
            return None
        begins = {r: max(start[gpu], free[r]) for r in receivers}
        later = [
            begins[r] + sum(both[gpu, h] for h in receivers if begins[h] >= begins[r]) / bandwidth[inside]
            for r in receivers
        ]
        return float(max(later)) + latency[inside]

    end = np.full(G, start.max())
    for gpu in range(G):
        times = [end[gpu]]
        for inside in (True, False):
            times += [done for done in (egress(gpu, inside), ingress(gpu, inside)) if done is not None]
        for sender in range(G):
            if both[sender, gpu] > 0:
                sent = egress(sender, sender // P == gpu // P)
                assert sent is not None
                times.append(sent)
        for entry in range(G):
            if second[entry, gpu] > 0:
                inside = entry // P == gpu // P
                fed = ingress(entry, not inside)
                if fed is not None:
                    times.append(fed + latency[inside])
        end[gpu] = max(times)
    return end


@st.composite
def collectives(draw: st.DrawFn) -> tuple[FloatArray, FloatArray, FloatArray, Fabric]:
    P, N = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    G = P * N
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    # Few distinct starts, so that ties are common.
    start = rng.integers(0, 4, G).astype(float)
    first = rng.integers(0, 20, (G, G)) * (rng.random((G, G)) < 0.6)
    second = rng.integers(0, 20, (G, G)) * (rng.random((G, G)) < 0.3)
    np.fill_diagonal(first, 0)
    np.fill_diagonal(second, 0)
    fabric = Fabric(P, 7.0, 2.0, draw(st.sampled_from([0.0, 0.3])), draw(st.sampled_from([0.0, 1.5])))
    return start, first.astype(float), second.astype(float), fabric


@given(case=collectives())
def test_equals_the_formula(case: tuple[FloatArray, FloatArray, FloatArray, Fabric]) -> None:
    np.testing.assert_allclose(ports(*case), naive(*case), rtol=rounding(1000))


@given(case=collectives(), seed=st.integers(0, 2**32))
def test_equals_the_formula_while_receivers_are_still_in_the_collective_before(
    case: tuple[FloatArray, FloatArray, FloatArray, Fabric], seed: int
) -> None:
    free = np.random.default_rng(seed).integers(0, 6, len(case[0])).astype(float)
    end = ports(*case, free)
    np.testing.assert_allclose(end, naive(*case, free), rtol=rounding(1000))
    assert (end >= ports(*case)).all()
    np.testing.assert_array_equal(ports(*case, np.full(len(free), case[0].min())), ports(*case))


def test_a_busy_receiver_holds_up_only_what_is_for_it() -> None:
    """GPU 0 has 4 bytes for GPU 1, free at 10, and 3 for GPU 2, free at once; 1 B/s. GPU 2 sends 5 to GPU 1.

    Nothing reaches GPU 1 before 10, then 9 bytes do: until 19. GPU 0's own port is done at 14.
    """
    bytes_GG = np.zeros((3, 3))
    bytes_GG[0, 1], bytes_GG[0, 2], bytes_GG[2, 1] = 4.0, 3.0, 5.0
    fabric, free = Fabric(3, 1.0, 1.0, 0.0, 0.0), np.array([0.0, 10.0, 0.0])
    assert ports(np.zeros(3), bytes_GG, np.zeros((3, 3)), fabric, free).tolist() == [14.0, 19.0, 15.0]


@given(case=collectives())
def test_no_port_is_above_its_capacity(case: tuple[FloatArray, FloatArray, FloatArray, Fabric]) -> None:
    start, first, second, fabric = case
    end = ports(*case)
    G, P = len(start), fabric.gpus_per_node
    inside = np.arange(G)[:, None] // P == np.arange(G)[None, :] // P
    assert (end >= start.max()).all()
    for within, bandwidth in ((inside, fabric.nvlink_bandwidth), (~inside, fabric.nic_bandwidth)):
        bytes_GG = np.where(within, first + second, 0.0)
        # Everything a GPU sends or receives fits between the first start and its own end.
        assert (bytes_GG.sum(axis=1) <= bandwidth * (end - start) + 1e-9).all()
        assert (bytes_GG.sum(axis=0) <= bandwidth * (end - start.min()) + 1e-9).all()


@given(case=collectives(), seed=st.integers(0, 2**32))
def test_more_bytes_slower_links_or_later_starts_never_end_earlier(
    case: tuple[FloatArray, FloatArray, FloatArray, Fabric], seed: int
) -> None:
    start, first, second, fabric = case
    rng = np.random.default_rng(seed)
    before = ports(*case)
    more = first + rng.integers(0, 5, first.shape) * (1 - np.eye(len(start)))
    assert (ports(start, more, second, fabric) >= before).all()
    later = start + rng.integers(0, 3, len(start))
    assert (ports(later, first, second, fabric) >= before - 1e-12).all()
    slower = Fabric(
        fabric.gpus_per_node,
        fabric.nvlink_bandwidth / 2,
        fabric.nic_bandwidth / 3,
        fabric.nvlink_latency_s,
        fabric.nic_latency_s,
    )
    assert (ports(start, first, second, slower) >= before).all()


@pytest.mark.parametrize("gpus", [2, 3, 8])
def test_uniform_traffic_takes_the_closed_form(gpus: int) -> None:
    bytes_GG = 6.0 * (1 - np.eye(gpus))
    end = ports(np.full(gpus, 2.0), bytes_GG, np.zeros_like(bytes_GG), Fabric(gpus, 3.0, 1.0, 0.5, 9.0))
    np.testing.assert_allclose(end, 2.0 + (gpus - 1) * 6.0 / 3.0 + 0.5, rtol=rounding(4))


def test_a_late_sender_delays_only_what_comes_after_it() -> None:
    """GPU 2 gets 10 bytes from t = 0 and 4 bytes from t = 8 at 1 B/s: done at max(0 + 14, 8 + 4) = 14."""
    bytes_GG = np.zeros((3, 3))
    bytes_GG[0, 2], bytes_GG[1, 2] = 10.0, 4.0
    fabric = Fabric(3, 1.0, 1.0, 0.0, 0.0)
    assert ports(np.array([0.0, 8.0, 0.0]), bytes_GG, np.zeros((3, 3)), fabric).tolist() == [10.0, 12.0, 14.0]
    assert ports(np.array([0.0, 11.0, 0.0]), bytes_GG, np.zeros((3, 3)), fabric)[2] == 15.0


def test_a_receiver_waits_for_a_sender_that_serves_many() -> None:
    """GPU 0 sends 1 byte to GPU 1 and 9 to GPU 2, in the order of its tokens: both have all at 10."""
    bytes_GG = np.zeros((3, 3))
    bytes_GG[0, 1], bytes_GG[0, 2] = 1.0, 9.0
    fabric = Fabric(3, 1.0, 1.0, 0.0, 0.0)
    assert ports(np.zeros(3), bytes_GG, np.zeros((3, 3)), fabric).tolist() == [10.0, 10.0, 10.0]


@given(case=collectives())
def test_the_last_end_is_that_of_the_busiest_port(
    case: tuple[FloatArray, FloatArray, FloatArray, Fabric],
) -> None:
    """Without relays and latency the collective ends with the port that is done last."""
    start, first, second, fabric = case
    if fabric.nvlink_latency_s or fabric.nic_latency_s:
        return
    G, P, none = len(start), fabric.gpus_per_node, np.zeros_like(second)
    inside = np.arange(G)[:, None] // P == np.arange(G)[None, :] // P
    last = start.max()
    for within, bandwidth in ((inside, fabric.nvlink_bandwidth), (~inside, fabric.nic_bandwidth)):
        bytes_GG = np.where(within, first, 0.0)
        sends = bytes_GG.sum(axis=1) > 0
        last = max([last, *(start + bytes_GG.sum(axis=1) / bandwidth)[sends]])
        for gpu in range(G):
            for k in np.flatnonzero(bytes_GG[:, gpu]):
                last = max(last, start[k] + bytes_GG[start >= start[k], gpu].sum() / bandwidth)
    assert ports(start, first, none, fabric).max() == pytest.approx(last, rel=rounding(1000))


def test_a_relay_waits_for_the_port_that_feeds_it_and_hides_behind_it() -> None:
    """GPU 0 → NIC → GPU 2 → NVLink → GPU 3: the slower stage binds, not the sum of both."""
    first, second = np.zeros((4, 4)), np.zeros((4, 4))
    first[0, 2], second[2, 3] = 100.0, 100.0
    start = np.zeros(4)
    assert ports(start, first, second, Fabric(2, 50.0, 10.0, 0.0, 0.0))[3] == 10.0
    assert ports(start, first, second, Fabric(2, 5.0, 10.0, 0.0, 0.0))[3] == 20.0
    assert ports(start, first, second, Fabric(2, 50.0, 10.0, 0.25, 1.0))[3] == 11.25
