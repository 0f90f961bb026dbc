"""What is asked of a placement, and the problem that it is on some loads.

Axes: W windows, L MoE layers, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from moesim.errors import SpecError
from moesim.studies.loads import Loads
from placement.problem.objective import Objective
from placement.problem.placement import Placement
from placement.problem.problem import Problem

Aim = Literal["tokens", "time", "copies", "mixed"]


@dataclass(frozen=True)
class StepCost:
    """What a step of a deployment takes, as the objective ``time`` has it.

    Attributes:
        tokens: of a step, all GPUs together.
        top_k: experts of a token.
        per_token_s: seconds that one more assignment takes a GPU.
        per_active_s: seconds that one more activated expert takes it, whatever its tokens.
    """

    tokens: int
    top_k: int
    per_token_s: float
    per_active_s: float


@dataclass(frozen=True)
class Question:
    """The group of GPUs, the objective, and where the experts are now.

    Attributes:
        nodes: the GPUs divide over them as evenly as they can; the first have one more.
        slots: on all GPUs together, likewise; by default one for each expert.
        copy_cost: of ``mixed``: one copy that a GPU sends to another node, in tokens that it computes.
        worst_window: make the worst window small instead of their mean.
        step: the coefficients of ``time``.
        groups: expert groups of the model, which ``eplb`` goes by; None where nothing tells them.
        hierarchical: whether every solver must keep each of them on one node.
        distinct: whether a GPU may hold one copy of an expert only.
    """

    gpus: int
    nodes: int = 1
    slots: int | None = None
    aim: Aim = "tokens"
    copy_cost: float = 1.0
    worst_window: bool = False
    previous: Placement | None = None
    max_moves: int | None = None
    step: StepCost | None = None
    groups: int | None = None
    hierarchical: bool = False
    distinct: bool = False

    def problem(self, loads: Loads, layers: tuple[int, ...]) -> Problem:
        """The problem on these loads.

        Raises:
            MoesimError: something that is asked cannot be, or needs what is not there.
        """
        if self.nodes > self.gpus:
            raise SpecError(f"must be at most the {self.gpus} GPUs", field="--nodes", got=self.nodes)
        if self.aim in ("copies", "mixed"):
            self._check_copies(loads)
        if self.hierarchical and self.groups in (None, 1):
            rule = (
                "needs a model with expert groups; name it (--model)"
                if self.groups is None
                else ("there are no expert groups to keep together: the model has none")
            )
            raise SpecError(rule, field="--hierarchical")
        problem = Problem.of(
            loads.load_WLE,
            self.gpus,
            self.slots,
            layers=layers,
            gpus_per_node=[
                self.gpus // self.nodes + (node < self.gpus % self.nodes) for node in range(self.nodes)
            ],
            objective=replace(self._objective(), worst_window=self.worst_window),
            sample_TLK=loads.sample_TLK,
            groups=(self.groups or 1) if self.hierarchical else 1,
            model_groups=self.groups or 1,
            distinct=self.distinct,
            previous=self.previous,
            max_moves=self.max_moves,
        )
        return self._in_a_step(problem) if self.aim == "time" else problem

    def _objective(self) -> Objective:
        if self.aim == "copies":
            return Objective(per_token=0.0, per_copy=1.0)
        if self.aim == "mixed":
            # All copies of a window add up, and the GPUs send them side by side.
            return Objective(per_copy=self.copy_cost / self.gpus)
        return Objective()

    def _check_copies(self, loads: Loads) -> None:
        if self.nodes == 1:
            raise SpecError(
                "there are no copies to other nodes in one; name --nodes", field="--objective", got=self.aim
            )
        if loads.sample_TLK is None:
            raise SpecError(
                "needs tokens: counts do not tell which experts one chose together; give a trace",
                field="--objective",
                got=self.aim,
            )

    def _in_a_step(self, problem: Problem) -> Problem:
        """The same loads in a step of the deployment, and what an expert of it costs.

        A step has B tokens that choose independently, expert e with probability p: it gets B · p tokens, and
        any at all with probability 1 − (1 − p)^B.
        """
        if self.step is None:
            raise SpecError(
                "needs seconds per token and per activated expert: name a --simulate SCENARIO",
                field="--objective",
                got=self.aim,
            )
        total_WL1 = problem.load_WLE.sum(axis=2, keepdims=True)
        share_WLE = problem.load_WLE / np.where(total_WL1 > 0, total_WL1, 1.0)
        chosen_WLE = np.minimum(share_WLE * self.step.top_k, 1.0)
        return replace(
            problem,
            load_WLE=share_WLE * (self.step.tokens * self.step.top_k),
            active_WLE=1.0 - (1.0 - chosen_WLE) ** self.step.tokens,
            objective=replace(
                problem.objective, per_token=self.step.per_token_s, per_active=self.step.per_active_s
            ),
        )
