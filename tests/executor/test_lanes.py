"""The lane of collectives: order, faults, and micro-batches that take turns, on a CPU and on a GPU."""

from __future__ import annotations

import threading
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from executor.dispatch.routing import RoutedStep
from executor.dispatch.transport import Groups
from executor.layer.lanes import Beside, InLine, Lane, Stages, in_turn, lane
from executor.layer.moe_layer import plan_layers
from executor.layer.spans import COLUMNS, NoSpan, Span, Where, clock_on
from executor.layer.step import routed_steps
from tests.executor.plans import expected, small_plan, step_inputs
from traces.timeline import PHASES

pytestmark = pytest.mark.executor

CPU = torch.device("cpu")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def test_collectives_run_in_their_order_while_the_caller_goes_on() -> None:
    done: list[str] = []
    go_on = threading.Event()

    def first(_: Span) -> str:
        assert go_on.wait(20)
        done.append("first")
        return "first"

    def second(_: Span) -> str:
        done.append("second")
        return "second"

    with lane(["two_batch"], CPU) as own:
        waits = [own.start(NoSpan(), work) for work in (first, second)]
        assert not done
        go_on.set()
        assert [wait() for wait in reversed(waits)] == ["second", "first"]
    assert done == ["first", "second"]


def test_in_line_a_collective_has_ended_when_it_was_started() -> None:
    done: list[int] = []
    with lane([], CPU) as own:
        assert isinstance(own, InLine)
        wait = own.start(NoSpan(), lambda _: done.append(1))
        assert done == [1]
        wait()


def test_a_fault_is_raised_where_it_is_waited_for() -> None:
    def fail(_: Span) -> None:
        raise ZeroDivisionError

    with lane(["shared_expert"], CPU) as own:
        wait = own.start(NoSpan(), fail)
        with pytest.raises(ZeroDivisionError):
            wait()
        assert own.start(NoSpan(), lambda _: 7)() == 7


def test_nobody_waits_for_a_lane_that_is_given_up() -> None:
    never, ended = threading.Event(), threading.Event()

    def wait_for_others(_: Span) -> None:
        never.wait(20)
        ended.set()

    beside = Beside(CPU)
    beside.start(NoSpan(), wait_for_others)
    beside.close()
    assert not ended.is_set()
    never.set()


@pytest.mark.parametrize("inference", [False, True])
def test_the_lane_is_in_the_callers_mode(inference: bool) -> None:
    beside = Beside(CPU)
    with torch.inference_mode(inference):
        assert beside.start(NoSpan(), lambda _: torch.is_inference_mode_enabled())() == inference
    beside.close()


@pytest.mark.parametrize("kind", DEVICES)
def test_micro_batches_that_overlap_compute_what_the_loop_does(kind: str) -> None:
    """One rank, both overlaps, a few steps: outputs against the reference, spans against the lanes."""
    device, overlap = torch.device(kind), ("shared_expert", "two_batch")
    plan = small_plan(1, 1, "per_gpu", seed=2, tokens=[301], steps=3, shared_width=5, overlap=overlap)
    spans = clock_on(device, lambda *_: None)
    layers = plan_layers(plan, Groups.make(1, 1), device=device, spans=spans)

    def batch(step: int, half: int, routed: RoutedStep, x_TH: Tensor, own: Lane) -> Stages[list[Tensor]]:
        found = []
        for row, (index, layer) in enumerate(zip(plan.model.layers, layers, strict=True)):
            where, choice = Where(0, step, half, index), routed.layer(row, 0, device)
            found.append((yield from layer.stages(x_TH, choice, where, own)))
        return found

    with lane(plan.overlap, device) as own:
        for step, parts in enumerate(routed_steps(plan)):
            inputs = [step_inputs(plan, routed) for routed in parts]
            found = in_turn(
                [
                    batch(step, half, routed, x_TH.to(device), own)
                    for half, (routed, x_TH) in enumerate(zip(parts, inputs, strict=True))
                ]
            )
            for routed, x_TH, outputs in zip(parts, inputs, found, strict=True):
                for row, y_TH in enumerate(outputs):
                    assert expected(plan, routed, row, x_TH, torch.float32, kind).error(y_TH) <= 1
    table = spans.table()
    assert len(table) == 3 * 2 * 2 * 5
    start, end, phase = (COLUMNS.index(name) for name in ("start_ns", "end_ns", "phase"))
    communicates = np.isin(table[:, phase], [PHASES.index(name) for name in ("dispatch", "combine")])
    # Events resolve half a microsecond.
    slack_ns = 1000 if kind == "cuda" else 0
    for of_lane in (table[communicates], table[~communicates]):
        for before, after in pairwise(of_lane[np.argsort(of_lane[:, start], kind="stable")]):
            assert before[end] <= after[start] + slack_ns
