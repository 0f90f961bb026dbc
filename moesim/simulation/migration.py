"""Copies of experts on their way: all at once before a step, or layer by layer beside its collectives.

Axes: L MoE layers, G GPUs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from moesim.hardware.network import Network
from moesim.hardware.transfer import Transfer
from moesim.simulation.operations import Operation
from moesim.simulation.program import Program

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Traffic:
    """What a migration adds to one step.

    Attributes:
        stall: what runs before everything else.
        beside: bytes that travel at the same time as a collective, by the index of its operation.
    """

    stall: Operation | None = None
    beside: Mapping[int, FloatArray] = field(default_factory=dict)

    def join(self, program: Program) -> Program:
        """The step with the migration in it; the program itself if there is none."""
        if self.beside:
            program = program.change(self._widened)
        return program if self.stall is None else program.begin_with(self.stall)

    def _widened(self, operations: Sequence[Operation]) -> list[Operation]:
        """Collectives share their ports with the bytes beside them."""
        widened = list(operations)
        for at, bytes_GG in self.beside.items():
            transfer = operations[at].transfer
            assert transfer is not None  # only collectives have something beside them
            beside = Transfer(bytes_GG, np.zeros_like(bytes_GG))
            widened[at] = replace(operations[at], transfer=transfer.then(beside))
        return widened


def stall(bytes_GG: FloatArray, solve_s: float) -> Operation:
    """Solver and transfer between two steps: a collective of all GPUs that belongs to the second of them."""
    none_G, no_tokens_G = np.zeros(len(bytes_GG)), np.zeros(len(bytes_GG), np.int64)
    transfer = Transfer(bytes_GG, np.zeros_like(bytes_GG))
    return Operation("other", -1, none_G, none_G, solve_s, no_tokens_G, no_tokens_G, transfer)


@dataclass
class _Stage:
    """The solver, or one layer's copies: seconds that it takes with the links to itself, and those left."""

    row: int | None
    bytes_GG: FloatArray
    whole_s: float
    left_s: float


class Beside:
    """A migration beside the steps: first the solver, then one layer after another.

    Links are shared evenly. While a collective is under way, the copies get the links for as long again as
    the collective alone would need them, so that both take twice as long where they meet at a port. While
    only kernels run, the copies have the links to themselves.
    """

    def __init__(self, bytes_LGG: FloatArray, solve_s: float, network: Network) -> None:
        self._network = network
        self._none_GG = np.zeros(bytes_LGG.shape[1:])
        self._stages = deque([_Stage(None, self._none_GG, solve_s, solve_s)])
        for row, bytes_GG in enumerate(bytes_LGG):
            whole_s = transfer_s(network, Transfer(bytes_GG, self._none_GG)) if bytes_GG.any() else 0.0
            self._stages.append(_Stage(row, bytes_GG, whole_s, whole_s))
        self._arrived: list[int] = []

    @property
    def done(self) -> bool:
        """Whether every layer has arrived."""
        return not self._stages

    def arrived(self) -> list[int]:
        """Rows of the layers that have arrived since this was asked last."""
        rows, self._arrived = self._arrived, []
        return rows

    def during(self, program: Program) -> dict[int, FloatArray]:
        """Go on for one step: bytes that travel with each collective, by the index of its operation.

        Kernels of the fastest GPU say how long links are idle between collectives. Where two micro-batches
        take turns, they never are.
        """
        operations = program.operations
        in_turn = any(operation.micro_batch for operation in operations)
        overlapped = len(program.order.lanes) > 1
        beside: dict[int, FloatArray] = {}
        for at in program.order.lanes[-1] if in_turn else range(len(operations)):
            operation = operations[at]
            if operation.transfer is not None:
                bytes_GG = self._go_on(transfer_s(self._network, operation.transfer))
                if bytes_GG.any():
                    beside[at] = bytes_GG
            if not in_turn and not (overlapped and operation.phase == "shared_expert"):
                self._go_on(float(operation.seconds_G.min()))
        return beside

    def _go_on(self, seconds: float) -> FloatArray:
        """[G, G] bytes that travel in so many seconds of links of their own."""
        moved_GG = self._none_GG
        while self._stages and (seconds > 0.0 or self._stages[0].left_s == 0.0):
            stage = self._stages[0]
            taken_s = min(stage.left_s, seconds)
            if taken_s > 0.0:
                moved_GG = moved_GG + stage.bytes_GG * (taken_s / stage.whole_s)
            seconds -= taken_s
            stage.left_s -= taken_s
            if stage.left_s == 0.0:
                self._stages.popleft()
                if stage.row is not None:
                    self._arrived.append(stage.row)
        return moved_GG


def transfer_s(network: Network, transfer: Transfer) -> float:
    """Seconds until the last GPU is done, if all start together and nothing else is on the links."""
    start_G = np.zeros(len(transfer.first_GG))
    return float(network.collective(start_G, transfer.first_GG, transfer.second_GG).max())
