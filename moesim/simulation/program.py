"""What the streams of a GPU run in a step: its operations in order, or kernels beside collectives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import zip_longest

from moesim.simulation.operations import Operation, Operations
from moesim.simulation.order import Order

Chain = Sequence[Operation]


@dataclass(frozen=True)
class Program:
    """The operations of a step, as they come, and the order in which they run."""

    operations: Sequence[Operation]
    order: Order

    @cached_property
    def table(self) -> Operations:
        """The operations as arrays."""
        return Operations.of(self.operations)

    def of(self, operations: Sequence[Operation]) -> Program:
        """The same order of other operations."""
        return replace(self, operations=operations)

    def change(self, change: Callable[[Sequence[Operation]], list[Operation]]) -> Program:
        """The same order of changed operations."""
        return self.of(change(self.operations))

    def begin_with(self, operation: Operation) -> Program:
        """The same after an operation on the first lane, whose operations all others wait for."""
        return Program([*self.operations, operation], self.order.begin_with(len(self.operations)))


def in_sequence(chain: Chain) -> Program:
    """One operation after the other: no overlap."""
    return Program(chain, _in_a_row(len(chain)))


@lru_cache(maxsize=16)
def _in_a_row(count: int) -> Order:
    return Order([range(count)], {})


def beside_shared_expert(chain: Chain) -> Program:
    """Dispatch starts as soon as the router is done; the shared expert computes beside it."""
    return _on_two_lanes([chain], early_dispatch=True)


def two_batches(first: Chain, second: Chain, *, early_dispatch: bool = False) -> Program:
    """Two micro-batches: while one computes, the other communicates (DeepSeek-V3, section 3.4).

    Their stages alternate on both lanes; a stage is what a micro-batch computes between two collectives.
    """
    marked = [replace(operation, micro_batch=1) for operation in second]
    return _on_two_lanes([first, marked], early_dispatch=early_dispatch)


def _on_two_lanes(chains: Sequence[Chain], *, early_dispatch: bool) -> Program:
    """Kernels on one lane, collectives on the other, the stages of the chains in turn."""
    operations: list[Operation] = []
    after: dict[int, int] = {}
    compute: list[list[list[int]]] = []
    communication: list[list[list[int]]] = []
    for chain in chains:
        stages: list[list[int]] = [[]]
        collectives: list[list[int]] = []
        before: int | None = None
        for operation in chain:
            at = len(operations)
            operations.append(operation)
            if before is not None and operation.communicates != operations[before].communicates:
                after[at] = before
            if operation.communicates:
                stages.append([])
                collectives.append([at])
            else:
                stages[-1].append(at)
            # What comes next need not wait for a shared expert: nothing but its lane does.
            if not (early_dispatch and operation.phase == "shared_expert"):
                before = at
        compute.append(stages)
        communication.append(collectives)
    return Program(operations, Order([_in_turn(compute), _in_turn(communication)], after))


def _in_turn(stages: Sequence[Sequence[Sequence[int]]]) -> list[int]:
    """First stages of all chains, then the second ones, …"""
    return [at for turn in zip_longest(*stages, fillvalue=()) for stage in turn for at in stage]
