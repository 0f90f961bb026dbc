"""What is asked of a placement: what is to be placed where, under which rules, and what it should make small.

Axes: W windows of traffic, L MoE layers, E experts of a layer, G GPUs, N nodes, S slots, T tokens of a
sample, K experts of a token.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from placement.problem.objective import Objective
from placement.problem.placement import Placement
from traces.base.arrays import Floats, Int32s, Ints


class Position(NamedTuple):
    """An expert of a layer on a GPU; ``layer`` is its true index in the model."""

    layer: int
    expert: int
    gpu: int


@dataclass(frozen=True, eq=False)
class Asked:
    """Experts with loads, GPUs with slots, rules, and an objective; ``Problem`` also checks them.

    The model of replicas: an expert's tokens divide evenly over its copies, which is what round-robin
    choice among replicas comes to over many tokens. Slots may stay empty. A GPU may hold two copies of one
    expert, and then gets two shares of its tokens, unless copies must be ``distinct``; solvers avoid that,
    except those that are published so.

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
        model_groups: expert groups that the model has, kept together or not; ``eplb`` goes by them where
            they divide over the nodes, as servers do.
        distinct: whether a GPU may hold one copy of an expert only.
        fixed: positions that must hold a copy; further copies may lie elsewhere.
        forbidden: positions that must not.
        previous: where the experts are now.
        max_moves: most copies, over all layers, that may lie where ``previous`` has none of the expert.
        active_WLE: float64 [W, L, E], the probability that an expert gets a token of a batch if it has
            one copy; needed where ``objective.per_active`` is above 0.
        sample_TLK: int64 [T, L, K], expert ids of sampled tokens; needed where ``objective.per_copy``
            is above 0, and by solvers that look at which experts are chosen together.
        home_T: int64 [T], the node at home of each sampled token; None = each GPU is equally likely.
    """

    load_WLE: Floats
    layers: tuple[int, ...]
    slots_G: Ints
    node_G: Ints
    speed_G: Floats
    objective: Objective = field(default_factory=Objective)
    groups: int = 1
    model_groups: int = 1
    distinct: bool = False
    fixed: tuple[Position, ...] = ()
    forbidden: tuple[Position, ...] = ()
    previous: Placement | None = None
    max_moves: int | None = None
    active_WLE: Floats | None = None
    sample_TLK: Ints | None = None
    home_T: Ints | None = None

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
    def slot_gpu_S(self) -> Int32s:
        """int32 [S], the GPU of each slot: as ``previous`` has them where it fits, else in GPU order."""
        if self.previous is not None:
            held_G = np.bincount(self.previous.slot_gpu_S, minlength=self.gpus)
            if np.array_equal(held_G, self.slots_G):
                return self.previous.slot_gpu_S
        return np.repeat(np.arange(self.gpus, dtype=np.int32), self.slots_G)
