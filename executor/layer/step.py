"""One step on one rank: layer after layer, its micro-batches in turn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from executor.dispatch.routing import LayerRouting, RoutedStep, route
from executor.layer.lanes import Lane, Stages, in_turn
from executor.layer.moe_layer import MoELayer
from executor.layer.spans import Where
from executor.plan.plan import Plan

RankStep = Sequence[Sequence[LayerRouting]]
"""What a rank knows of a step: of each micro-batch, for each layer, where its tokens go."""


def routed_steps(plan: Plan) -> list[list[RoutedStep]]:
    """The routing of each step of a plan, of each of its micro-batches."""
    return [[route(plan, part) for part in plan.micro_batches(step)] for step in range(plan.steps)]


def of_rank(plan: Plan, rank: int, device: torch.device) -> list[RankStep]:
    """All steps of a plan as one rank sees them."""
    rows = range(len(plan.model.layers))
    return [
        [[part.layer(row, rank, device) for row in rows] for part in parts] for parts in routed_steps(plan)
    ]


def most_tokens(steps: Sequence[RankStep]) -> int:
    """That the rank holds at a time."""
    return max(len(choice.token_T) for parts in steps for choices in parts for choice in choices)


def run_step(
    plan: Plan,
    layers: Sequence[MoELayer],
    parts: RankStep,
    x_XH: Tensor,
    lane: Lane,
    *,
    repeat: int,
    step: int,
) -> None:
    """Run it; every layer is given the first of some rows, whatever the layer before it returned.

    Args:
        layers: of the plan, on this rank.
        parts: of the step.
        x_XH: at least as many rows as ``most_tokens``.
        lane: of the collectives.
        repeat, step: what its spans belong to.
    """

    def batch(number: int, choices: Sequence[LayerRouting]) -> Stages[None]:
        for index, layer, choice in zip(plan.model.layers, layers, choices, strict=True):
            x_TH = x_XH[: len(choice.token_T)]
            yield from layer.stages(x_TH, choice, Where(repeat, step, number, index), lane)

    in_turn([batch(number, choices) for number, choices in enumerate(parts)])
