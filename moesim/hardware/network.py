"""When a collective ends for each GPU: what every network model answers, and the model ``ports``.

Axes: G GPUs of the expert-parallel group, P GPUs per node. A *hop* is one stage of a collective:
bytes_GG[i, j] from GPU i to GPU j, over NVLink inside a node and over the NICs between nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from traces.base.jit import jit

FloatArray = NDArray[np.float64]


class Network(Protocol):
    """A network model, built once for a deployment's links."""

    def collective(
        self,
        start_G: FloatArray,
        first_GG: FloatArray,
        second_GG: FloatArray,
        free_G: FloatArray | None = None,
    ) -> FloatArray:
        """Ends of a collective.

        Args:
            start_G: seconds at which each GPU enters.
            first_GG, second_GG: bytes of the two hops; the second relays the first, or is all zeros.
            free_G: seconds at which each GPU has left the collective before this one: nothing reaches it
                earlier. By default all have when the first enters.

        Returns:
            end_G in seconds; no GPU leaves before every GPU has entered.
        """


@dataclass(frozen=True)
class Fabric:
    """The links of an expert-parallel group as its kernels see them.

    Attributes:
        gpus_per_node: P; GPU g stands in node g // P.
        nvlink_bandwidth, nic_bandwidth: bytes per second that one GPU sends, and at the same time
            receives, inside and outside its node.
        nvlink_latency_s, nic_latency_s: seconds until the first byte arrives.
        nvlink_G, nic_G: part of its bandwidth that each GPU's port still has; None where all are healthy.
    """

    gpus_per_node: int
    nvlink_bandwidth: float
    nic_bandwidth: float
    nvlink_latency_s: float
    nic_latency_s: float
    nvlink_G: FloatArray | None = None
    nic_G: FloatArray | None = None

    def seconds_per_byte(self, gpus: int) -> tuple[FloatArray, FloatArray]:
        """[G] of each GPU's NVLink port, and of its NIC."""
        healthy_G = np.ones(gpus)
        nvlink_G = healthy_G if self.nvlink_G is None else self.nvlink_G
        nic_G = healthy_G if self.nic_G is None else self.nic_G
        return 1.0 / (self.nvlink_bandwidth * nvlink_G), 1.0 / (self.nic_bandwidth * nic_G)


@dataclass(frozen=True)
class Ports:
    """Only the ports of the GPUs limit, each GPU's NVLink and NIC, each way: below any sharing of links.

    A GPU's outgoing port ends at s + bytes / B. An incoming port ends at
    max over senders k of s_k + Σ_{h: s_h ≥ s_k} b_h / B: whatever starts at or after s_k comes after s_k.
    Both are lower bounds for any sharing of the links, and so is the last end of the collective. Transfer
    kernels send a GPU's tokens in the order of the batch, to whichever GPU each goes: the last copy for
    any receiver leaves when the sender is nearly done. So a receiver also waits for the outgoing port of
    each GPU that sends to it, which leaves the last end as it is. The second hop is a relay, pipelined
    with the first: it ends no earlier than the port that feeds it, and the slower of the two binds, not
    their sum. A GPU leaves when its own ports and those that send to it are done, all relays to it are
    fed, and every GPU has entered (counts are exchanged first).

    A GPU that is still in the collective before takes nothing of this one: for a receiver that is free at f,
    s_k in the formula is max(s_k, f), and likewise for what a sender has for it.

    Example: GPU 0 sends 100 bytes at 10 B/s to GPU 1, which entered at 3 s: both end by 10 s.

    >>> network = Ports(Fabric(2, 10.0, 1.0, 0.0, 0.0))
    >>> network.collective(np.array([0.0, 3.0]), np.array([[0.0, 100], [0, 0]]), np.zeros((2, 2))).tolist()
    [10.0, 10.0]
    """

    fabric: Fabric

    def collective(
        self,
        start_G: FloatArray,
        first_GG: FloatArray,
        second_GG: FloatArray,
        free_G: FloatArray | None = None,
    ) -> FloatArray:
        """Ends of a collective; see :class:`Network`."""
        free_G = np.full(len(start_G), -np.inf) if free_G is None else free_G
        end_G: FloatArray = ports_end(
            np.ascontiguousarray(start_G, np.float64),
            np.ascontiguousarray(free_G, np.float64),
            # From the latest to the earliest; sorted here, for numba takes seconds to compile a sort.
            np.argsort(-start_G, kind="stable"),
            np.argsort(-free_G, kind="stable"),
            np.ascontiguousarray(first_GG, np.float64),
            np.ascontiguousarray(second_GG, np.float64),
            self.fabric.gpus_per_node,
            *self.fabric.seconds_per_byte(len(start_G)),
            self.fabric.nvlink_latency_s,
            self.fabric.nic_latency_s,
        )
        return end_G


@jit
def ports_end(
    start_G: Any,
    free_G: Any,
    sender_G: Any,
    receiver_G: Any,
    first_GG: Any,
    second_GG: Any,
    P: int,
    nvlink_s_B_G: Any,
    nic_s_B_G: Any,
    nvlink_latency: float,
    nic_latency: float,
) -> Any:
    """[G]: when each GPU leaves; see :class:`Ports`.

    Args:
        sender_G, receiver_G: GPUs from the latest to the earliest of ``start_G``, and of ``free_G``.
    """
    G = len(start_G)
    nvlink_out_G = np.zeros(G)
    nic_out_G = np.zeros(G)
    nvlink_in_G = np.zeros(G)
    nic_in_G = np.zeros(G)
    nvlink_end_G = np.zeros(G)
    nic_end_G = np.zeros(G)
    nvlink_sent_G = np.zeros(G)
    nic_sent_G = np.zeros(G)
    uses_nvlink_G = np.zeros(G, np.bool_)
    uses_nic_G = np.zeros(G, np.bool_)
    # A division for each pair of GPUs takes longer than all else here.
    node_G = np.arange(G) // P
    # From the latest to the earliest a running sum is Σ over s_h ≥ s_k.
    for i in range(G):
        sender = sender_G[i]
        node = node_G[sender]
        for j in range(G):
            receiver = receiver_G[j]
            load = first_GG[sender, receiver] + second_GG[sender, receiver]
            if load == 0.0:
                continue
            start = max(start_G[sender], free_G[receiver])
            if node_G[receiver] == node:
                nvlink_out_G[sender] += load
                nvlink_in_G[receiver] += load
                sent = start + nvlink_out_G[sender] * nvlink_s_B_G[sender]
                received = start + nvlink_in_G[receiver] * nvlink_s_B_G[receiver]
                nvlink_sent_G[sender] = max(nvlink_sent_G[sender], sent)
                nvlink_end_G[receiver] = max(nvlink_end_G[receiver], received)
                uses_nvlink_G[receiver] = True
            else:
                nic_out_G[sender] += load
                nic_in_G[receiver] += load
                sent = start + nic_out_G[sender] * nic_s_B_G[sender]
                received = start + nic_in_G[receiver] * nic_s_B_G[receiver]
                nic_sent_G[sender] = max(nic_sent_G[sender], sent)
                nic_end_G[receiver] = max(nic_end_G[receiver], received)
                uses_nic_G[receiver] = True
    end_G = np.empty(G)
    entered = start_G[sender_G[0]]
    for gpu in range(G):
        end = entered
        if nvlink_out_G[gpu] > 0.0:
            end = max(end, nvlink_sent_G[gpu] + nvlink_latency)
        if nic_out_G[gpu] > 0.0:
            end = max(end, nic_sent_G[gpu] + nic_latency)
        if uses_nvlink_G[gpu]:
            end = max(end, nvlink_end_G[gpu] + nvlink_latency)
        if uses_nic_G[gpu]:
            end = max(end, nic_end_G[gpu] + nic_latency)
        end_G[gpu] = end
    for sender in range(G):
        inside, across = nvlink_sent_G[sender] + nvlink_latency, nic_sent_G[sender] + nic_latency
        for gpu in range(G):
            relayed = second_GG[sender, gpu]
            if first_GG[sender, gpu] + relayed == 0.0:
                continue
            near = node_G[sender] == node_G[gpu]
            end_G[gpu] = max(end_G[gpu], inside if near else across)
            if relayed == 0.0:
                continue
            # The entry GPU's NIC feeds a relay over NVLink (dispatch), its NVLink one over the NIC (combine).
            if near and uses_nic_G[sender]:
                end_G[gpu] = max(end_G[gpu], nic_end_G[sender] + nic_latency + nvlink_latency)
            if not near and uses_nvlink_G[sender]:
                end_G[gpu] = max(end_G[gpu], nvlink_end_G[sender] + nvlink_latency + nic_latency)
    return end_G
