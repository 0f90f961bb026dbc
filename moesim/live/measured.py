"""What a measured timeline says: the metrics of a result, and each rank's own seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim import __version__
from moesim.analysis.cube import Cube, max_over_mean
from moesim.analysis.execution_file import ExecutionMetrics, ExecutionResult, RankSeconds
from moesim.analysis.metrics import timeline_metrics
from moesim.analysis.result import trace_facts
from moesim.deployment.deployment import Deployment
from moesim.live.execute import Execution
from placement.judging.balancedness import sglang
from traces.timeline import PHASES, Timeline


def execution_result(
    deployment: Deployment, execution: Execution, notes: Sequence[str], command: str
) -> ExecutionResult:
    """The content of ``execution.json``: every figure is the median over the repeats.

    Where ranks ran in turns, only what each does alone was measured: no times of layers and steps.
    """
    timeline, run = execution.timeline, execution.run
    repeats = [timeline.select(timeline.repeat_N == repeat) for repeat in range(run["repeats"])]
    measure = _alone if run["serial"] else _together
    seconds_PG = np.median([_rank_seconds(repeat) for repeat in repeats], axis=0)
    measured = [place for place, seconds_G in enumerate(seconds_PG) if seconds_G.any()]
    return ExecutionResult(
        format="moesim.execution/1",
        ranks=seconds_PG.shape[1],
        run=run,
        metrics=ExecutionMetrics.model_validate(over_repeats([measure(repeat) for repeat in repeats])),
        per_rank=[
            RankSeconds(rank=rank, seconds={PHASES[place]: float(seconds_G[place]) for place in measured})
            for rank, seconds_G in enumerate(seconds_PG.T)
        ],
        notes=list(notes),
        scenario=deployment.scenario.resolved(),
        trace=trace_facts(deployment),
        provenance={
            "moesim": __version__,
            "trace_sha256": deployment.trace.digest(),
            "placement": deployment.placement.origin,
            "command": command,
        },
    )


def _together(repeat: Timeline) -> dict[str, Any]:
    """As a simulation's."""
    cube = Cube.of(repeat)
    home_WLG = cube.values("router", repeat.unique_tokens_N)
    return timeline_metrics(repeat, float(home_WLG[:, 0].sum()) / cube.steps)


def _alone(repeat: Timeline) -> dict[str, Any]:
    """Those of a simulation's that need no network."""
    cube = Cube.of(repeat)
    assignments_WLG = cube.values("experts", repeat.assignments_N)
    return {
        "straggler_ratio": {
            "assignments": max_over_mean(assignments_WLG),
            "experts_time": max_over_mean(cube.seconds("experts")),
        },
        "balancedness": sglang(assignments_WLG),
    }


def _rank_seconds(repeat: Timeline) -> NDArray[np.float64]:
    """[P, G]: seconds of a step that each rank spends in each of ``PHASES``."""
    G, steps = int(repeat.rank_N.max()) + 1, int(repeat.step_N.max()) + 1
    cell_N = repeat.phase_N.astype(np.int64) * G + repeat.rank_N
    total = np.bincount(cell_N, repeat.end_s_N - repeat.start_s_N, minlength=len(PHASES) * G)
    seconds_PG: NDArray[np.float64] = total.reshape(len(PHASES), G) / steps
    return seconds_PG


def over_repeats(metrics: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Number by number; None where one of them is."""
    found: dict[str, Any] = {}
    for key, value in metrics[0].items():
        values = [each[key] for each in metrics]
        if isinstance(value, dict):
            found[key] = over_repeats(values)
        else:
            found[key] = None if None in values else np.median(values, axis=0).tolist()
    return found
