"""Running plans with real processes: what is measured and counted, and what becomes of ranks that fail."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

import executor.ranks.patience
from executor.__main__ import main
from executor.experts.loop import LoopExperts
from executor.plan.errors import PlanError
from executor.plan.plan_file import read_plan
from executor.ranks.memory import check_memory, weight_bytes
from moesim.analysis.counts import same_counts
from moesim.deployment.deployment import Deployment, deploy
from moesim.live.plan import write_plan
from moesim.simulation.run import run
from moesim.spec.scenario import load_scenario
from tests.executor.processes import torchrun_ranks
from tests.moesim.tiny import TINY, on_generic, tiny_scenario, write_scenario
from traces.timeline import PHASES, Timeline, read_timeline, read_work

pytestmark = pytest.mark.executor


def deployed(folder: Path, *kinds: dict[str, Any], **changes: Any) -> Deployment:
    """Two ranks, twelve slots for eight experts, a shared expert, drops."""
    experts = TINY["model"]["experts"] | {"shared_width": 16, "kinds": list(kinds)}
    model = TINY["model"] | {"experts": experts, "activation_dtype": "fp32", "expert_dtype": "fp32"}
    gpu = TINY["cluster"]["gpu"] | {"flops": {"fp32": "1 TFLOPS"}, "sms": 100}
    cluster = TINY["cluster"] | {"gpu": gpu}
    scenario = tiny_scenario(
        model=model,
        cluster=cluster | {"nodes": 1},
        parallelism={"ep": 2},
        placement={"solver": "greedy", "slots": 12},
        routing={"policy": "drop", "capacity_factor": 1.0},
        dispatch={"mode": "per_gpu", "dtype": "fp32", "combine_dtype": "fp32"},
        workload=TINY["workload"] | {"part": "moe"},
        # Real ranks have no span of the host that waits for counts.
        profile=on_generic(plain={"host": 0.0}, dispatch={"per_gpu": {"host": 0.0}}),
        **changes,
    )
    return deploy(load_scenario(str(write_scenario(folder, scenario))))


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    return deployed(tmp_path_factory.mktemp("scenario"))


@pytest.fixture(scope="module")
def overlapped(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """The same in two micro-batches."""
    return deployed(tmp_path_factory.mktemp("scenario"), overlap=["shared_expert", "two_batch"])


@pytest.fixture(scope="module")
def plan(deployment: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    write_plan(deployment, folder)
    return folder


def message(out: Path) -> str:
    """What the watcher found; it writes a moment after the last rank has ended."""
    until = time.monotonic() + 5
    while not (out / "failure.json").exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    assert not (out / "timeline.parquet").exists()
    return str(json.loads((out / "failure.json").read_text())["message"])


def test_what_ranks_do_is_measured_and_counted(deployment: Deployment, plan: Path, tmp_path: Path) -> None:
    assert torchrun_ranks(2, main, plan, tmp_path, "--repeats", "3", "--warmup", "1", "--count") == (0, 0)
    simulated = run(deployment)
    assert same_counts(read_work(tmp_path / "work.parquet"), simulated.work())
    measured, wait = read_timeline(tmp_path / "timeline.parquet"), PHASES.index("wait")
    assert measured.run == "tiny"
    # In each repeat the spans are those of the simulation, with the same counts.
    expected = simulated.timeline.select(simulated.timeline.phase_N != wait)
    columns = ("step", "rank", "layer", "phase", "stream", "assignments", "unique_tokens", "bytes")
    for repeat in range(3):
        found = measured.select((measured.phase_N != wait) & (measured.repeat_N == repeat))
        for column in columns:
            assert getattr(found, f"{column}_N").tolist() == getattr(expected, f"{column}_N").tolist(), column
    assert measured.repeat_N.max() == 2
    run_json = json.loads((tmp_path / "run.json").read_text())
    assert run_json["format"] == "moesim.run/1"
    assert (run_json["device"], run_json["backend"], run_json["repeats"]) == ("cpu", "loop", 3)
    assert not (tmp_path / "failure.json").exists()


def told(found: Timeline, *columns: str) -> list[tuple[int, ...]]:
    """These columns of spans, in an order that no clock decides."""
    return sorted(zip(*(getattr(found, f"{column}_N").tolist() for column in columns), strict=True))


def test_micro_batches_that_overlap_are_measured_and_counted(overlapped: Deployment, tmp_path: Path) -> None:
    write_plan(overlapped, tmp_path / "plan")
    arguments = ("--repeats", "2", "--count")
    assert torchrun_ranks(2, main, tmp_path / "plan", tmp_path, *arguments) == (0, 0)
    simulated, wait = run(overlapped), PHASES.index("wait")
    assert same_counts(read_work(tmp_path / "work.parquet"), simulated.work())
    measured, belongs = read_timeline(tmp_path / "timeline.parquet"), ("step", "rank", "layer", "micro_batch")
    columns = (*belongs, "phase", "stream", "assignments", "unique_tokens", "bytes")
    expected = told(simulated.timeline.select(simulated.timeline.phase_N != wait), *columns)
    for repeat in range(2):
        here = measured.select((measured.phase_N != wait) & (measured.repeat_N == repeat))
        assert told(here, *columns) == expected
    # A phase of a micro-batch begins when the one before it has ended; the other's may begin earlier.
    order = ("router", "dispatch", "experts", "combine")
    for place in {row[:4] for row in told(measured, *belongs) if row[2] >= 0}:
        here = measured.select(
            np.all([getattr(measured, f"{name}_N") == at for name, at in zip(belongs, place, strict=True)], 0)
        )
        spans = [here.select(here.phase_N == PHASES.index(phase)) for phase in order]
        for before, after in pairwise(spans):
            assert (before.end_s_N <= after.start_s_N).all()


@pytest.mark.parametrize("overlaps", [False, True])
def test_in_turns_ranks_compute_the_same(overlaps: bool, request: Any, tmp_path: Path) -> None:
    deployment = request.getfixturevalue("overlapped" if overlaps else "deployment")
    write_plan(deployment, tmp_path / "plan")
    assert torchrun_ranks(1, main, tmp_path / "plan", tmp_path, "--repeats", "2", "--serial") == (0,)
    measured, simulated = read_timeline(tmp_path / "timeline.parquet"), run(deployment).timeline
    alone = [PHASES.index(phase) for phase in ("router", "shared_expert", "experts")]
    assert np.unique(measured.phase_N).tolist() == sorted(alone)
    columns = ("step", "rank", "layer", "micro_batch", "phase", "assignments", "unique_tokens")
    expected = told(simulated.select(np.isin(simulated.phase_N, alone)), *columns)
    assert told(measured.select(measured.repeat_N == 1), *columns) == expected


class _Faulty(LoopExperts):
    """Computes eleven times, and not a twelfth time."""

    calls = 0

    def __call__(self, rows_AH: Tensor, count_Z: Tensor) -> Tensor:
        _Faulty.calls += 1
        return super().__call__(rows_AH, count_Z) if _Faulty.calls < 12 else self.fail()

    def fail(self) -> NoReturn:
        raise ValueError("no more\nof this")


class _Endless(_Faulty):
    def fail(self) -> NoReturn:
        while True:
            pass


class _Greedy(_Faulty):
    def fail(self) -> NoReturn:
        torch.empty(1 << 60)
        raise AssertionError


def sabotage_rank_1(backend: type[LoopExperts], rank: int) -> None:
    """Rank 1 computes its experts with another back end; a hang is noticed after a second or so."""
    executor.ranks.patience._LEAST_S = 1.0
    if rank == 1:
        mock.patch("executor.layer.moe_layer.BACKENDS", {"loop": backend}).start()


PLACE = "experts (layer 2, step 1, repeat 0)"
# With two micro-batches a pass has eight calls.
OF_TWO = "experts (layer 2, step 0, warm-up)"


@pytest.mark.parametrize(
    ("backend", "overlap", "expected"),
    [
        (_Faulty, [], f"rank 1 failed in {PLACE}: ValueError: no more"),
        (_Endless, [], f"rank 1 hangs in {PLACE}: nothing happened for "),
        (_Greedy, [], f"rank 1 failed in {PLACE}: out of memory: "),
        (_Faulty, ["two_batch"], f"rank 1 failed in {OF_TWO}: ValueError: no more"),
    ],
)
def test_one_rank_at_fault_ends_all(
    plan: Path, tmp_path: Path, backend: type[LoopExperts], overlap: list[str], expected: str
) -> None:
    plan = as_plan(tmp_path / "plan", plan, overlap=overlap)
    (tmp_path / "timeline.parquet").write_text("of an earlier run")
    codes = torchrun_ranks(2, main, plan, tmp_path, sabotage=partial(sabotage_rank_1, backend))
    assert 0 not in codes
    assert message(tmp_path).startswith(expected)
    # What only follows from it is no cause.
    assert not (tmp_path / "error-0.json").exists()


def as_plan(folder: Path, plan: Path, **changes: Any) -> Path:
    """A copy of a plan with other fields in its head."""
    shutil.copytree(plan, folder)
    head = json.loads((plan / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps(head | changes))
    return folder


def test_what_cannot_run_is_refused(plan: Path, tmp_path: Path) -> None:
    """One rank each: torchrun starts with the wrong number, a plan of another version, a wrong back end."""
    newer = as_plan(tmp_path / "newer", plan, format="moesim.plan/3")
    for number, (given, arguments, expected) in enumerate(
        [
            (plan, [], "ranks: the plan is for 2 ranks: start as many with torchrun --nproc-per-node 2"),
            (newer, [], f"{newer}/plan.json: format: needs a newer moesim: this one reads moesim.plan/2"),
            (plan, ["--serial", "--backend", "x"], "backend: must be one of: loop, "),
            (tmp_path / "none", [], f"{tmp_path}/none/plan.json: there is no such file"),
        ]
    ):
        out = tmp_path / str(number)
        assert torchrun_ranks(1, main, given, out, *arguments) == (2,)
        assert message(out).startswith(expected)
        assert f"traceback : {expected}" in torchrun_says(out / "error-0.json")


def test_kinds_of_experts_run_in_the_loop_and_are_refused_elsewhere(tmp_path: Path) -> None:
    narrow = {"name": "narrow", "width": 16, "experts": [1, 4, 6]}
    write_plan(deployed(tmp_path, narrow), tmp_path / "plan")
    read = read_plan(tmp_path / "plan")
    widths = np.where(np.isin(read.slot_expert_LS, [1, 4, 6]), 16, 32)
    for rank in range(2):
        inner = widths[:, read.slot_gpu_S == rank].sum() + 2 * 16
        assert weight_bytes(read, rank) == (3 * 64 * inner + 2 * 8 * 64) * 4
    arguments = ("--serial", "--repeats", "1", "--warmup", "0")
    assert torchrun_ranks(1, main, tmp_path / "plan", tmp_path / "run", *arguments) == (0,)
    assert PHASES.index("experts") in read_timeline(tmp_path / "run" / "timeline.parquet").phase_N
    for backend in ("grouped_mm", "triton"):
        out = tmp_path / backend
        assert torchrun_ranks(1, main, tmp_path / "plan", out, *arguments, "--backend", backend) == (2,)
        assert message(out).startswith(
            "backend: multiplies experts of one width; the plan has kinds of several, default (32), "
            f"narrow (16): take loop (got '{backend}')"
        )


def torchrun_says(file: Path) -> str:
    """What torchrun prints of a rank that left this file."""
    return str(ChildFailedError("executor", {0: ProcessFailure(0, 99, 2, str(file))}))


def test_a_wrong_command_line_is_told_to_torchrun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.argv", ["executor", "PLAN"])
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "traceback : the following arguments are required: -o" in torchrun_says(tmp_path / "error.json")
    # Where it cannot be written the user is told all the same.
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "none" / "error.json"))
    with pytest.raises(SystemExit, match="2"):
        main()


def test_weights_that_do_not_fit(plan: Path) -> None:
    """(6 slots · width 32 + shared 16) · 3 matrices · 64 + a gate of 8 · 64, 2 layers, fp32."""
    read = read_plan(plan)
    assert weight_bytes(read, 0) == 2 * (3 * 64 * (6 * 32 + 16) + 8 * 64) * 4
    check_memory(read, 0, torch.device("cpu"), 2)
    huge = replace(read, model=replace(read.model, width=1 << 40))
    with pytest.raises(
        PlanError, match=r"the weights of rank 1 take [\d.]+ GiB, [\d.]+ GiB more than are free"
    ):
        check_memory(huge, 1, torch.device("cpu"), 2)


@pytest.mark.gpu
@pytest.mark.parametrize("arguments", [["--serial"], []])
def test_a_gpu_measures_the_same_spans(
    deployment: Deployment, plan: Path, tmp_path: Path, arguments: list[str]
) -> None:
    """All ranks in turns on one GPU; on as many GPUs as ranks, where there are so many."""
    processes = 1 if arguments else 2
    if torch.cuda.device_count() < processes:
        pytest.skip(f"needs {processes} GPUs")
    given = ["--device", "cuda", "--backend", "loop", *arguments]
    assert torchrun_ranks(processes, main, plan, tmp_path, *given) == (0,) * processes
    measured, simulated = read_timeline(tmp_path / "timeline.parquet"), run(deployment).timeline
    experts = PHASES.index("experts")
    found = measured.select((measured.repeat_N == 0) & (measured.phase_N == experts))
    expected = simulated.select(simulated.phase_N == experts)
    assert found.assignments_N.tolist() == expected.assignments_N.tolist()
    assert (found.end_s_N > found.start_s_N).all()
