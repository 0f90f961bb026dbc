"""Real runs read back, and their page made anew: whatever passes the check can be shown."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.analysis.execution_file import ExecutionResult
from moesim.deployment.deployment import Deployment, deploy
from moesim.errors import MoesimError
from moesim.live.execute import Execution
from moesim.live.measured import execution_result
from moesim.live.repeats import join_repeats
from moesim.report.execution_page import execution_page
from moesim.report.execution_table import execution_tables
from moesim.report.folder import rebuild_report
from moesim.report.real_folder import write_execution
from moesim.simulation.run import run
from moesim.spec.scenario import load_scenario
from tests.moesim.command import moesim
from tests.moesim.test_report_result_file import mutants
from tests.moesim.validation_scenario import write_small
from traces.timeline import PHASES, Timeline, write_timeline

RUN = {
    "device": "cpu",
    "backend": "loop",
    "threads": 1,
    "repeats": 2,
    "warmup": 0,
    "serial": False,
    "torch": "2",
}


def executed(folder: Path, **changes: Any) -> tuple[Deployment, Execution, ExecutionResult]:
    """A run that took what is simulated, twice; ``changes`` of what the executor tells of it."""
    workload = {"phase": "decode", "tokens_per_gpu": 4, "context": 16, "steps": 2, "part": "moe"}
    deployment = deploy(load_scenario(str(write_small(folder, workload=workload))))
    timeline: Timeline = run(deployment).timeline
    told = RUN | changes
    if told["serial"]:
        timeline = timeline.select(timeline.phase_N != PHASES.index("wait"))
    execution = Execution(join_repeats([timeline, timeline]), None, told)
    return (
        deployment,
        execution,
        execution_result(deployment, execution, ["2 ranks share 1 core"], "moesim execute"),
    )


def test_a_page_says_what_the_table_says_and_is_made_anew(tmp_path: Path) -> None:
    deployment, execution, result = executed(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    write_timeline(execution.timeline, out / "timeline.parquet")
    write_execution(out, deployment, execution, result)
    page = (out / "report.html").read_text("utf-8")
    for part in (
        "Where each rank's time goes",
        "One step as it ran",
        "2 ranks share 1 core",
        "A layer takes",
    ):
        assert part.replace("'", "&#x27;") in page or part in page
    (out / "report.html").unlink()
    assert [path.name for path in rebuild_report(out)] == ["report.html"]
    assert (out / "report.html").read_text("utf-8") == page
    # Of the rank with the longest experts the name is bold.
    assert "small end strong" in page


def test_ranks_that_ran_in_turns_have_no_layers(tmp_path: Path) -> None:
    _, execution, result = executed(tmp_path, serial=True)
    page = execution_page(result, execution.timeline)
    assert "One step as it ran" not in page
    assert "A layer takes" not in page


def test_the_timeline_of_another_run_is_refused(tmp_path: Path) -> None:
    _, execution, result = executed(tmp_path)
    alone = execution.timeline.select(execution.timeline.rank_N == 0)
    for timeline, got in ((alone, 1), (alone.select(np.zeros(len(alone), bool)), 0)):
        with pytest.raises(MoesimError, match=rf"must be of 2 ranks .*got {got}"):
            execution_page(result, timeline)


def test_whatever_is_read_can_be_shown(tmp_path: Path) -> None:
    _, execution, result = executed(tmp_path)
    path = tmp_path / "execution.json"
    shown = refused = 0
    for mutant in itertools.islice(mutants(result.plain()), 0, None, 9):
        path.write_text(json.dumps(mutant), encoding="utf-8")
        try:
            read = ExecutionResult.read(path)
            execution_page(read, execution.timeline)
        except MoesimError:
            refused += 1
            continue
        execution_tables(read)
        shown += 1
    assert refused > 20
    assert shown > 5


def test_a_run_and_a_whatif_of_something_else_have_a_page_each(here: Path) -> None:
    assert moesim("run", "s.yaml", "-o", "out").code == 0
    assert (
        moesim("whatif", "s.yaml", "-s", "seed=3", "--vary", "workload.tokens_per_gpu=[2]", "-o", "out").code
        == 0
    )
    done = moesim("report", "out")
    assert done.out.split() == ["out/whatif.html", "out/report.html"]
    pages = [(here / path).read_text("utf-8") for path in done.out.split()]
    assert "tokens_per_gpu" in pages[0]
    assert "One step as it runs" in pages[1]
