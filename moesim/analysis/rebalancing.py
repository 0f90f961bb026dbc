"""What placing experts anew has cost a run, and after how long it has paid for itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from moesim.simulation.rebalancing import NEVER, Move
from moesim.simulation.run import Run
from placement.problem.placement import Placement


def rebalancing_metrics(done: Run, migration_s: float) -> dict[str, float]:
    """How often, what was sent from GPU to GPU in all, and by how much that made the mean step longer.

    ``solver_s`` is what of that the solver took.

    Args:
        migration_s: by how much moving experts made all steps together longer.
    """
    steps, spec = done.deployment.scenario.workload.steps, done.deployment.scenario.rebalance
    return {
        "rebalances": len(done.moves),
        "moved_experts": sum(move.copies for move in done.moves),
        "bytes": sum((move.bytes for move in done.moves), 0.0),
        "migration_s": migration_s / steps,
        "solver_s": len(done.moves) * spec.solve / steps if spec is not None and spec.mode == "sync" else 0.0,
    }


def rebalance_rows(moves: Sequence[Move], placement: Placement) -> list[dict[str, Any]]:
    """Each rebalance: when it was decided, what it moved, and the first step of each layer served with it.

    ``from_step`` is in the order of MoE layers, null where the run ended before the layer's copies arrived.
    """
    return [
        {
            "step": move.step,
            "moved_experts": move.copies,
            "bytes": move.bytes,
            "placement": move.placement.origin,
            "layers": list(placement.layers),
            "from_step": [None if step == NEVER else step for step in move.from_L.tolist()],
        }
        for move in moves
    ]


def payback_steps(
    point: Mapping[str, Any], never: Mapping[str, Any], steps: int, every_steps: int
) -> float | None:
    """Steps after which what a migration costs is won back; None where nothing is won, or nothing moved.

    The gain is counted over the steps from the first rebalance on, and is what the mean step would be shorter
    than without rebalancing if moving experts cost nothing.

    Two rebalances in 100 steps, before step 40 and step 80, which cost 20 ms each. The 60 steps from step 40
    on are 60 ms shorter, 1 ms each, so each rebalance is won back in 20 steps:

    >>> point = {"step_time_s": {"mean": 0.0098}, "rebalancing": {"rebalances": 2, "migration_s": 0.0004}}
    >>> round(payback_steps(point, {"step_time_s": {"mean": 0.010}}, 100, 40), 6)
    20.0

    Args:
        point, never: metrics of the run, and of the same without rebalancing.
        steps: of either run.
        every_steps: of the run that rebalances.
    """
    cost, rebalances = point["rebalancing"]["migration_s"], point["rebalancing"]["rebalances"]
    won = never["step_time_s"]["mean"] - (point["step_time_s"]["mean"] - cost)
    if not rebalances or won <= 0:
        return None
    seconds_each = cost * steps / rebalances
    gain_a_step = won * steps / (steps - every_steps)
    return float(max(seconds_each, 0.0) / gain_a_step)
