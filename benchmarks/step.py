"""One decode step of DeepSeek-V3, counting included, against bare SimPy time-outs of such a step."""

from __future__ import annotations

import resource
import time
from collections.abc import Generator

import simpy

from moesim.analysis.attribution import Counterfactuals
from moesim.analysis.bounds import Bounds
from moesim.deployment.deployment import Deployment, deploy
from moesim.simulation.run import Run
from moesim.simulation.run import run as simulate
from moesim.spec.override import Override
from moesim.spec.scenario import load_scenario

STEPS = 5


def run(deployment: Deployment) -> Run:
    """A run with the sums of its attribution and its bounds."""
    return simulate(deployment, Counterfactuals(deployment).observe, Bounds(deployment).observe)


def bare_timeouts(ranks: int, layers: int) -> float:
    """Seconds SimPy takes when each rank only sleeps four times a layer: the least that a layer is."""
    env = simpy.Environment()

    def sleep() -> Generator[simpy.Event, None, None]:
        for _ in range(4 * layers):
            yield env.timeout(1.0)

    for _ in range(ranks):
        env.process(sleep())
    began = time.perf_counter()
    env.run()
    return time.perf_counter() - began


def step() -> list[tuple[str, str]]:
    """Rows of the table: what, and how fast."""
    rows = []
    for nodes in (4, 16):
        ranks = nodes * 8
        overrides = [
            Override(("cluster",), f"h800-{nodes}x8"),
            Override(("parallelism", "ep"), ranks),
            Override(("workload", "tokens_per_gpu"), 128),
            Override(("workload", "steps"), STEPS),
        ]
        deployment = deploy(load_scenario("demo", overrides))
        run(deployment)
        seconds, bare = [], []
        for _ in range(3):
            began = time.perf_counter()
            run(deployment)
            seconds.append((time.perf_counter() - began) / STEPS)
            bare.append(bare_timeouts(ranks, 58))
        rows += [
            (f"one step of DeepSeek-V3, EP{ranks}, 128 tokens a GPU", f"{min(seconds):.3f} s"),
            ("  bare SimPy time-outs of such a step", f"{min(bare):.3f} s"),
            ("  ratio", f"{min(seconds) / min(bare):.1f}"),
        ]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rows.append(("peak memory of all of the above", f"{peak:.0f} MiB"))
    return rows
