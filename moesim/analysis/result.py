"""``result.json``: one run in numbers, with where they come from. Format ``moesim.result/1``."""

from __future__ import annotations

import time
from collections.abc import Callable

import numba
import numpy as np

from moesim import __version__
from moesim.analysis.attribution import Counterfactuals
from moesim.analysis.bounds import Bounds
from moesim.analysis.intervals import drawn_profiles, intervals
from moesim.analysis.metrics import Columns, Explained, run_metrics
from moesim.analysis.notes import notes, unseen
from moesim.analysis.rebalancing import rebalance_rows
from moesim.analysis.result_file import Result
from moesim.analysis.scenario_facts import TraceFacts
from moesim.analysis.stragglers import stragglers
from moesim.deployment.deployment import Deployment, deploy
from moesim.deployment.reading import replays_sample
from moesim.simulation.run import Run, resolution_of, run
from moesim.spec.scenario import Scenario
from traces.statistics import expert_loads

_WHY = {
    "auto": "nothing but one loop's collectives uses the links",
    "event": "asked for",
    "step": "asked for",
}


def simulate_scenario(
    scenario: Scenario, samples: int = 0, progress: Callable[[float], None] = lambda _: None
) -> tuple[Run, Result]:
    """Run a scenario and say what it showed.

    Args:
        samples: profiles to draw for intervals; 0 asks for none.
        progress: told of each step which part of the run it is.
    """
    began = time.perf_counter()
    done, found = simulate_deployment(deploy(scenario), samples, progress)
    return done, found.made(wall_s=time.perf_counter() - began)


def simulate_deployment(
    deployment: Deployment, samples: int = 0, progress: Callable[[float], None] = lambda _: None
) -> tuple[Run, Result]:
    """The same of what is deployed already; ``provenance.wall_s`` is left at 0."""
    draws = drawn_profiles(deployment.scenario.profile, samples)
    without, bounds = Counterfactuals(deployment, draws), Bounds(deployment)
    columns, part = Columns(), 1 / deployment.scenario.workload.steps
    told = (without.observe, bounds.observe, lambda *_: progress(part))
    done = run(deployment, *told, read=columns.add)
    return done, result(Explained(done, columns, without), bounds)


def result(explained: Explained, bounds: Bounds) -> Result:
    """The content of ``result.json``; ``provenance.wall_s`` is left at 0."""
    done, without = explained.run, explained.without
    deployment = done.deployment
    scenario = deployment.scenario
    metrics = run_metrics(explained)
    step_s = metrics.step_time_s.mean
    drawn = without.drawn_terms(step_s)
    asked = {"intervals": intervals(drawn, done.tokens_per_step)} if drawn else {}
    return Result(
        format="moesim.result/1",
        scenario=scenario.resolved(),
        metrics=metrics,
        attribution=without.terms(step_s),
        ceilings=without.ceilings(step_s),
        **asked,
        rebalances=rebalance_rows(done.moves, deployment.placement),
        notes=notes(done, step_s * done.steps),
        unseen=unseen(deployment, done.tokens_per_step / scenario.parallelism.ep),
        bounds=bounds.per_step(),
        stragglers=stragglers(
            done.timeline,
            done.slots,
            deployment.placement,
            {fault.device for fault in scenario.faults if fault.device is not None},
            done.moves,
        ),
        trace=trace_facts(deployment),
        provenance={
            "moesim": __version__,
            "numpy": np.__version__,
            "numba": numba.__version__,
            "seed": scenario.seed,
            "trace_sha256": deployment.trace.digest(),
            "profile": f"{scenario.profile.name}: {scenario.profile.origin}",
            "resolution": resolution_of(scenario),
            "resolution_why": _WHY[scenario.resolution],
            "network": deployment.pricing.network_name,
            "placement": deployment.placement.origin,
            "wall_s": 0.0,
        },
    )


def trace_facts(deployment: Deployment) -> TraceFacts:
    """What the reader should know of the routing that was replayed."""
    replayed, meta = deployment.replayed, deployment.trace.meta
    load_LE = expert_loads(replayed)
    source, model = deployment.scenario.trace, deployment.scenario.model
    generated = source.synth is not None or (source.sample and not replays_sample(model))
    name = (meta.model or "of an unnamed model") if source.file is None else source.file.rsplit("/", 1)[-1]
    if source.sample:
        name = (
            f"like the built-in sample, in the shape of {model.name or 'an unnamed model'}"
            if generated
            else "the built-in sample"
        )
    return TraceFacts(
        name=name,
        origin=meta.origin,
        tokens=replayed.tokens,
        requests=len(replayed.request_offsets) - 1,
        skew=float((load_LE.max(axis=1) / load_LE.mean(axis=1)).mean()),
        generated=generated,
    )
