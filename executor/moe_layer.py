"""The expert-parallel MoE layer of one rank."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from executor.dispatch import Dispatcher
from executor.errors import PlanError
from executor.experts.catalogue import BACKENDS, Experts
from executor.experts.loop import SharedExpert
from executor.experts.weights import ExpertWeights
from executor.gate import Gate, Replay, Router
from executor.modes.catalogue import dispatcher
from executor.modes.transport import Groups, Transport
from executor.plan import Plan
from executor.routing import LayerRouting
from executor.spans import NoSpans, Spans


@dataclass(frozen=True)
class MoELayer:
    """Router, shared expert, dispatch, experts, combine: each a phase of its own, in this order.

    All ranks of a run call their layer at the same time; what they exchange is the dispatcher's.

    Attributes:
        router: chooses, or computes a gate and then follows a recorded choice.
        dispatcher: of one mode; may serve all layers.
        transport: that of the dispatcher.
        experts: of this rank's slots.
        shared: the expert that every token visits where it is.
        spans: the clock.
    """

    router: Router
    dispatcher: Dispatcher
    transport: Transport
    experts: Experts
    shared: SharedExpert | None = None
    spans: Spans = field(default_factory=NoSpans)

    def __call__(self, x_TH: Tensor, routing: LayerRouting | None = None) -> Tensor:
        """The layer's output for the tokens that this rank holds afterwards: its own, by token number.

        Args:
            x_TH: the tokens that this rank holds, contiguous.
            routing: the recorded choice; None where the router chooses.
        """
        T, H = x_TH.shape
        copy_bytes = H * x_TH.element_size()
        spans, transport = self.spans, self.transport
        with spans.phase("router"):
            packed = self.dispatcher.pack(x_TH, self.router(x_TH, routing))
            spans.count(assignments=0, unique_tokens=T, bytes=0)
        shared_TH = None
        if self.shared is not None:
            with spans.phase("shared_expert"):
                shared_TH = self.shared(x_TH)
                spans.count(assignments=0, unique_tokens=T, bytes=0)
        with spans.phase("dispatch"):
            transport.received = 0
            arrived = self.dispatcher.dispatch(packed)
            served = len(arrived.rows_AH)
            spans.count(
                assignments=served, unique_tokens=arrived.tokens, bytes=transport.received * copy_bytes
            )
        with spans.phase("experts"):
            out_AH = self.experts(arrived.rows_AH, arrived.count_Z)
            spans.count(assignments=served, unique_tokens=arrived.tokens, bytes=0)
        with spans.phase("combine"):
            transport.received = 0
            y_TH = self.dispatcher.combine(out_AH, arrived, shared_TH)
            spans.count(
                assignments=served, unique_tokens=arrived.tokens, bytes=transport.received * copy_bytes
            )
        return y_TH


TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""By the names of ``executor.plan.DTYPES``."""


def plan_layers(
    plan: Plan,
    groups: Groups,
    *,
    backend: str = "loop",
    device: torch.device | str = "cpu",
    spans: Spans | None = None,
) -> list[MoELayer]:
    """Every layer of a plan on this rank, with weights made from the plan's seed; they replay its routing.

    Raises:
        PlanError: an unknown back end.
        RuntimeError: torch cannot allocate the weights (``torch.OutOfMemoryError`` on a GPU).
    """
    if backend not in BACKENDS:
        raise PlanError(f"must be one of: {', '.join(BACKENDS)}", field="backend", got=backend)
    transport = Transport()
    dispatch = dispatcher(plan.mode, groups, plan.slot_gpu_S, transport, padded=plan.padded, device=device)
    made: dict[str, Any] = {"seed": plan.seed, "dtype": TORCH_DTYPES[plan.dtype], "device": device}
    slots = plan.local_slots(groups.rank)
    layers = []
    for row, layer in enumerate(plan.model.layers):
        experts_S = plan.slot_expert_LS[row, slots].tolist()
        experts = BACKENDS[backend](ExpertWeights.random(plan.model, layer, experts_S, **made))
        shared = None
        if plan.model.shared_width:
            shared = SharedExpert(ExpertWeights.random_shared(plan.model, layer, **made))
        router = Replay(Gate.random(plan.model, layer, **made))
        layers.append(MoELayer(router, dispatch, transport, experts, shared, spans or NoSpans()))
    return layers
