"""The placement problem: what is asked, converted and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from placement.problem import checks, rules
from placement.problem.asked import Asked
from placement.problem.placement import MAX_GPUS


@dataclass(frozen=True, eq=False)
class Problem(Asked):
    """A problem that some placement answers; made by :meth:`Problem.of`. Axes as in :class:`Asked`.

    Arrays of other numeric types are converted; they are copied and read-only.

    Raises:
        PlacementError: a value is out of range or of another shape, or no placement obeys the rules;
            says which.
    """

    @classmethod
    def of(
        cls,
        load: npt.ArrayLike,
        gpus: int,
        slots: int | Sequence[int] | None = None,
        *,
        layers: Sequence[int] | None = None,
        gpus_per_node: int | Sequence[int] | None = None,
        speed: Sequence[float] | None = None,
        **others: Any,
    ) -> Self:
        """A problem from what is mostly known.

        Two nodes of two GPUs, ten slots for eight experts: the first two GPUs have one more.

        >>> problem = Problem.of([[8, 7, 6, 5, 4, 3, 2, 1]], gpus=4, slots=10, gpus_per_node=2)
        >>> problem.slots_G, problem.node_G
        (array([3, 3, 2, 2]), array([0, 0, 1, 1]))

        Args:
            load: [W, L, E], or [L, E] for one window.
            slots: on all GPUs together, spread as evenly as they divide, or for each GPU; by default
                one for each expert.
            layers: by default 0 to L − 1.
            gpus_per_node: one number, the last node taking what is left, or one for each node; by
                default all are in one node.
            speed: for each GPU, by default 1.
            others: further attributes of the class.

        Raises:
            PlacementError: as the class.
        """
        load_WLE = checks.loads(load)
        checks.whole("gpus", gpus, 1, MAX_GPUS)
        _, rows, experts = load_WLE.shape
        return cls(
            load_WLE,
            tuple(range(rows)) if layers is None else tuple(layers),
            checks.slots_of_gpus(experts if slots is None else slots, gpus),
            checks.nodes_of_gpus(gpus if gpus_per_node is None else gpus_per_node, gpus),
            np.ones(gpus) if speed is None else np.asarray(speed, dtype=np.float64),
            **others,
        )

    def __post_init__(self) -> None:
        for name, value in checks.checked(self).items():
            if isinstance(value, np.ndarray):
                value.flags.writeable = False
            object.__setattr__(self, name, value)
        rules.check_possible(self)
