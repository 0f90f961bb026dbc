"""What a reader should mind before trusting a result: what was assumed, extrapolated, or had no effect."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moesim.deployment.deployment import Deployment
from moesim.routing.masks import Listed
from moesim.routing.none import NoPolicy
from moesim.simulation.rebalancing import NEVER
from moesim.simulation.run import Run
from moesim.simulation.tally import Tally
from moesim.units import format_seconds
from placement.solvers.solvers import solve
from traces.base.errors import named


def notes(run: Run, run_s: float) -> list[str]:
    """One sentence for each, in order of weight.

    Args:
        run_s: length of the simulated run.
    """
    deployment = run.deployment
    return [
        *_idle_faults(deployment, run_s),
        *_idle_policies(deployment, run.tallies),
        *_idle_solver(deployment),
        *_rebalances(run),
        *_kept(run),
        *_extrapolated(deployment, run.tokens_per_step / deployment.scenario.parallelism.ep),
        *_host(deployment),
        *_certain(deployment),
        *_moving(deployment),
        *_prompts(deployment),
        *_fitted_requests(deployment),
    ]


def _kept(run: Run) -> list[str]:
    every = run.deployment.scenario.workload.kept_every
    if every == 1:
        return []
    kept = -(-run.steps // every)
    return [
        f"Of {run.steps:,} steps one in {every:,} is kept whole: timeline, stragglers and causes of a "
        f"step's time are of these {kept:,}, metrics of all (workload.timeline_every)."
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


def _idle_policies(deployment: Deployment, tallies: Sequence[Tally]) -> list[str]:
    """Policies that found nothing to act on, in part or at all."""
    found = []
    before: tuple[int, ...] | None = None
    for policy, tally in zip(deployment.policies, tallies, strict=False):
        now = (tally.kept, tally.rerouted, tally.dropped, tally.added)
        idle = now == (before or (tally.wished, 0, 0, 0))
        before = now
        if isinstance(policy, NoPolicy):
            continue
        why = _unknown_categories(policy, deployment) if isinstance(policy, Listed) else ""
        if idle:
            words = f"{why}: it" if why else "it"
            found.append(f"routing: {policy.name} has no effect: {words} left every assignment as it was.")
        elif why:
            found.append(f"routing: {policy.name} acts on a part only: {why}.")
    return found


def _unknown_categories(policy: Listed, deployment: Deployment) -> str:
    """Which replayed tokens are of categories in which nothing was found to be off; empty where none is."""
    replayed = deployment.replayed
    nothing_off = not any(experts for off in policy.off for experts in off)
    if policy.among != "category" or replayed.category_T is None or nothing_off:
        return ""
    kinds = max(len(off) for off in policy.off)
    on_Q = np.ones(max(kinds, len(replayed.categories) + 1), np.bool_)
    for off in policy.off:
        on_Q[: len(off)] &= [not experts for experts in off]
    kind_T = replayed.category_T + 1
    strange_T = on_Q[kind_T]
    if not strange_T.any():
        return ""
    names = ("unknown", *replayed.categories)
    strange = named((names[kind] for kind in np.unique(kind_T[strange_T])), 4)
    return (
        f"{strange_T.mean():.0%} of the replayed tokens are of categories that the requests before them do "
        f"not have ({strange})"
    )


def _idle_solver(deployment: Deployment) -> list[str]:
    """A solver that left the experts where servers start."""
    choice, placement = deployment.scenario.placement, deployment.placement
    if choice.solver in (None, "linear"):
        return []
    linear = solve(
        "linear",
        None,
        experts=placement.experts,
        gpus=placement.gpus,
        layers=placement.layers,
        slots=placement.slots,
    )
    if not np.array_equal(linear.slot_expert_LS, placement.slot_expert_LS):
        return []
    return [f"placement: {choice.solver} has no effect: it left every expert where linear places it."]


def _rebalances(run: Run) -> list[str]:
    rebalance, moves = run.deployment.scenario.rebalance, run.moves
    if rebalance is None or rebalance.every_steps is None:
        return []
    if not moves:
        return [f"rebalance has no effect: its first is before step {rebalance.every_steps} of {run.steps}."]
    idle = "" if any(move.copies for move in moves) else "rebalance has no effect: no expert was moved."
    if idle:
        return [idle]
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
