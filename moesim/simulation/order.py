"""In which order the operations of a step run: lanes, and what waits for what in another lane.

O operations. A *lane* is a stream that runs its operations in order; operations of different lanes run at
the same time unless one is ``after`` the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Order:
    """The order of a step's operations.

    Attributes:
        lanes: indices of operations, each in exactly one lane; collectives after each other, whichever
            lane they are in.
        after: for an operation, the one of another lane that it also waits for.
    """

    lanes: Sequence[Sequence[int]]
    after: dict[int, int]

    @cached_property
    def sequence(self) -> tuple[IntArray, IntArray, IntArray]:
        """[O] each: operations, each behind all that it waits for; the one before each in its lane, and the
        one of another lane that it waits for, -1 where there is none."""
        count = sum(map(len, self.lanes))
        before_O, after_O = np.full(count, -1), np.full(count, -1)
        for lane in self.lanes:
            before_O[list(lane[1:])] = lane[:-1]
        after_O[list(self.after)] = list(self.after.values())
        sequence: list[int] = []
        done = [False] * count
        places = [0] * len(self.lanes)
        while len(sequence) < count:
            for i, lane in enumerate(self.lanes):
                while places[i] < len(lane) and (
                    lane[places[i]] not in self.after or done[self.after[lane[places[i]]]]
                ):
                    done[lane[places[i]]] = True
                    sequence.append(lane[places[i]])
                    places[i] += 1
        return np.array(sequence, np.int64), before_O, after_O

    def begin_with(self, operation: int) -> Order:
        """The same after an operation on the first lane, whose operations all others wait for."""
        first, *others = self.lanes
        return Order([[operation, *first], *others], self.after)
