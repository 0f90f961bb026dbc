"""Resolution ``step``: a whole step in one compiled function, where nothing but its own ranks uses the links.

O operations, G ranks, E states of the hardware, C collectives; seconds and bytes. The event clock
(``moesim.simulation.event``) is the reference: the same operations in the same order end at the same times.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, cast

import numpy as np
import simpy
from numpy.typing import NDArray

from moesim.hardware.network import Ports, ports_end
from moesim.simulation.clock import Links, StepClock
from moesim.simulation.program import Program
from traces.base.jit import jit

IntArray = NDArray[np.int64]


class CompiledClock:
    """Steps one after the other on links that nobody else uses."""

    def __init__(self, links: Links) -> None:
        self._links = links
        self.now = 0.0

    def run(self, program: Program) -> Generator[simpy.Event, Any, StepClock]:
        """Run one step; see :class:`moesim.simulation.clock.Clock`. It waits for no event."""
        ran = run_step(self._links, program, self.now)
        self.now = ran.end_s
        yield from ()
        return ran


def run_step(links: Links, program: Program, start_s: float) -> StepClock:
    """When each operation of a step ran that starts now."""
    links.begin(start_s)
    step = _Step(program, links, start_s)
    networks = links.conditions.networks
    if all(isinstance(network, Ports) for network in networks):
        step.run_on_ports(cast("Sequence[Ports]", networks))
    else:
        step.run()
    return StepClock(start_s, float(step.end_OG.max()), step.entered_OG, step.start_OG, step.end_OG)


class _Step:
    """One step while it runs."""

    def __init__(self, program: Program, links: Links, start_s: float) -> None:
        self._links, self._start_s = links, start_s
        self._table = program.table
        self._order_O, self._before_O, self._after_O = program.order.sequence
        self._changes_E = np.array(links.conditions.changes_s, np.float64)
        self._seconds_EOG = self._table.seconds_EOG
        self.entered_OG, self.start_OG, self.end_OG = (
            np.zeros(self._seconds_EOG.shape[1:]) for _ in range(3)
        )

    def run_on_ports(self, networks: Sequence[Ports]) -> None:
        """All of it compiled."""
        table, ranks, fabric = self._table, len(self._links.left_G), networks[0].fabric
        stretch_OG = np.zeros((0, ranks)) if table.stretch_OG is None else table.stretch_OG
        rates = [network.fabric.seconds_per_byte(ranks) for network in networks]
        wires: list[Any] = [
            table.transfers.first_GG,
            table.transfers.second_GG,
            stretch_OG,
            self._links.left_G,
            fabric.gpus_per_node,
            np.array([nvlink_G for nvlink_G, _ in rates]),
            np.array([nic_G for _, nic_G in rates]),
            fabric.nvlink_latency_s,
            fabric.nic_latency_s,
        ]
        self._links.left_G = _run_on_ports(*self._tables, *wires)

    def run(self) -> None:
        """All but the collectives compiled: any network."""
        at = _to_collective(0, *self._tables)
        while at < len(self._order_O):
            operation = self._table[self._order_O[at]]
            entered_G = self.entered_OG[self._order_O[at]]
            assert operation.transfer is not None
            end_G = self._links.collective(entered_G, operation.transfer, operation.stretch_G)
            self.start_OG[self._order_O[at]] = entered_G.max()
            self.end_OG[self._order_O[at]] = end_G + self._seconds_EOG[0, self._order_O[at]]
            at = _to_collective(at + 1, *self._tables)

    @property
    def _tables(self) -> list[Any]:
        order = (self._order_O, self._before_O, self._after_O, self._table.collective_O)
        times = (self.entered_OG, self.start_OG, self.end_OG)
        return [*order, self._start_s, self._changes_E, self._seconds_EOG, *times]


@jit
def _to_collective(
    first: int,
    order_O: Any,
    before_O: Any,
    after_O: Any,
    met_O: Any,
    start_s: float,
    changes_E: Any,
    seconds_EOG: Any,
    entered_OG: Any,
    start_OG: Any,
    end_OG: Any,
) -> int:
    """Run operations from the ``first`` of the order on; returns the place of a collective, now entered."""
    for i in range(first, len(order_O)):
        at = order_O[i]
        before, after = before_O[at], after_O[at]
        for rank in range(entered_OG.shape[1]):
            now = start_s
            if before >= 0:
                now = end_OG[before, rank]
            if after >= 0:
                now = max(now, end_OG[after, rank])
            entered_OG[at, rank] = now
            if not met_O[at]:
                start_OG[at, rank] = now
                end_OG[at, rank] = _end(now, changes_E, seconds_EOG[:, at, rank])
        if met_O[at]:
            return i
    return len(order_O)


@jit
def _end(start: float, changes_E: Any, whole_E: Any) -> float:
    """When work ends that takes whole_E seconds in each state of the hardware."""
    epoch = _epoch(start, changes_E)
    left, at = 1.0, start
    while True:
        end: float = at + left * whole_E[epoch]
        if epoch == len(changes_E) or end <= changes_E[epoch]:
            return end
        left -= (changes_E[epoch] - at) / whole_E[epoch]
        at = changes_E[epoch]
        epoch += 1


@jit
def _epoch(now: float, changes_E: Any) -> int:
    """Changes of the hardware that have happened."""
    epoch = 0
    while epoch < len(changes_E) and changes_E[epoch] <= now:
        epoch += 1
    return epoch


@jit
def _run_on_ports(
    order_O: Any,
    before_O: Any,
    after_O: Any,
    met_O: Any,
    start_s: float,
    changes_E: Any,
    seconds_EOG: Any,
    entered_OG: Any,
    start_OG: Any,
    end_OG: Any,
    first_CGG: Any,
    second_CGG: Any,
    stretch_OG: Any,
    left_G: Any,
    P: int,
    nvlink_s_B_EG: Any,
    nic_s_B_EG: Any,
    nvlink_latency: float,
    nic_latency: float,
) -> Any:
    """Fill the times; returns when each rank has left the last collective."""
    number_O = np.cumsum(met_O) - 1
    i = 0
    while True:
        i = _to_collective(
            i,
            order_O,
            before_O,
            after_O,
            met_O,
            start_s,
            changes_E,
            seconds_EOG,
            entered_OG,
            start_OG,
            end_OG,
        )
        if i == len(order_O):
            return left_G
        at = order_O[i]
        now = entered_OG[at].max()
        start_G = np.maximum(entered_OG[at], left_G)
        epoch, number = _epoch(now, changes_E), number_O[at]
        end_G = ports_end(
            start_G,
            left_G,
            _latest_first(start_G),
            _latest_first(left_G),
            first_CGG[number],
            second_CGG[number],
            P,
            nvlink_s_B_EG[epoch],
            nic_s_B_EG[epoch],
            nvlink_latency,
            nic_latency,
        )
        left_G = end_G if len(stretch_OG) == 0 else now + (end_G - now) * stretch_OG[at]
        start_OG[at] = now
        end_OG[at] = left_G + seconds_EOG[0, at]
        i += 1


@jit
def _latest_first(seconds_G: Any) -> Any:
    """As ``np.argsort(-seconds_G, kind="stable")``, by insertion: numba takes seconds to compile a sort."""
    order_G = np.arange(len(seconds_G))
    for i in range(1, len(order_G)):
        rank = order_G[i]
        at = i
        while at > 0 and seconds_G[order_G[at - 1]] < seconds_G[rank]:
            order_G[at] = order_G[at - 1]
            at -= 1
        order_G[at] = rank
    return order_G
