"""How much faster Mixtral-8x7B is with MoETuner's placement: as published, and without its assumption."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from experiments.comparison import Comparison, Row
from experiments.moetuner.routing import REQUESTS, Dependence, routing
from moesim.analysis.result import simulate_deployment
from moesim.deployment.deployment import assemble
from moesim.spec.dtypes import DTYPE_BYTES
from moesim.spec.override import Override
from moesim.spec.scenario import Scenario, load_scenario
from placement.problem.placement import Placement
from placement.problem.problem import Problem
from placement.solvers import moetuner as published
from placement.solvers.locality import locality
from placement.solvers.one_pass import linear
from placement.solvers.solution import Solve
from placement.solvers.swap import swap
from traces.statistics import expert_loads

SOURCE = "arXiv 2502.06643: Mixtral-8x7B, 4 expert-parallel ranks on 8 H100 and on 2 × 8 H200"


class Setting(NamedTuple):
    """A published setting.

    Attributes:
        name: of it, and of its scenario beside this file.
        tp: tensor-parallel GPUs of each rank; the scenario has one of them.
        faster, experts, links: per cent by which it got faster in all, and by which the longest times of
            expert computation and of all-to-alls fell.
    """

    name: str
    tp: int
    faster: float
    experts: float
    links: float


SETTINGS = (Setting("one node", 2, 9.3, 36.0, 36.3), Setting("two nodes", 4, 17.5, 27.0, 30.5))

SOLVERS: Mapping[str, Solve] = MappingProxyType(
    {
        "linear": linear,
        "swap": swap,
        "moetuner": published.moetuner,
        "locality": locality,
        "locality at 20 %": partial(locality, balance_lost=0.2),
    }
)

_OTHERWISE: Mapping[str, Dependence] = MappingProxyType(
    {
        "skew 0.4": Dependence(skew=0.4),
        "skew 1.2": Dependence(skew=1.2),
        "follow 0": Dependence(follow=0.0),
        "follow 0.9": Dependence(follow=0.9),
        "together 0.5": Dependence(together=0.5),
    }
)
"""What was not published, assumed otherwise."""


class Times(NamedTuple):
    """Seconds of a step, and of what is on its critical path."""

    step: float
    experts: float
    links: float


def moetuner() -> Comparison:
    """Nothing is fitted: rows under the paper's dispatch, checks under others and other routing."""
    assumed = Dependence()
    rows, checks = [], []
    for setting in SETTINGS:
        before, after = times(setting, assumed, "linear"), times(setting, assumed, "moetuner")
        rows += [
            Row(f"{setting.name}, faster", "%", setting.faster, faster(before, after)),
            Row(f"{setting.name}, experts", "% less", setting.experts, less(before.experts, after.experts)),
            Row(f"{setting.name}, all-to-all", "% less", setting.links, less(before.links, after.links)),
        ]
        for mode in ("expert_to_expert", "per_gpu"):
            checks += [_check(setting, assumed, solver, mode) for solver in ("swap", "moetuner")]
        for name, dependence in _OTHERWISE.items():
            checks += [_check(setting, dependence, "moetuner", "expert_to_expert", name)]
        for solver in ("swap", "moetuner", "locality", "locality at 20 %"):
            checks += [_check(setting, _OTHERWISE["together 0.5"], solver, "per_gpu", "together 0.5")]
    return Comparison("moetuner", SOURCE, rows=tuple(rows), checks=tuple(checks), parameters=())


def faster(before: Times, after: Times) -> float:
    """Per cent by which more steps are done in a second."""
    return 100.0 * (before.step / after.step - 1.0)


def less(before: float, after: float) -> float:
    """Per cent by which something fell."""
    return 100.0 * (1.0 - after / before)


@cache
def times(setting: Setting, assumed: Dependence, solver: str, mode: str = "expert_to_expert") -> Times:
    """A step of the requests that the placement was not made for."""
    scenario = scenario_of(setting, mode)
    trace = routing(scenario.model, assumed)
    unseen = trace.select_requests(REQUESTS // 2, REQUESTS)
    deployment = assemble(scenario, trace, _placement(setting, assumed, solver), unseen)
    done = simulate_deployment(deployment)[1].metrics
    phases = done.phase_time_s
    step = done.step_time_s.mean + tensor_parallel_s(scenario, setting.tp)
    return Times(step, phases["experts"], phases["dispatch"] + phases["combine"])


@cache
def _placement(setting: Setting, assumed: Dependence, solver: str) -> Placement:
    """Made for the first half of the requests; the dispatch makes no difference to it."""
    scenario = scenario_of(setting, "expert_to_expert")
    seen = routing(scenario.model, assumed).select_requests(0, REQUESTS // 2)
    problem = Problem.of(
        expert_loads(seen),
        scenario.parallelism.ep,
        gpus_per_node=scenario.cluster.gpus_per_node,
        layers=scenario.model.moe_layers,
        sample_TLK=seen.ids_TLK,
    )
    return SOLVERS[solver](problem).placement


def scenario_of(setting: Setting, mode: str) -> Scenario:
    path = Path(__file__).with_name(setting.name.replace(" ", "_") + ".yaml")
    return load_scenario(str(path), [Override(("dispatch", "mode"), mode)])


def tensor_parallel_s(scenario: Scenario, tp: int) -> float:
    """Seconds of the all-reduces after attention and experts of each layer, over NVLink.

    Each of ``tp`` GPUs sends 2 (tp − 1) / tp of the data in two passes (Patarasuk and Yuan 2009).
    """
    model, link, tokens = scenario.model, scenario.cluster.gpu.nvlink, scenario.workload.tokens_per_gpu.each
    assert tokens is not None  # both scenarios give one number
    data = tokens * model.hidden * DTYPE_BYTES[model.activation_dtype]
    once_s = 2 * (tp - 1) / tp * data / (link.bandwidth * scenario.profile.nvlink) + 2 * link.latency
    return 2 * model.layers * (once_s + scenario.profile.launch)


def _check(setting: Setting, assumed: Dependence, solver: str, mode: str, how: str = "") -> Row:
    case = f"{setting.name}, {solver}, {mode}" + (f", {how}" if how else "")
    gain = faster(times(setting, assumed, "linear", mode), times(setting, assumed, solver, mode))
    return Row(case, "%", setting.faster, gain)
