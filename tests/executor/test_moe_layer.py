"""The layer against the float64 loop over tokens, and its copies against the simulator's, in every mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from executor.counting import count_plan, join_work
from executor.modes.transport import Groups
from executor.moe_layer import TORCH_DTYPES, plan_layers
from executor.plan import MODES, Plan
from executor.routing import route
from executor.spans import NoSpans
from tests.executor.lockstep import run_ranks
from tests.executor.plans import expected, small_plan, step_inputs
from tests.executor.processes import run_processes
from tests.executor.simulated import equals_simulated, simulated_work
from traces.timeline import WorkTable

pytestmark = pytest.mark.executor

# Of values around 1 that were rounded a few times on the way.
TOLERANCE = {"fp32": 2e-6, "bf16": 5e-2, "fp16": 6e-3}


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
    )


@pytest.mark.parametrize("mode", MODES)
@given(data=st.data())
@settings(max_examples=12)
def test_every_mode_computes_what_the_loop_does_and_sends_what_the_simulator_counts(
    mode: str, data: st.DataObject
) -> None:
    plan = data.draw(plans(mode))
    routed_steps = [route(plan, plan.step(step)) for step in range(plan.steps)]
    inputs = [step_inputs(plan, routed) for routed in routed_steps]

    def work(groups: Groups) -> tuple[list[list[torch.Tensor]], WorkTable]:
        layers = plan_layers(plan, groups)
        outputs = [
            [
                layer(x_TH[routed.tokens(row, groups.rank)], routed.layer(row, groups.rank))
                for row, layer in enumerate(layers)
            ]
            for routed, x_TH in zip(routed_steps, inputs, strict=True)
        ]
        return outputs, count_plan(plan, groups)

    found, tables = zip(*run_ranks(plan.ranks, plan.ranks_per_node, work), strict=True)
    for step, (routed, x_TH) in enumerate(zip(routed_steps, inputs, strict=True)):
        for row in range(len(plan.model.layers)):
            wanted_TH = expected(plan, routed, row, x_TH, torch.float32)
            for rank, outputs in enumerate(found):
                torch.testing.assert_close(
                    outputs[step][row].double(),
                    wanted_TH[routed.tokens(row + 1, rank)],
                    rtol=0,
                    atol=TOLERANCE["fp32"],
                )
    counted = join_work(tables)
    counted.validate()
    assert equals_simulated(plan, counted)


class Noted(NoSpans):
    """Keeps what the layer says of its phases."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.counts: list[tuple[int, int, int]] = []

    def phase(self, name: str) -> AbstractContextManager[None]:
        self.phases.append(name)
        return nullcontext()

    def count(self, *, assignments: int, unique_tokens: int, bytes: int) -> None:  # noqa: A002  # the column
        self.counts.append((assignments, unique_tokens, bytes))


@pytest.mark.parametrize("mode", MODES)
@given(data=st.data())
@settings(max_examples=8)
def test_spans_say_what_the_simulator_says(mode: str, data: st.DataObject) -> None:
    plan = data.draw(plans(mode).filter(lambda plan: plan.model.shared_width == 0))
    routed, work = route(plan, plan.step(0)), simulated_work(plan, 0)
    x_TH = step_inputs(plan, routed)

    def noted(groups: Groups) -> Noted:
        spans = Noted()
        for row, layer in enumerate(plan_layers(plan, groups, spans=spans)):
            layer(x_TH[routed.tokens(row, groups.rank)], routed.layer(row, groups.rank))
        return spans

    for rank, spans in enumerate(run_ranks(plan.ranks, plan.ranks_per_node, noted)):
        assert spans.phases == ["router", "dispatch", "experts", "combine"] * 2
        for row in range(2):
            there_GG = work.sent_LGG[row] + work.relayed_LGG[row]
            back_GG = there_GG.T if work.returned_LGG is None else work.returned_LGG[row]
            if mode == "all_reduce":
                back_GG = back_GG + there_GG
            served, unique = int(work.served_LG[row, rank]), int(work.unique_LG[row, rank])
            copy_bytes = plan.model.hidden * 4
            assert spans.counts[4 * row : 4 * row + 4] == [
                (0, len(routed.tokens(row, rank)), 0),
                (served, unique, there_GG[:, rank].sum() * copy_bytes),
                (served, unique, 0),
                (served, unique, back_GG[:, rank].sum() * copy_bytes),
            ]


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


def of_this_rank(ranks: int, device: str) -> dict[str, tuple[float, WorkTable]]:
    """For each case the largest error of a layer here, infinite for another shape, and the counts."""
    groups_of = {size: Groups.make(ranks, size) for size in (1, 2, 4) if ranks % size == 0}
    found = {}
    for name, plan in cases(ranks):
        groups, dtype = groups_of[plan.ranks_per_node], TORCH_DTYPES[plan.dtype]
        routed = route(plan, plan.step(0))
        x_TH = step_inputs(plan, routed).to(dtype)
        worst = 0.0
        for row, layer in enumerate(plan_layers(plan, groups, device=device)):
            token_T, after_T = routed.tokens(row, groups.rank), routed.tokens(row + 1, groups.rank)
            y_TH = layer(x_TH[token_T].to(device), routed.layer(row, groups.rank, device)).cpu()
            wanted_TH = expected(plan, routed, row, x_TH, dtype, device)[after_T]
            fits = y_TH.shape == wanted_TH.shape and y_TH.dtype == dtype
            errors = (y_TH - wanted_TH).abs().flatten().tolist() if fits else [float("inf")]
            worst = max(worst, *errors, 0.0)
        found[name] = (worst, count_plan(plan, groups, device))
    return found


def check_processes(ranks: int, device: str, folder: Path) -> None:
    by_rank = run_processes(ranks, folder, device, of_this_rank, ranks, device)
    for name, plan in cases(ranks):
        errors, tables = zip(*(found[name] for found in by_rank), strict=True)
        assert max(errors) <= TOLERANCE[plan.dtype], name
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
