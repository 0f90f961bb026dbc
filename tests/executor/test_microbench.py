"""The microbenchmarks on real ranks: every plan on every rank, and peaks above zero."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from executor.measuring.microbench import main
from executor.measuring.spec import Spec
from executor.plan.errors import PlanError
from executor.ranks.progress import Mark
from moesim.calibration.design import LOADS, Load, Settings, calibrated_model, deployment
from moesim.calibration.machine import Machine
from moesim.calibration.observed import Observed
from moesim.deployment.deployment import Deployment
from moesim.live.plan import write_plan
from tests.executor.processes import torchrun_ranks
from tests.moesim.calibrated_machine import machine
from traces.base.text import to_json
from traces.timeline import Timeline, read_timeline

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.executor

SETTINGS = Settings(ranks=2, seconds=0.0)
CHOSEN = (Load("per_gpu", 4, 1.0), Load("per_expert", 8, 1.0), Load("all_reduce", 4, 0.3))
Measured = tuple[Path, list[tuple[Deployment, Timeline]]]


def spec(folder: Path, **changes: object) -> Path:
    """A SPEC.json of the chosen loads beside their plans."""
    model = calibrated_model(None, "fp32", SETTINGS.ranks, 1 << 28)
    for load in CHOSEN:
        write_plan(deployment(load, model, machine(SETTINGS.ranks)), folder / load.name)
    value = {
        "format": "moesim.microbench/1",
        "plans": [load.name for load in CHOSEN],
        "device": "cpu",
        "backend": "loop",
        "threads": 1,
        "seconds": 0.0,
    }
    (folder / "spec.json").write_text(to_json(value | changes))
    return folder / "spec.json"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    folder = tmp_path_factory.mktemp("microbench")
    out = folder / "out"
    assert torchrun_ranks(SETTINGS.ranks, main, spec(folder), out) == (0, 0)
    model = calibrated_model(None, "fp32", SETTINGS.ranks, 1 << 28)
    deployments = [deployment(load, model, machine(SETTINGS.ranks)) for load in CHOSEN]
    return out, [(each, read_timeline(out / f"{each.scenario.name}.parquet")) for each in deployments]


def test_every_plan_is_repeated_at_least_five_times(measured: Measured) -> None:
    for _, timeline in measured[1]:
        assert np.unique(timeline.repeat_N).tolist() == list(range(5))


def test_what_was_measured_fits_what_is_simulated(measured: Measured) -> None:
    """Each cell has its span, and what the ranks handled is what the simulation counts."""
    for each, timeline in measured[1]:
        observed = Observed.of(each, timeline)
        for phase in ("router", "dispatch", "experts", "combine"):
            assert (observed.seconds[phase] > 0).all()
        experts = timeline.select(timeline.phase_N == 3)
        assert experts.assignments_N.sum() == 5 * observed.work.served_LG.sum()
        assert (observed.entered["dispatch"].max(axis=1) == 0).all()


def test_peaks_are_those_of_a_machine(measured: Measured) -> None:
    found = Machine.read(measured[0] / "machine.json")
    assert found.kind == "cpu"
    assert 1e8 < found.flops < 1e14
    assert 1e8 < found.bandwidth < 1e13
    assert 1e-8 < found.launch_s < 1e-2
    assert 1e-6 < found.exchange_s < 1
    assert len(json.loads((measured[0] / "machine.json").read_text())["peaks"]) == 2


def test_plans_of_other_weights_are_refused(tmp_path: Path) -> None:
    """A run in turns shares the weights of its plans."""
    file = spec(tmp_path)
    other = calibrated_model(None, "fp32", SETTINGS.ranks, 1 << 27)
    write_plan(deployment(LOADS[0], other, machine(SETTINGS.ranks)), tmp_path / "per_expert-8-1")
    from executor.measuring.bench import read_plans

    with pytest.raises(PlanError, match="plans: must all have the shape, the ranks and the slots"):
        read_plans(Spec.read(file).plans)


def test_patience_is_short_while_plans_run_in_turns() -> None:
    """A rank on its own: a warm-up without hurry, then as long as a healthy rank may take."""
    from executor.measuring.bench import measure, prepare, slowest_s
    from executor.ranks.process_group import Group
    from tests.executor.plans import small_plan

    plans = [small_plan(1, 1, mode, seed=0, tokens=[3]) for mode in ("per_gpu", "all_gather")]
    alone, asked, entered = Group(0, 1, torch.device("cpu"), None), [], []
    mark = SimpleNamespace(enter=lambda phase, *where: entered.append((phase, *where)))
    given = Spec((), "cpu", "loop", 1, 0.0)

    def patience(seconds: float) -> None:
        asked.append((seconds, len(entered)))

    with torch.inference_mode():
        benches = prepare(given, plans, alone, cast(Mark, mark))
        measure(given, benches, alone, cast(Mark, mark), patience)
    ((seconds, before),) = asked
    assert 10 <= seconds == slowest_s(plans, "cpu") < 20
    assert entered[before - 1] == ("begin",)
    assert {where[1] for where in entered[: before - 1]} == {-1}
    assert {where[1] for where in entered[before:]} == {0, 1, 2, 3, 4}
