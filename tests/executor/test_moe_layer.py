"""The layer against the float64 loop over tokens, and its copies against the simulator's, in every mode."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from executor.dispatch.routing import RoutedStep, route
from executor.dispatch.transport import Groups
from executor.layer.lanes import Lane, Stages, in_turn, lane
from executor.layer.moe_layer import TORCH_DTYPES, plan_layers
from executor.layer.spans import COLUMNS, NOWHERE, HostSpans
from executor.layer.step import most_tokens, of_rank, routed_steps, run_step
from executor.measuring.counting import count_plan, join_work
from executor.plan.plan import Plan
from moesim.dispatch.modes import MODES
from tests.examples import examples
from tests.executor.lockstep import run_ranks
from tests.executor.plans import expected, small_plan, step_inputs
from tests.executor.processes import run_processes
from tests.executor.simulated import equals_simulated, simulated_work
from traces.timeline import PHASES, WorkTable

pytestmark = pytest.mark.executor

OVERLAPS: list[tuple[str, ...]] = [(), ("two_batch",), ("shared_expert",), ("shared_expert", "two_batch")]


@st.composite
def plans(draw: st.DrawFn, mode: str) -> Plan:
    """Up to 6 ranks in nodes of equal size."""
    per_node, nodes = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    ranks = per_node * nodes
    drop = {"policy": "drop", "capacity_factor": draw(st.sampled_from([0.3, 1.0]))}
    weighted = draw(st.booleans())
    return small_plan(
        ranks,
        per_node,
        mode,
        seed=draw(st.integers(0, 1 << 32)),
        padded=mode in ("per_expert", "per_gpu") and draw(st.booleans()),
        tokens=draw(st.none() | st.lists(st.integers(0, 4), min_size=ranks, max_size=ranks)),
        top_k=draw(st.integers(1, 6)),
        spare_slots=draw(st.integers(0, 5)),
        one_expert=draw(st.booleans()),
        weighted=weighted,
        steps=draw(st.integers(1, 2)),
        shared_width=draw(st.sampled_from([0, 3])),
        gated=draw(st.booleans()),
        routing=drop if weighted and draw(st.booleans()) else None,
        overlap=draw(st.sampled_from(OVERLAPS)),
        widths=draw(st.sampled_from([(), (3, 4, 7)])),
    )


@pytest.mark.parametrize("mode", MODES)
@given(data=st.data())
@settings(max_examples=examples(12))
def test_every_mode_computes_what_the_loop_does_and_sends_what_the_simulator_counts(
    mode: str, data: st.DataObject
) -> None:
    plan = data.draw(plans(mode))
    steps = routed_steps(plan)
    inputs = [[step_inputs(plan, routed) for routed in parts] for parts in steps]

    def work(groups: Groups) -> tuple[list[list[list[torch.Tensor]]], WorkTable]:
        layers = plan_layers(plan, groups)

        def batch(routed: RoutedStep, x_TH: torch.Tensor, own: Lane) -> Stages[list[torch.Tensor]]:
            found = []
            for row, layer in enumerate(layers):
                here_TH = x_TH[routed.tokens(row, groups.rank)]
                choice = routed.layer(row, groups.rank)
                found.append((yield from layer.stages(here_TH, choice, NOWHERE, own)))
            return found

        with lane(plan.overlap, torch.device("cpu")) as own:
            outputs = [
                in_turn([batch(routed, x_TH, own) for routed, x_TH in zip(parts, given, strict=True)])
                for parts, given in zip(steps, inputs, strict=True)
            ]
        return outputs, count_plan(plan, groups)

    found, tables = zip(*run_ranks(plan.ranks, plan.ranks_per_node, work), strict=True)
    for step, parts in enumerate(steps):
        for number, routed in enumerate(parts):
            for row in range(len(plan.model.layers)):
                wanted = expected(plan, routed, row, inputs[step][number], torch.float32)
                for rank, outputs in enumerate(found):
                    assert wanted[routed.tokens(row + 1, rank)].error(outputs[step][number][row]) <= 1
    counted = join_work(tables)
    counted.validate()
    assert equals_simulated(plan, counted)


@pytest.mark.parametrize("mode", MODES)
@given(data=st.data())
@settings(max_examples=examples(8))
def test_spans_say_what_the_simulator_says(mode: str, data: st.DataObject) -> None:
    plan = data.draw(plans(mode))
    # There a shared expert's output travels too, in a row of its own.
    assume(mode != "expert_to_expert" or not plan.model.shared_width)
    steps, cpu = [simulated_work(plan, step) for step in range(plan.steps)], torch.device("cpu")

    def measured(groups: Groups) -> tuple[NDArray[np.int64], list[str]]:
        announced: list[str] = []
        spans = HostSpans(lambda name, *_: announced.append(name))
        layers, routing = plan_layers(plan, groups, spans=spans), of_rank(plan, groups.rank, cpu)
        x_XH = torch.zeros(most_tokens(routing), plan.model.hidden)
        with lane(plan.overlap, cpu) as own:
            for step, parts in enumerate(routing):
                run_step(plan, layers, parts, x_XH, own, repeat=0, step=step)
        return spans.table(), announced

    copy_bytes = plan.model.hidden * 4
    # What watches the ranks relies on it that all of them announce the same phases in the same order.
    told = run_ranks(plan.ranks, plan.ranks_per_node, measured)
    assert all(announced == told[0][1] for _, announced in told)
    for rank, (table_NC, _) in enumerate(told):
        expected = []
        for step, parts in enumerate(steps):
            for batch, work in enumerate(parts):
                for row, layer in enumerate(plan.model.layers):
                    home = len(routed_steps(plan)[step][batch].tokens(row, rank))
                    there_GG = work.sent_LGG[row] + work.relayed_LGG[row]
                    back_GG = there_GG.T if work.returned_LGG is None else work.returned_LGG[row]
                    if mode == "all_reduce":
                        back_GG = back_GG + there_GG
                    served = (int(work.served_LG[row, rank]), int(work.unique_LG[row, rank]))
                    counts = {"router": (0, home, 0), "shared_expert": (0, home, 0)}
                    if not plan.model.shared_width:
                        del counts["shared_expert"]
                    for phase, moved_GG in (("dispatch", there_GG), ("experts", None), ("combine", back_GG)):
                        moved = 0 if moved_GG is None else int(moved_GG[:, rank].sum()) * copy_bytes
                        counts[phase] = (*served, moved)
                    where = (0, step, batch, layer)
                    expected += [(*where, PHASES.index(name), *row) for name, row in counts.items()]
        found = np.delete(table_NC, [COLUMNS.index("start_ns"), COLUMNS.index("end_ns")], axis=1)
        assert found.tolist() == [list(row) for row in sorted(expected)]


def cases(ranks: int) -> Iterator[tuple[str, Plan]]:
    """Every mode, padded ones too, over nodes of every size; dtypes, drops and shared experts in turn."""
    drop = {"policy": "drop", "capacity_factor": 0.6}
    turns = [("fp32", None, 0), ("bf16", drop, 4), ("fp16", drop, 0)]
    modes = [(mode, False) for mode in MODES] + [("per_expert", True), ("per_gpu", True)]
    for seed, (mode, padded) in enumerate(modes):
        for size in (size for size in (1, 2, 4) if ranks % size == 0):
            dtype, routing, shared = turns[(seed + size) % len(turns)]
            known: dict[str, Any] = {"padded": padded, "routing": routing, "shared_width": shared}
            name = f"{mode}, padded: {padded}, {size} ranks per node, {dtype}"
            yield name, small_plan(ranks, size, mode, seed=seed, dtype=dtype, **known)
    for mode in MODES:
        alone = [0] * (ranks - 1) + [3]
        yield f"{mode}, idle ranks", small_plan(ranks, ranks, mode, seed=1, tokens=alone)
        yield f"{mode}, one expert", small_plan(ranks, ranks, mode, seed=2, one_expert=True, spare_slots=0)
        yield f"{mode}, top 8", small_plan(ranks, ranks, mode, seed=3, top_k=8, experts=9)


def of_this_rank(ranks: int, device: str) -> dict[str, tuple[list[float], WorkTable]]:
    """For each case the error of every layer here, in what rounding explains, and the counts."""
    groups_of = {size: Groups.make(ranks, size) for size in (1, 2, 4) if ranks % size == 0}
    found = {}
    for name, plan in cases(ranks):
        groups, dtype = groups_of[plan.ranks_per_node], TORCH_DTYPES[plan.dtype]
        routed = route(plan, plan.micro_batches(0)[0])
        x_TH = step_inputs(plan, routed).to(dtype)
        errors = []
        for row, layer in enumerate(plan_layers(plan, groups, device=device)):
            token_T, after_T = routed.tokens(row, groups.rank), routed.tokens(row + 1, groups.rank)
            y_TH = layer(x_TH[token_T].to(device), routed.layer(row, groups.rank, device)).cpu()
            wanted = expected(plan, routed, row, x_TH, dtype, device)[after_T]
            errors.append(wanted.error(y_TH) if y_TH.dtype == dtype else float("inf"))
        found[name] = (errors, count_plan(plan, groups, device))
    return found


def check_processes(ranks: int, device: str, folder: Path) -> None:
    by_rank = run_processes(ranks, folder, device, of_this_rank, ranks, device)
    for name, plan in cases(ranks):
        errors, tables = zip(*(found[name] for found in by_rank), strict=True)
        assert all(error <= 1 for of_rank in errors for error in of_rank), name
        assert equals_simulated(plan, join_work(tables)), name


@pytest.mark.parametrize("ranks", [1, 4])
def test_real_processes(ranks: int, tmp_path: Path) -> None:
    """The same over gloo, in every dtype; of four ranks 1, 2 and 4 in a node."""
    check_processes(ranks, "cpu", tmp_path)


@pytest.mark.gpu
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_real_gpus(ranks: int, tmp_path: Path) -> None:
    """The same over NCCL."""
    if torch.cuda.device_count() < ranks:
        pytest.skip(f"needs {ranks} GPUs")
    check_processes(ranks, "cuda", tmp_path)
