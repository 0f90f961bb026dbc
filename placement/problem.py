"""The placement problem: what is to be placed where, under which rules, and what it should make small.

Axes: W windows of traffic, L MoE layers, E experts of a layer, G GPUs, N nodes, S slots, T tokens of a
sample, K experts of a token.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from placement import problem_checks as checks
from placement import rules
from placement.objective import Objective
from placement.placement import MAX_GPUS, Placement
from placement.rules import Position

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Problem:
    """Experts with loads, GPUs with slots, rules, and an objective; made by :meth:`Problem.of`.

    The model of replicas: an expert's tokens divide evenly over its copies, which is what round-robin
    choice among replicas comes to over many tokens. Slots may stay empty. A GPU may hold two copies of one
    expert, and then gets two shares of its tokens; solvers avoid that, except those that are published so.

    Attributes:
        load_WLE: float64 [W, L, E], tokens of each expert in each window.
        layers: true index in the model of each layer, ascending.
        slots_G: int64 [G], how many copies of experts fit on each GPU, of each layer alike; any numbers.
        node_G: int64 [G], the node of each GPU; nodes are numbered from 0 and may be unequal.
        speed_G: float64 [G], speed of each GPU relative to the others.
        objective: what to make small.
        groups: expert groups, of E / groups neighbouring experts each. Above 1 the problem is strictly
            hierarchical: all copies of a group's experts lie on one node, and every node serves the
            same number of groups.
        fixed: positions that must hold a copy; further copies may lie elsewhere.
        forbidden: positions that must not.
        previous: where the experts are now.
        max_moves: most copies, over all layers, that may lie where ``previous`` has none of the expert.
        active_WLE: float64 [W, L, E], the probability that an expert gets a token of a batch if it has
            one copy; needed where ``objective.per_active`` is above 0.
        sample_TLK: int64 [T, L, K], expert ids of sampled tokens; needed where ``objective.per_copy``
            is above 0, and by solvers that look at which experts are chosen together.
        home_T: int64 [T], the node at home of each sampled token; None = each GPU is equally likely.

    Arrays of other numeric types are converted; they are copied and read-only.

    Raises:
        PlacementError: a value is out of range or of another shape, or no placement obeys the rules;
            says which.
    """

    load_WLE: Floats
    layers: tuple[int, ...]
    slots_G: Ints
    node_G: Ints
    speed_G: Floats
    objective: Objective = field(default_factory=Objective)
    groups: int = 1
    fixed: tuple[Position, ...] = ()
    forbidden: tuple[Position, ...] = ()
    previous: Placement | None = None
    max_moves: int | None = None
    active_WLE: Floats | None = None
    sample_TLK: Ints | None = None
    home_T: Ints | None = None

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

    @property
    def windows(self) -> int:
        """W."""
        return len(self.load_WLE)

    @property
    def experts(self) -> int:
        """E."""
        return int(self.load_WLE.shape[2])

    @property
    def gpus(self) -> int:
        """G."""
        return len(self.slots_G)

    @property
    def nodes(self) -> int:
        """N."""
        return int(self.node_G.max()) + 1

    @property
    def slots(self) -> int:
        """S, slots of all GPUs together."""
        return int(self.slots_G.sum())

    @functools.cached_property
    def slot_gpu_S(self) -> npt.NDArray[np.int32]:
        """int32 [S], the GPU of each slot: as ``previous`` has them where it fits, else in GPU order."""
        if self.previous is not None:
            held_G = np.bincount(self.previous.slot_gpu_S, minlength=self.gpus)
            if np.array_equal(held_G, self.slots_G):
                return self.previous.slot_gpu_S
        return np.repeat(np.arange(self.gpus, dtype=np.int32), self.slots_G)
