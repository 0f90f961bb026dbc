"""What a placement is worth on some loads, whichever solver made it and on whatever it was fitted.

Axes as in :mod:`placement.problem.problem`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from placement.judging.balancedness import FORMULAS, gpu_load_WLG, sglang, slot_load_WLS
from placement.judging.evaluation import cost_L, foreign_nodes_L, over_windows
from placement.problem.placement import Placement
from placement.problem.problem import Problem
from placement.problem.rules import moves_L
from traces.base.arrays import Floats


@dataclass(frozen=True, eq=False)
class Verdict:
    """A placement under the loads and the objective of a problem.

    Attributes:
        metrics: balancedness by the name of each formula.
        balancedness_L: SGLang's formula, layer by layer.
        max_load_L: tokens of the GPU that has most; of the windows the mean, or the worst where the
            objective takes it.
        cost_L: the objective.
        cross_node_fraction: copies of tokens sent to other nodes, one to each node, for each assignment;
            None where no tokens are known.
        moved_experts: copies that lie where the previous placement has none; None without one.
    """

    metrics: Mapping[str, float]
    balancedness_L: Floats
    max_load_L: Floats
    cost_L: Floats
    cross_node_fraction: float | None
    moved_experts: int | None

    def to_dict(self) -> dict[str, Any]:
        """As ``moesim place --json`` has it; loads and costs are sums over layers."""
        return {
            "balancedness": self.metrics["sglang"],
            "max_load": float(self.max_load_L.sum()),
            "cost": float(self.cost_L.sum()),
            "cross_node_fraction": self.cross_node_fraction,
            "moved_experts": self.moved_experts,
            "metrics": dict(self.metrics),
        }


def judge(problem: Problem, placement: Placement) -> Verdict:
    """Judge ``placement`` on the loads of ``problem``; that it obeys the rules is not asked.

    Two GPUs, expert 0 on both: 3 + 2 tokens on the first, 3 + 1 on the second.

    >>> problem = Problem.of([[6, 2, 1]], gpus=2, slots=4)
    >>> placement = Placement(np.array([[0, 1, 0, 2]]), np.array([0, 0, 1, 1]), 3, 2, (0,))
    >>> verdict = judge(problem, placement)
    >>> verdict.max_load_L, round(verdict.metrics["vllm"], 3)
    (array([5.]), 0.9)
    """
    load_WLG = gpu_load_WLG(placement, problem.load_WLE)
    load_WLS = slot_load_WLS(placement, problem.load_WLE)
    layers = range(len(problem.layers))
    return Verdict(
        metrics={name: formula(load_WLG, load_WLS) for name, formula in FORMULAS.items()},
        balancedness_L=np.array([sglang(load_WLG[:, row]) for row in layers]),
        max_load_L=over_windows(problem.objective, load_WLG.max(axis=2)),
        cost_L=cost_L(problem, placement),
        cross_node_fraction=_cross_node_fraction(problem, placement),
        moved_experts=None if problem.previous is None else int(moves_L(problem, placement).sum()),
    )


def _cross_node_fraction(problem: Problem, placement: Placement) -> float | None:
    if problem.nodes == 1:
        return 0.0
    if problem.sample_TLK is None:
        return None
    top_k: int = problem.sample_TLK.shape[2]
    return float(foreign_nodes_L(problem, placement).mean()) / top_k
