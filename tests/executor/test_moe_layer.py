"""The layer against the float64 loop over tokens, and its copies against the simulator's, in every mode."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from executor.counting import count_plan, join_work
from executor.modes.transport import Groups
from executor.moe_layer import plan_layers
from executor.plan import MODES, Plan
from executor.routing import route
from tests.executor.lockstep import run_ranks
from tests.executor.plans import expected, small_plan, step_inputs
from tests.executor.simulated import equals_simulated
from traces.timeline import WorkTable

pytestmark = pytest.mark.executor

ROOT = Path(__file__).parents[2]
LIMIT_S = 120
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


@pytest.mark.parametrize(("ranks", "cases"), [(2, 34), (4, 24)])
def test_real_processes(ranks: int, cases: int, tmp_path: Path) -> None:
    """The same over gloo, in every dtype, with ranks per node of 1, 2 and 4."""
    out = tmp_path / "found.pickle"
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    done = subprocess.run(
        [sys.executable, *launch, str(Path(__file__).with_name("gloo_ranks.py")), str(out)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    found = pickle.loads(out.read_bytes())
    assert len(found) == cases
    for name, (plan, error, counted) in found.items():
        assert error <= TOLERANCE[plan.dtype], name
        assert equals_simulated(plan, counted), name
