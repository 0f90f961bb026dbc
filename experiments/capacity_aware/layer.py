"""Seconds of a layer of the published setting, under a policy and what is assumed beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from experiments.capacity_aware.routing import routing
from moesim.analysis.metrics import timeline_metrics
from moesim.deployment.deployment import assemble
from moesim.simulation.run import run
from moesim.spec.model import Model
from moesim.spec.override import Override
from moesim.spec.scenario import Scenario, load_scenario
from placement.problem.problem import Problem
from placement.solvers.one_pass import linear
from traces.routing import RoutingTrace
from traces.statistics import expert_loads

# NCCL's all-to-all, at what the profile has for transfer kernels in general, and rows that are put in order
# by kernels of their own on both sides of it; those of the profile are DeepEP's for 128 tokens.
_TRANSFERS = {"nvlink": 0.78, "nic": 0.9, "arrange": 0.8}


@dataclass(frozen=True)
class Assumed:
    """What was not published.

    Attributes:
        tokens_per_gpu: 8K tokens over 8 GPUs, or as many as stand for 8K sequences.
        part: what counts as a layer: all of it (``model``), or from gate to combine (``moe``).
        kept: as in ``routing``.
        launch_us: microseconds for each kernel; None for what the profile has.
        seed: of the routing.
    """

    tokens_per_gpu: int = 1024
    part: Literal["model", "moe"] = "model"
    kept: float = 0.0
    launch_us: float | None = None
    seed: int = 0


def speedup(name: str, skew: float, policy: Mapping[str, Any], assumed: Assumed) -> float:
    """How many times as fast a MoE layer of model ``name`` is with the policy as without any.

    Layers of the model are averaged before they are compared.
    """
    return layer_s(name, skew, None, assumed) / layer_s(name, skew, tuple(policy.items()), assumed)


@lru_cache(maxsize=256)
def layer_s(name: str, skew: float, policy: tuple[tuple[str, Any], ...] | None, assumed: Assumed) -> float:
    """Mean seconds of a MoE layer; ``policy`` are the items of a scenario's ``routing``."""
    scenario = scenario_of(name, policy, assumed)
    scores = policy is not None and ("policy", "drop") not in policy
    trace = _trace(scenario.model, skew, assumed, scores)
    placement = linear(
        Problem.of(
            expert_loads(trace),
            scenario.parallelism.ep,
            gpus_per_node=scenario.cluster.gpus_per_node,
            layers=scenario.model.moe_layers,
        )
    ).placement
    done = run(assemble(scenario, trace, placement, trace))
    mean_s: float = timeline_metrics(done.timeline, done.tokens)["layer_time_s"]["mean"]
    return mean_s


def scenario_of(name: str, policy: tuple[tuple[str, Any], ...] | None, assumed: Assumed) -> Scenario:
    """The scenario beside this file, of model ``name``."""
    overrides = [
        Override(("model",), name),
        Override(("profile", "dispatch", "per_expert"), _TRANSFERS),
        Override(("workload", "tokens_per_gpu"), assumed.tokens_per_gpu),
        Override(("workload", "part"), assumed.part),
    ]
    if assumed.launch_us is not None:
        overrides.append(Override(("profile", "launch"), f"{assumed.launch_us} us"))
    if policy is not None:
        overrides.append(Override(("routing",), dict(policy)))
    return load_scenario(str(Path(__file__).with_name("scenario.yaml")), overrides)


@lru_cache(maxsize=2)
def _trace(model: Model, skew: float, assumed: Assumed, scores: bool) -> RoutingTrace:
    return routing(model, skew, kept=assumed.kept, scores=scores, seed=assumed.seed)


def expert_peak(name: str, skew: float, assumed: Assumed) -> float:
    """Load of the most loaded expert of any layer, over the mean."""
    load_LE = expert_loads(_trace(scenario_of(name, None, assumed).model, skew, assumed, False))
    return float((load_LE.max(axis=1) / load_LE.mean(axis=1)).max())
