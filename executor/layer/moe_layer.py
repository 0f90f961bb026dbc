"""The expert-parallel MoE layer of one rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from executor.dispatch.dispatcher import Arrived, Dispatcher
from executor.dispatch.modes import dispatcher
from executor.dispatch.routing import LayerRouting
from executor.dispatch.stage import Packed
from executor.dispatch.transport import Groups, Transport
from executor.experts.backends import BACKENDS, Experts
from executor.experts.loop import LoopExperts, SharedExpert
from executor.experts.weights import ExpertWeights, UnequalWeights
from executor.layer.gate import Gate, Replay, Router
from executor.layer.lanes import InLine, Lane, Stages, in_turn
from executor.layer.spans import NOWHERE, NoSpans, Span, Spans, Where
from executor.plan.errors import PlanError
from executor.plan.plan import Plan


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
        early_dispatch: whether dispatch starts before the shared expert, to run beside it.
    """

    router: Router
    dispatcher: Dispatcher
    transport: Transport
    experts: Experts
    shared: SharedExpert | None = None
    spans: Spans = field(default_factory=NoSpans)
    early_dispatch: bool = False

    def __call__(self, x_TH: Tensor, routing: LayerRouting | None = None, where: Where = NOWHERE) -> Tensor:
        """The layer's output for the tokens that this rank holds afterwards: its own, by token number.

        Args:
            x_TH: the tokens that this rank holds, contiguous.
            routing: the recorded choice; None where the router chooses.
            where: what its spans belong to.
        """
        (y_TH,) = in_turn([self.stages(x_TH, routing, where, InLine())])
        return y_TH

    def stages(self, x_TH: Tensor, routing: LayerRouting | None, where: Where, lane: Lane) -> Stages[Tensor]:
        """The same with dispatch and combine on a lane, so that another micro-batch can compute meanwhile."""
        spans, dispatching = self.spans, None

        def start_dispatch() -> Callable[[], Arrived]:
            return lane.start(spans.phase("dispatch", where), partial(self._dispatch, packed))

        # What a lane is given lives until this function ends, when both lanes are done with it.
        with spans.phase("router", where) as span:
            packed = self.dispatcher.pack(x_TH, self.router(x_TH, routing))
            span.count(assignments=0, unique_tokens=len(x_TH), bytes=0)
        if self.early_dispatch:
            dispatching = start_dispatch()
        shared_TH = None
        if self.shared is not None:
            with spans.phase("shared_expert", where) as span:
                shared_TH = self.shared(x_TH)
                span.count(assignments=0, unique_tokens=len(x_TH), bytes=0)
        if dispatching is None:
            dispatching = start_dispatch()
        yield
        arrived = dispatching()
        with spans.phase("experts", where) as span:
            out_AH = self.experts(arrived.rows_AH, arrived.count_Z)
            span.count(assignments=len(arrived.rows_AH), unique_tokens=arrived.tokens, bytes=0)
        combine = partial(self._combine, out_AH, arrived, shared_TH)
        combining = lane.start(spans.phase("combine", where), combine)
        yield
        return combining()

    def _dispatch(self, packed: Packed, span: Span) -> Arrived:
        self.transport.received = 0
        arrived = self.dispatcher.dispatch(packed)
        self._count(span, arrived)
        return arrived

    def _combine(self, out_AH: Tensor, arrived: Arrived, shared_TH: Tensor | None, span: Span) -> Tensor:
        self.transport.received = 0
        y_TH = self.dispatcher.combine(out_AH, arrived, shared_TH)
        self._count(span, arrived)
        return y_TH

    def _count(self, span: Span, arrived: Arrived) -> None:
        """What a collective brought here."""
        rows_AH = arrived.rows_AH
        received = self.transport.received * rows_AH.shape[1] * rows_AH.element_size()
        span.count(assignments=len(rows_AH), unique_tokens=arrived.tokens, bytes=received)


TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""By the names of ``executor.plan.plan.DTYPES``."""


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
        PlanError: an unknown back end, or one that cannot multiply experts of several widths.
        RuntimeError: torch cannot allocate the weights (``torch.OutOfMemoryError`` on a GPU).
    """
    if backend not in BACKENDS:
        raise PlanError(f"must be one of: {', '.join(BACKENDS)}", field="backend", got=backend)
    transport = Transport()
    dispatch = dispatcher(plan.mode, groups, plan.slot_gpu_S, transport, padded=plan.padded, device=device)
    made: dict[str, Any] = {"seed": plan.seed, "dtype": TORCH_DTYPES[plan.dtype], "device": device}
    kinds = ", ".join(f"{kind.name} ({kind.width})" for kind in plan.model.kinds)
    if kinds and backend != "loop":
        rule = f"multiplies experts of one width; the plan has kinds of several, {kinds}: take loop"
        raise PlanError(rule, field="backend", got=backend)
    slots, early = plan.local_slots(groups.rank), "shared_expert" in plan.overlap
    layers = []
    for row, layer in enumerate(plan.model.layers):
        experts_S = plan.slot_expert_LS[row, slots].tolist()
        if kinds:
            experts: Experts = LoopExperts(UnequalWeights.random(plan.model, layer, experts_S, **made))
        else:
            experts = BACKENDS[backend](ExpertWeights.random(plan.model, layer, experts_S, **made))
        shared = None
        if plan.model.shared_width:
            shared = SharedExpert(ExpertWeights.random_shared(plan.model, layer, **made))
        router = Replay(Gate.random(plan.model, layer, **made))
        layers.append(MoELayer(router, dispatch, transport, experts, shared, spans or NoSpans(), early))
    return layers
