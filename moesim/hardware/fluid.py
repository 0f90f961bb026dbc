"""The network model ``fluid``: the flows of a collective share every link of their paths max-min fairly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.hardware.fair_share import share_links
from moesim.hardware.routes import Routes
from traces.base.jit import jit

FloatArray = NDArray[np.float64]

EPSILON = 1e-3
"""Share of the time since a collective's first start within which ends are one event; see ``share_links``.

It moves an end by about as large a share of that time: at most 1.25 times it in 6,000 random cases of up to
40 flows, and by 1e-4 on the benchmark's traffic.
"""


@dataclass(frozen=True)
class Flows:
    """What a collective sends, one entry for each flow.

    Attributes:
        sender_F, receiver_F: GPUs.
        start_F, end_F: seconds in which links carry it; it arrives a latency later.
        bytes_F: bytes.
        weight_F: flows that were merged, because pair and start are the same.
        peak_L: bytes per second, the most that each link of the routes carried at once.
    """

    sender_F: NDArray[np.int64]
    receiver_F: NDArray[np.int64]
    start_F: FloatArray
    end_F: FloatArray
    bytes_F: FloatArray
    weight_F: FloatArray
    peak_L: FloatArray


@dataclass(frozen=True)
class Fluid:
    """Flows share every link on their paths max-min fairly; new rates whenever one starts or ends.

    A flow starts when its sender has entered and its receiver has left the collective before. The second hop
    is a relay, pipelined with the first: its flows start when, further, the first of the flows that feed the
    entry GPU has started, run at their own fair share, and arrive no earlier than the last byte at the port
    that feeds them, plus their own latency. A GPU leaves when all that it sends and receives has arrived, all
    that its senders send over the same kind of link has (their kernels send in the order of the batch, see
    ``ports``), and every GPU has entered. So no GPU leaves earlier than with ``ports``, unless traffic takes
    another GPU's card (``cross_rail: nvlink``).
    """

    routes: Routes
    epsilon: float = EPSILON

    def collective(
        self,
        start_G: FloatArray,
        first_GG: FloatArray,
        second_GG: FloatArray,
        free_G: FloatArray | None = None,
    ) -> FloatArray:
        """Ends of a collective in seconds."""
        flows = self.flows(start_G, first_GG, second_GG, free_G)
        end_G: FloatArray = _leave(
            np.ascontiguousarray(start_G, np.float64),
            np.ascontiguousarray(second_GG, np.float64),
            flows.sender_F,
            flows.receiver_F,
            flows.end_F,
            self.routes.latency_GG,
            self.routes.gpus_per_node,
        )
        return end_G

    def flows(
        self,
        start_G: FloatArray,
        first_GG: FloatArray,
        second_GG: FloatArray,
        free_G: FloatArray | None = None,
    ) -> Flows:
        """The flows of a collective, and the load of the links."""
        routes = self.routes
        free_G = np.full(len(start_G), -np.inf) if free_G is None else free_G
        sender_F, receiver_F, start_F, bytes_F, weight_F = _flows(
            np.ascontiguousarray(start_G, np.float64),
            np.ascontiguousarray(free_G, np.float64),
            np.ascontiguousarray(first_GG, np.float64),
            np.ascontiguousarray(second_GG, np.float64),
            routes.gpus_per_node,
        )
        link_FH = np.ascontiguousarray(routes.link_GGH[sender_F, receiver_F])
        end_F, peak_L = share_links(start_F, bytes_F, weight_F, link_FH, routes.bandwidth_L, self.epsilon)
        return Flows(sender_F, receiver_F, start_F, end_F, bytes_F, weight_F, peak_L)


@jit
def _flows(start_G: Any, free_G: Any, first_GG: Any, second_GG: Any, P: int) -> Any:
    """Sender, receiver, start, bytes and weight of each flow; hops of a pair that start together are one."""
    G = len(start_G)
    # Relays inside the node are fed over the cards, those to other nodes from inside.
    fed_inside_G = np.full(G, np.inf)
    fed_outside_G = np.full(G, np.inf)
    for sender in range(G):
        for gpu in range(G):
            if first_GG[sender, gpu] > 0.0:
                fed_G = fed_inside_G if sender // P == gpu // P else fed_outside_G
                fed_G[gpu] = min(fed_G[gpu], max(start_G[sender], free_G[gpu]))
    F = np.count_nonzero(first_GG) + np.count_nonzero(second_GG)
    sender_F, receiver_F = np.empty(F, np.int64), np.empty(F, np.int64)
    start_F, bytes_F, weight_F = np.empty(F), np.empty(F), np.empty(F)
    f = 0
    for sender in range(G):
        for receiver in range(G):
            direct, relayed = first_GG[sender, receiver], second_GG[sender, receiver]
            fed = fed_outside_G[sender] if sender // P == receiver // P else fed_inside_G[sender]
            direct_start = max(start_G[sender], free_G[receiver])
            relay_start = max(direct_start, fed) if fed < np.inf else direct_start
            merged = direct > 0.0 and relayed > 0.0 and relay_start == direct_start
            for start, size, weight in (
                (direct_start, direct + relayed if merged else direct, 2.0 if merged else 1.0),
                (relay_start, 0.0 if merged else relayed, 1.0),
            ):
                if size > 0.0:
                    sender_F[f], receiver_F[f] = sender, receiver
                    start_F[f], bytes_F[f], weight_F[f] = start, size, weight
                    f += 1
    return sender_F[:f], receiver_F[:f], start_F[:f], bytes_F[:f], weight_F[:f]


@jit
def _leave(
    start_G: Any, second_GG: Any, sender_F: Any, receiver_F: Any, end_F: Any, latency_GG: Any, P: int
) -> Any:
    """When each GPU leaves, from when its flows end."""
    G = len(start_G)
    end_G = np.full(G, start_G.max())
    inside_G = np.full(G, -np.inf)
    outside_G = np.full(G, -np.inf)
    sent_inside_G = np.full(G, -np.inf)
    sent_outside_G = np.full(G, -np.inf)
    for f in range(len(end_F)):
        sender, receiver = sender_F[f], receiver_F[f]
        arrived = end_F[f] + latency_GG[sender, receiver]
        end_G[sender] = max(end_G[sender], arrived)
        end_G[receiver] = max(end_G[receiver], arrived)
        last_G = inside_G if sender // P == receiver // P else outside_G
        last_G[receiver] = max(last_G[receiver], arrived)
        sent_G = sent_inside_G if sender // P == receiver // P else sent_outside_G
        sent_G[sender] = max(sent_G[sender], arrived)
    for f in range(len(end_F)):
        sender, receiver = sender_F[f], receiver_F[f]
        sent_G = sent_inside_G if sender // P == receiver // P else sent_outside_G
        end_G[receiver] = max(end_G[receiver], sent_G[sender])
    for entry in range(G):
        for gpu in range(G):
            if second_GG[entry, gpu] > 0.0:
                fed = outside_G[entry] if entry // P == gpu // P else inside_G[entry]
                end_G[gpu] = max(end_G[gpu], fed + latency_GG[entry, gpu])
    return end_G
