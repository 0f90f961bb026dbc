"""What a reader should mind before trusting a result: what was assumed, extrapolated, or had no effect."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moesim.deployment.deployment import Deployment
from moesim.simulation.rebalancing import NEVER, Move
from moesim.units import format_seconds


def notes(
    deployment: Deployment, run_s: float, tokens_per_step: float, moves: Sequence[Move] = ()
) -> list[str]:
    """One sentence for each, in order of weight.

    Args:
        run_s: length of the simulated run.
        tokens_per_step: of all ranks together.
        moves: the rebalances of the run.
    """
    scenario = deployment.scenario
    return [
        *_idle_faults(deployment, run_s),
        *_rebalances(deployment, moves),
        *_extrapolated(deployment, tokens_per_step / scenario.parallelism.ep),
        *_host(deployment),
        *_certain(deployment),
        *_moving(deployment),
        *_prompts(deployment),
        *_fitted_requests(deployment),
    ]


def _idle_faults(deployment: Deployment, run_s: float) -> list[str]:
    scenario = deployment.scenario
    one_node = scenario.parallelism.ep <= scenario.cluster.gpus_per_node
    found = []
    for i, fault in enumerate(scenario.faults):
        if fault.from_s >= run_s:
            found.append(
                f"faults[{i}] has no effect: it begins at {format_seconds(fault.from_s)}, after the "
                f"end of the run at {format_seconds(run_s)}."
            )
        elif fault.nic is not None and one_node:
            found.append(f"faults[{i}] has no effect: inside one node no traffic uses a NIC.")
    return found


def _rebalances(deployment: Deployment, moves: Sequence[Move]) -> list[str]:
    rebalance, steps = deployment.scenario.rebalance, deployment.scenario.workload.steps
    if rebalance is None or rebalance.every_steps is None:
        return []
    if not moves:
        return [f"rebalance has no effect: its first is before step {rebalance.every_steps} of {steps}."]
    late = int((moves[-1].from_L == NEVER).sum())
    if not late:
        return []
    return [
        f"The run ends while the rebalance before step {moves[-1].step} is under way: the copies of {late} "
        f"of {len(moves[-1].from_L)} layers have cost time and not been of use."
    ]


def _extrapolated(deployment: Deployment, tokens_per_gpu: float) -> list[str]:
    """Where the profile was not fitted."""
    scenario, profile = deployment.scenario, deployment.scenario.profile
    found = []
    gpu = scenario.cluster.gpu.name
    if profile.fitted_gpus and not any(gpu.startswith(name) for name in profile.fitted_gpus):
        found.append(
            f"The profile {profile.name} was fitted on {' and '.join(profile.fitted_gpus)}; for {gpu} its "
            "efficiencies are extrapolated."
        )
    if where := unseen(deployment, tokens_per_gpu):
        halved = ", half of them in each micro-batch" if "two_batch" in scenario.overlap else ""
        found.append(
            f"{where}; this run has {tokens_per_gpu:.0f} tokens{halved} on {scenario.parallelism.ep} GPUs. "
            "Compare dispatch modes with that in mind."
        )
    return found


def unseen(deployment: Deployment, tokens_per_gpu: float) -> str:
    """What the transfers were fitted on, where a run is outside of that; else empty."""
    scenario = deployment.scenario
    sent = tokens_per_gpu / 2 if "two_batch" in scenario.overlap else tokens_per_gpu
    fitted = deployment.pricing.links(scenario.profile).beyond(sent, scenario.parallelism.ep)
    return f"Transfers in mode {scenario.dispatch.mode} were fitted on {fitted}" if fitted else ""


def _host(deployment: Deployment) -> list[str]:
    """What a step waits for the host, which the phase ``other`` holds."""
    scenario = deployment.scenario
    each_s = deployment.pricing.links(scenario.profile).host
    batches = 2 if "two_batch" in scenario.overlap else 1
    dispatches = batches * len(scenario.model.moe_layers)
    if not each_s:
        return []
    return [
        f"Of each step, {format_seconds(dispatches * each_s)} pass while the host waits for the counts of "
        f"{dispatches} dispatches, {format_seconds(each_s)} each: no CUDA graph holds these kernels (phase "
        f"other; host of {scenario.dispatch.mode} in the profile)."
    ]


def _certain(deployment: Deployment) -> list[str]:
    profile = deployment.scenario.profile
    if profile.uncertainty:
        return []
    return [
        f"The profile {profile.name} does not say how far its figures may be off, so nothing here has an "
        "interval, and --samples is refused."
    ]


def _moving(deployment: Deployment) -> list[str]:
    if deployment.scenario.dispatch.record.returns != "anchor":
        return []
    return [
        "Tokens stay where their experts were, but attention is costed at home and nothing carries tokens to "
        "it and back: a bound for systems that work so, which also have to say where the KV cache is."
    ]


def _prompts(deployment: Deployment) -> list[str]:
    if deployment.scenario.workload.phase == "decode":
        return []
    length = float(np.diff(deployment.replayed.request_offsets).mean())
    return [
        f"Prefill follows the requests of the trace, {length:.0f} tokens each on average; workload.context "
        "is what was cached before the first of them."
    ]


def _fitted_requests(deployment: Deployment) -> list[str]:
    choice = deployment.scenario.placement
    if choice.solver is None:
        return []
    return [
        f"The run replays the requests after the first {choice.fit_fraction:.0%} of the trace, which are "
        "kept for fitting placements, so that all solvers are judged on the same unseen requests."
    ]
