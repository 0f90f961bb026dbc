"""What placing experts anew has cost a run, and after how long it has paid for itself."""

from __future__ import annotations

from collections.abc import Sequence

from moesim.analysis.result_file import Rebalance, Rebalancing
from moesim.simulation.rebalancing import NEVER, Move
from moesim.simulation.run import Run
from placement.problem.placement import Placement


def rebalancing_metrics(done: Run, migration_s: float) -> Rebalancing:
    """What the rebalances of a run did in all.

    Args:
        migration_s: by how much moving experts made a mean step longer.
    """
    steps, spec = done.steps, done.deployment.scenario.rebalance
    return Rebalancing(
        rebalances=len(done.moves),
        moved_experts=sum(move.copies for move in done.moves),
        bytes=sum((move.bytes for move in done.moves), 0.0),
        migration_s=migration_s,
        solver_s=len(done.moves) * spec.solve / steps if spec is not None and spec.mode == "sync" else 0.0,
    )


def rebalance_rows(moves: Sequence[Move], placement: Placement) -> list[Rebalance]:
    """Each rebalance of a run."""
    return [
        Rebalance(
            step=move.step,
            moved_experts=move.copies,
            bytes=move.bytes,
            placement=move.placement.origin,
            layers=list(placement.layers),
            from_step=[None if step == NEVER else step for step in move.from_L.tolist()],
        )
        for move in moves
    ]


def payback_steps(
    point_s: float, never_s: float, rebalancing: Rebalancing, steps: int, every_steps: int
) -> float | None:
    """Steps after which what a migration costs is won back; None where nothing is won, or nothing moved.

    The gain is counted over the steps from the first rebalance on, and is what the mean step would be shorter
    than without rebalancing if moving experts cost nothing.

    Two rebalances in 100 steps, before step 40 and step 80, which cost 20 ms each. The 60 steps from step 40
    on are 60 ms shorter, 1 ms each, so each rebalance is won back in 20 steps:

    >>> round(payback_steps(0.0098, 0.010, Rebalancing(rebalances=2, migration_s=0.0004), 100, 40), 6)
    20.0

    Args:
        point_s, never_s: mean step of the run, and of the same without rebalancing.
        rebalancing: of the run.
        steps: of either run.
        every_steps: of the run that rebalances.
    """
    cost, rebalances = rebalancing.migration_s, rebalancing.rebalances
    won = never_s - (point_s - cost)
    if not rebalances or won <= 0:
        return None
    seconds_each = cost * steps / rebalances
    gain_a_step = won * steps / (steps - every_steps)
    return float(max(seconds_each, 0.0) / gain_a_step)
