"""Placing experts anew during a run: the loads that were seen, the decision, and what it moves.

Axes: L MoE layers, E experts, S slots, G GPUs, N rows of a table.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moesim.deployment.deployment import Deployment
from moesim.errors import PlacementError
from moesim.simulation.migration import Beside, Traffic, stall
from moesim.simulation.program import Program
from placement.judging.migration import plan_migration
from placement.problem.placement import Placement
from placement.problem.problem import Problem
from placement.solvers.solution import Search
from placement.solvers.solvers import solver_named

NEVER = np.iinfo(np.int64).max
"""The step of a layer whose copies had not arrived when the run ended."""


@dataclass(frozen=True, eq=False)
class Move:
    """One rebalance.

    Attributes:
        step: before which it was decided.
        placement: what it leads to; its slots are those of the placement before.
        copies: experts that are sent from GPU to GPU, over all layers.
        bytes: what they weigh.
        from_L: int64 [L], the first step that each layer serves with it; ``NEVER`` if the run ends before.
    """

    step: int
    placement: Placement
    copies: int
    bytes: float
    from_L: NDArray[np.int64]


class Rebalancing:
    """The placement in force, and how it changes; without ``rebalance`` in the scenario it never does.

    Attributes:
        placement: of the step that is being made.
        moves: the rebalances so far.
    """

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._spec = deployment.scenario.rebalance
        self.placement = deployment.placement
        self.moves: list[Move] = []
        every = None if self._spec is None else self._spec.every_steps
        self._every = every
        window = 0 if self._spec is None or every is None else self._spec.window or every
        self._loads: deque[NDArray[np.int64]] = deque(maxlen=min(window, deployment.scenario.workload.steps))
        self._stall_GG: NDArray[np.float64] | None = None
        self._beside: Beside | None = None

    def begin(self, step: int) -> None:
        """Change over to what has arrived, and decide anew if it is time and nothing is on its way."""
        if self._every is None:
            return
        self._stall_GG = None
        if self._beside is not None:
            self._change_over(self._beside.arrived(), step)
            if self._beside.done:
                self._beside = None
        if step and step % self._every == 0 and self._beside is None:
            self._decide(step)
        self._loads.append(np.zeros(self.placement.replicas_LE.shape, np.int64))

    def watch(self, layers: slice, ids_LTK: NDArray[np.int16]) -> None:
        """Count what tokens of the step chose in a block of layers."""
        if self._every is None:
            return
        load_LE = self._loads[-1][layers]
        for load_E, ids_TK in zip(load_LE, ids_LTK, strict=True):
            load_E += np.bincount(ids_TK.ravel(), minlength=len(load_E))

    def traffic(self, program: Program) -> Traffic:
        """What moves before and during the step that is being made."""
        if self._beside is not None:
            return Traffic(beside=self._beside.during(program))
        if self._stall_GG is None:
            return Traffic()
        assert self._spec is not None  # something was decided
        return Traffic(stall=stall(self._stall_GG, self._spec.solve))

    def _decide(self, step: int) -> None:
        spec, scenario = self._spec, self._deployment.scenario
        assert spec is not None  # it says every how many steps
        fabric = self._deployment.pricing.fabric(scenario.profile)
        problem = Problem.of(
            np.sum(self._loads, axis=0),
            self.placement.gpus,
            np.bincount(self.placement.slot_gpu_S, minlength=self.placement.gpus).tolist(),
            layers=self.placement.layers,
            gpus_per_node=fabric.gpus_per_node,
            groups=scenario.kept_groups,
            model_groups=scenario.model.experts.groups,
            previous=self.placement,
            max_moves=spec.max_moves,
        )
        try:
            solved = solver_named(spec.solver).solve(problem, Search(seed=scenario.seed))
        except PlacementError as error:
            error.field = f"rebalance, before step {step}: {error.field}"
            raise
        target = in_slots_of(self.placement, solved.placement)
        plan = plan_migration(self.placement, target, problem.node_G)
        bytes_LGG = plan.bytes_LGG(scenario.model.expert_bytes_LE)
        from_L = np.full(len(target.layers), NEVER)
        self.moves.append(Move(step, target, plan.moves, float(bytes_LGG.sum()), from_L))
        if spec.mode == "layerwise":
            network = self._deployment.pricing.network(scenario.profile)
            self._beside = Beside(bytes_LGG, spec.solve, network)
            return
        self._change_over(range(len(from_L)), step)
        if plan.moves or spec.solve:
            self._stall_GG = bytes_LGG.sum(axis=0)

    def _change_over(self, rows: Sequence[int], step: int) -> None:
        """Serve these layers with the last decision from this step on."""
        if not len(rows):
            return
        move = self.moves[-1]
        move.from_L[rows] = step
        slot_expert_LS = self.placement.slot_expert_LS.copy()
        slot_expert_LS[rows] = move.placement.slot_expert_LS[rows]
        self.placement = replace(self.placement, slot_expert_LS=slot_expert_LS, origin=move.placement.origin)


def in_slots_of(before: Placement, after: Placement) -> Placement:
    """``after``, whose GPUs have as many slots, with the slots of ``before``.

    >>> before = Placement(np.array([[0, 1]]), np.array([1, 0]), experts=2, gpus=2, layers=(0,))
    >>> after = Placement(np.array([[0, 1]]), np.array([0, 1]), experts=2, gpus=2, layers=(0,))
    >>> in_slots_of(before, after).slot_expert_LS
    array([[1, 0]], dtype=int16)
    """
    slot_expert_LS = np.empty_like(after.slot_expert_LS)
    to_S, from_S = (np.argsort(each.slot_gpu_S, kind="stable") for each in (before, after))
    slot_expert_LS[:, to_S] = after.slot_expert_LS[:, from_S]
    return replace(after, slot_expert_LS=slot_expert_LS, slot_gpu_S=before.slot_gpu_S)


def expert_N(
    placement: Placement,
    moves: Sequence[Move],
    step_N: NDArray[np.integer],
    row_N: NDArray[np.integer],
    slot_N: NDArray[np.integer],
) -> NDArray[np.int16]:
    """int16 [N], the expert that a slot held in a step.

    Args:
        placement: at the start of the run.
        moves: the rebalances, in order.
        row_N: indices of layers, in the order of ``placement.layers``.
    """
    found_N: NDArray[np.int16] = placement.slot_expert_LS[row_N, slot_N]
    for move in moves:
        moved_N = step_N >= move.from_L[row_N]
        found_N[moved_N] = move.placement.slot_expert_LS[row_N[moved_N], slot_N[moved_N]]
    return found_N
