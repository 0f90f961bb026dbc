"""``moesim execute`` from end to end: plans, real runs, ranks that die, Ctrl-C."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self
from unittest import mock

import pytest

from executor.plan.errors import PlanError
from executor.plan.plan_file import read_plan
from executor.ranks.progress import Progress, Record
from moesim.deployment.deployment import deploy
from moesim.spec.scenario import load_scenario
from tests.moesim.command import files, moesim, refused
from tests.processes import listeners, tree
from traces.timeline import read_timeline, read_work

FP32 = ("-s", "model.activation_dtype=fp32", "-s", "cluster.gpu.flops.fp32=1 TFLOPS")
LIMIT_S = 180


def test_a_plan_and_the_line_that_runs_it(here: Path) -> None:
    done = moesim("execute", "s.yaml", "--ranks", "4", "--plan-only", "--device", "cuda")
    assert done.code == 0
    assert done.out == (
        "torchrun --nnodes 2 --nproc-per-node 2 --rdzv-backend c10d --rdzv-endpoint HOST:29500 "
        "-m executor plan -o OUT --device cuda --repeats 5 --warmup 2\n"
    )
    assert done.err == (
        "moesim: note: workload.part is moe, not model: only the MoE part of each layer runs, "
        "gate to combine\n"
    )
    plan = read_plan(here / "plan")
    assert (plan.ranks, plan.ranks_per_node) == (4, 2)


def test_a_plan_for_one_process(here: Path) -> None:
    arguments = ("--ranks", "4", "--plan-only", "--serial", "-o", "p", "--json", "--backend", "loop")
    done = moesim("execute", "s.yaml", *arguments)
    said = json.loads(done.out)
    assert said["command"] == (
        "torchrun --standalone --nproc-per-node 1 -m executor p -o OUT --device cpu --repeats 5 --warmup 2 "
        "--backend loop --serial"
    )
    assert (said["plan"], said["nodes"], len(said["notes"])) == ("p", 1, 1)
    # A folder of ours may be written again, with other contents.
    assert moesim("execute", "s.yaml", "--ranks", "2", "--plan-only", "-o", "p").code == 0
    assert read_plan(here / "p").ranks == 2


def test_what_cannot_be_executed_is_refused(here: Path) -> None:
    (here / "mine").mkdir()
    (here / "mine" / "file").touch()
    assert refused("execute", "s.yaml", "--ranks", "2", "-o", "mine").startswith("mine: is not empty")
    huge = "model.experts.width=1000000000"
    assert "more than cpu offers" in refused("execute", "s.yaml", "--ranks", "2", "-s", huge)
    with mock.patch.object(importlib.util, "find_spec", return_value=None):
        said = moesim("execute", "s.yaml", "--ranks", "2", "-o", "out")
    assert said.code == 2
    assert said.err.splitlines()[-1] == "moesim: running for real needs torch: pip install 'moesim[executor]'"
    assert not (here / "out").exists()


@pytest.mark.executor
def test_a_real_run(here: Path) -> None:
    options = ("--ranks", "2", "--repeats", "2", "--count", "-s", "seed=5", *FP32)
    done = moesim("execute", "s.yaml", *options, "-o", "out", "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert json.loads((here / "out" / "execution.json").read_text()) == result
    assert sorted(name for name in files(here / "out") if "/" not in name) == [
        "execution.json",
        "plan",
        "report.html",
        "run.json",
        "scenario.yaml",
        "timeline.json.gz",
        "timeline.parquet",
        "work.parquet",
    ]
    assert (result["format"], result["ranks"]) == ("moesim.execution/1", 2)
    *notes, progress, files_at = done.err.splitlines()
    assert result["notes"] == [line.removeprefix("moesim: note: ") for line in notes]
    assert progress == "moesim: 2 ranks: making weights, then 2 runs to warm up, 2 that are measured"
    assert files_at == "report: out/report.html"
    assert result["provenance"]["command"].startswith("moesim execute s.yaml")
    scenario = load_scenario(str(here / "out" / "scenario.yaml"))
    assert result["scenario"] == scenario.resolved()
    assert read_plan(here / "out" / "plan").seed == 5
    _figures_follow_from_the_timeline(result, here / "out")
    assert len(read_work(here / "out" / "work.parquet"))
    # The scenario that ran can be deployed again, here or elsewhere.
    assert deploy(scenario).placement.gpus == 2


def _figures_follow_from_the_timeline(result: dict[str, Any], out: Path) -> None:
    timeline = read_timeline(out / "timeline.parquet")
    assert timeline.repeat_N.max() == 1
    # Two repeats: the median of each figure is the mean.
    seconds_N = timeline.end_s_N - timeline.start_s_N
    steps = result["scenario"]["workload"]["steps"] * 2
    for rank, row in enumerate(result["per_rank"]):
        busy_s = sum(row["seconds"].values())
        assert busy_s == pytest.approx(seconds_N[timeline.rank_N == rank].sum() / steps)
        # Between one phase and the next a moment passes.
        assert result["metrics"]["step_time_s"]["mean"] >= busy_s
    assert (
        0.5 <= result["metrics"]["balancedness"] <= 1 <= result["metrics"]["straggler_ratio"]["experts_time"]
    )


class _Run:
    """``moesim execute`` in a process of its own, for long enough to interfere; ended with the block."""

    def __init__(self, here: Path, *options: str) -> None:
        self.temporary = here / "tmp"
        self.temporary.mkdir()
        self.processes = 1 if "--serial" in options else 2
        command = ["execute", "s.yaml", "--ranks", "2", "--repeats", "1000000", "-o", "out", *FP32, *options]
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from moesim.commands.cli import main; main()", *command],
            cwd=here,
            env=os.environ | {"TMPDIR": str(self.temporary), "PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        self.process.communicate()

    def records(self) -> list[Record]:
        """The processes that run ranks, as soon as all of them are in their layers."""
        until = time.monotonic() + LIMIT_S
        while True:
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < until
            for file in self.temporary.glob("*/progress"):
                records = Progress(file, 0, self.processes).read()
                if len(records) == self.processes and all(record.layer > 0 for record in records):
                    return records
            time.sleep(0.02)

    def end(self, records: list[Record]) -> str:
        """What is said on stderr when it is over; nothing is left."""
        _, said = self.process.communicate(timeout=20)
        until = time.monotonic() + 5
        # The watcher is the last to go.
        while any(Path(f"/proc/{record.pid}").exists() for record in records) or any(
            self.temporary.iterdir()
        ):
            assert time.monotonic() < until, list(self.temporary.iterdir())
            time.sleep(0.05)
        return said


@pytest.mark.executor
def test_a_rank_that_is_killed(here: Path) -> None:
    with _Run(here) as run:
        records = run.records()
        os.kill(records[1].pid, signal.SIGKILL)
        said = run.end(records).splitlines()
    assert run.process.returncode == 1
    assert [line for line in said[:-1] if "note: " not in line] == [
        "moesim: 2 ranks: making weights, then 2 runs to warm up, 1000000 that are measured"
    ]
    assert said[-1].startswith("moesim: rank 1 died in ")
    assert said[-1].endswith(": ended by SIGKILL, by hand or for want of memory")
    assert not (here / "out").exists()


@pytest.mark.executor
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="/proc is Linux's")
def test_nobody_listens_beyond_this_machine(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As on the machine of a cluster, whose ranks talk over its network.
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")
    with _Run(here, "-s", "dispatch.mode=per_node") as run:
        records = run.records()
        found = listeners(tree(run.process.pid))
        run.process.send_signal(signal.SIGINT)
        run.end(records)
    assert found
    assert all(address.is_loopback for address in found), found
    with socket.create_server(("", 0)):  # which would be seen
        assert not all(address.is_loopback for address in listeners({os.getpid()}))


@pytest.mark.executor
def test_ranks_end_with_a_process_that_is_killed(here: Path) -> None:
    with _Run(here) as run:
        records = run.records()
        run.process.kill()
        run.process.communicate(timeout=20)
        until = time.monotonic() + 10
        while any(Path(f"/proc/{record.pid}").exists() for record in records):
            assert time.monotonic() < until
            time.sleep(0.05)


def test_a_policy_of_the_users_own_is_imported_where_the_plan_runs(here: Path) -> None:
    """Its scenario had it imported here already; a plan from elsewhere does not."""
    own = "routing={policy: 'tests.moesim.own_policy:FirstOnly'}"
    done = moesim("execute", "s.yaml", "--ranks", "2", "--plan-only", "-s", own)
    assert done.out.endswith(" --allow-imports\n")
    refusal = "plan/plan.json: routing.policy: is code to be imported: pass --allow-imports if you trust it"
    with pytest.raises(PlanError, match=f"^{refusal}") as refused_:
        read_plan(Path("plan"))
    assert str(refused_.value).endswith("(got 'tests.moesim.own_policy:FirstOnly')")
    assert read_plan(Path("plan"), imports=True).ranks == 2


@pytest.mark.executor
def test_ctrl_c(here: Path) -> None:
    with _Run(here, "--serial") as run:
        records = run.records()
        run.process.send_signal(signal.SIGINT)
        said = run.end(records)
    assert run.process.returncode == 130
    assert "Traceback" not in said
    assert "moesim: interrupted: all ranks have ended, nothing was written\n" in said
    assert sorted(path.name for path in here.iterdir()) == ["s.yaml", "t.parquet", "tmp"]
