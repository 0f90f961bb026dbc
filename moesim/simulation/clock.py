"""What every resolution answers: when each operation of a step ran, on links whose ports loops may share."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import simpy
from numpy.typing import NDArray

from moesim.hardware.transfer import Transfer
from moesim.simulation.conditions import Conditions
from moesim.simulation.program import Program

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class StepClock:
    """When each operation of a step ran. O operations, G ranks; seconds.

    Attributes:
        start_s, end_s: of the step; every rank starts together and waits for the last.
        entered_OG: when a rank was ready for it; from there to ``start_OG`` it waits for other ranks.
        start_OG: when the operation proper began: for a collective, when the last rank had entered.
        end_OG: when it ended.
    """

    start_s: float
    end_s: float
    entered_OG: FloatArray
    start_OG: FloatArray
    end_OG: FloatArray


class Links:
    """The links of a group of GPUs; loops that are given the same ones share their ports.

    Attributes:
        conditions: the state of links and GPUs over time.
        left_G: when each rank leaves the last collective that it has entered: whoever leaves early may enter
            the next one while others are still busy with this one, and nothing reaches a port before.
    """

    def __init__(self, conditions: Conditions, ranks: int) -> None:
        self.conditions = conditions
        self.left_G = np.zeros(ranks)

    def collective(
        self, entered_G: FloatArray, transfer: Transfer, stretch_G: FloatArray | None
    ) -> FloatArray:
        """[G]: when each rank leaves a collective that the last one enters now."""
        now = float(entered_G.max())
        # Only another loop can still be busy with a port whose rank has entered here.
        start_G = np.maximum(entered_G, self.left_G)
        network = self.conditions.network(now)
        end_G = network.collective(start_G, transfer.first_GG, transfer.second_GG, self.left_G)
        if stretch_G is not None:
            end_G = now + (end_G - now) * stretch_G
        self.left_G = end_G
        return end_G

    def begin(self, start_s: float) -> None:
        """Ports that are free are free from now on, whenever they became so."""
        self.left_G = np.maximum(self.left_G, start_s)


class Clock(Protocol):
    """Runs steps one after the other."""

    @property
    def now(self) -> float:
        """Seconds."""

    def run(self, program: Program) -> Generator[simpy.Event, Any, StepClock]:
        """Run one step from now on, as part of a SimPy process; returns when each operation ran."""
