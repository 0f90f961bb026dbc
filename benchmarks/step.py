"""Steps on the compiled clock against the same steps on the event clock; what their attribution adds."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from moesim.analysis.attribution import Counterfactuals
from moesim.analysis.bounds import Bounds
from moesim.deployment.deployment import Deployment, deploy
from moesim.simulation.run import Run
from moesim.simulation.run import run as simulate
from moesim.spec.override import Override
from moesim.spec.scenario import load_scenario


class Case(NamedTuple):
    """A decode step that is measured."""

    model: str
    cluster: str
    ep: int
    tokens: int
    mode: str
    steps: int


CASES = (
    Case("deepseek-v3", "h800-4x8", 32, 128, "per_expert", 10),
    Case("deepseek-v3", "h800-32x8", 256, 128, "per_expert", 2),
    Case("gpt-oss-20b", "h100-1x8", 8, 64, "per_gpu", 50),
    Case("gpt-oss-20b", "h100-1x8", 8, 4, "per_gpu", 50),
)


def run(deployment: Deployment) -> Run:
    """A run with the sums of its attribution and its bounds."""
    return simulate(deployment, Counterfactuals(deployment).observe, Bounds(deployment).observe)


def deployed(case: Case, **changes: Any) -> Deployment:
    """A case, ready to run."""
    values = {
        "model": case.model,
        "cluster": case.cluster,
        "parallelism.ep": case.ep,
        "workload.tokens_per_gpu": case.tokens,
        "workload.steps": case.steps,
        "dispatch.mode": case.mode,
        "dispatch.dtype": "bf16",
        "dispatch.combine_dtype": "bf16",
        **changes,
    }
    overrides = [Override(tuple(key.split(".")), value) for key, value in values.items()]
    return deploy(load_scenario("demo", overrides))


def step() -> list[tuple[str, str]]:
    """Rows of the table: what, and how fast; processor time, the best of three."""
    rows = []
    for case in CASES:
        clocks = {which: deployed(case, resolution=which) for which in ("step", "event")}
        layers = len(clocks["step"].trace.meta.layers)
        each_s = {which: _least_s(partial(simulate, at)) for which, at in clocks.items()}
        whole_s = _least_s(partial(run, clocks["step"]))
        step_s, event_s, with_s = (
            seconds / case.steps for seconds in (each_s["step"], each_s["event"], whole_s)
        )
        assignments = layers * case.ep * case.tokens * clocks["step"].scenario.model.experts.top_k
        rows += [
            (
                f"{case.model}, EP{case.ep}, {case.tokens} tokens a GPU",
                f"{1e3 * step_s:.2f} ms a step",
            ),
            ("  layer-steps a second", f"{layers / step_s:,.0f}"),
            ("  assignments a second", f"{assignments / step_s / 1e6:,.0f} M"),
            ("  times as fast as the event clock", f"{event_s / step_s:.1f}"),
            ("  times as long with attribution", f"{with_s / step_s:.1f}"),
        ]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rows.append(("peak memory of all of the above", f"{peak:.0f} MiB"))
    return rows


def _least_s(call: Callable[[], object]) -> float:
    call()
    found = []
    for _ in range(3):
        began = time.process_time()
        call()
        found.append(time.process_time() - began)
    return min(found)
