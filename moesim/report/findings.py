"""What was found, in sentences: the answer, who the stragglers are, what would help.

Every sentence is made from ``result.json`` alone, so that the terminal and the page say the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from moesim.analysis.culprit import Straggler, culprit, lost_by_cause
from moesim.analysis.result_file import Compared, Result
from moesim.spec.question import plural
from moesim.units import format_seconds, format_share

# Below this share of a step a cost is not worth acting on.
SMALL: Final = 0.02
# From this share on a cost is worth a line of advice.
LARGE: Final = 0.15

TERMS: Final = {
    "imbalance": "slower than if every GPU had the same work",
    "network": "what remains of transfers between GPUs once they are balanced",
    "overhead": "kernel launches and other fixed costs",
    "hardware": "GPUs or links that are slower than they should be",
    "migration": "experts that move, and the solver that says where to",
    "ideal": "the work itself: balanced, on a free network, without fixed costs",
}
# What imbalance consists of.
PARTS: Final = {
    "homes": "unequal tokens and contexts of the ranks, with the copies that leave them",
    "experts": "unequal assignments, and experts with tokens, of the GPUs",
    "traffic": "bytes that are unequal between pairs of GPUs",
}
CAUSES: Final = {
    "tokens": "gets more tokens than the others",
    "weights": "has more experts with tokens, so it streams more weights from memory",
    "attention": "takes longer in attention",
    "network": "takes longer in its transfers",
    "hardware": "is on hardware that is slower than it should be",
    "none": "no more than chance: the last GPU changes from step to step",
}

_ONE_EACH: Final = (
    "Each GPU holds one expert, so no rearrangement spreads the hot ones: give them replicas (more slots "
    "than experts) or cap them (`routing.policy=drop`)."
)
_BALANCE_ADVICE: Final = {
    "tokens": "The time follows the tokens, so a placement that spreads the hot experts helps: "
    "`--vary 'placement=[linear, greedy]'`.",
    "weights": "The time follows the number of experts that get tokens, since their weights come from "
    "memory: moving tokens helps little, fewer experts on each GPU (a larger EP) helps.",
    "attention": "The experts differ less between GPUs than what comes before them.",
    "network": "The transfers differ between GPUs, since a GPU with more tokens receives more bytes: compare "
    "placements, and dispatch modes: `--vary 'placement=[linear, greedy]'`.",
    "hardware": "A slow GPU or link sets the pace: repair or replace it before anything else.",
    "none": "It changes from step to step, so a fixed placement cannot remove it; a cap on each step can.",
}


def shares(result: Compared) -> dict[str, float]:
    """Each attribution term as a fraction of the mean step time, in the order of ``TERMS``."""
    step_s = result.metrics.step_time_s.mean
    return {term: result.attribution.seconds(term) / step_s for term in TERMS}


def answer(result: Result) -> str:
    """What slow hardware or imbalance costs, who causes it and why; or that neither does and what does."""
    step = format_seconds(result.metrics.step_time_s.mean)
    share = shares(result)
    culprit = straggler_summary(result.stragglers)
    if share["hardware"] >= SMALL and share["hardware"] > share["imbalance"]:
        sentence = f"Slow hardware costs {format_share(share['hardware'])} of a {step} step"
        return f"{sentence}; {culprit}." if culprit else f"{sentence}."
    if share["imbalance"] < SMALL:
        costs = {term: share[term] for term in ("network", "overhead", "hardware")}
        largest = max(costs, key=lambda term: costs[term])
        return (
            f"Imbalance costs {format_share(share['imbalance'])} of a {step} step, so balancing "
            f"experts wins next to nothing here; {largest} costs {format_share(costs[largest])}."
        )
    sentence = f"Imbalance costs {format_share(share['imbalance'])} of a {step} step"
    return f"{sentence}; {culprit}." if culprit else f"{sentence}."


def straggler_summary(stragglers: Sequence[Straggler]) -> str:
    """Which GPU is the straggler of most layers and why; empty where no layer has one.

    The reason is the cause behind most of the lost time in those layers.
    """
    found = culprit(stragglers)
    if found is None:
        return ""
    named = [row for row in stragglers if row.cause != "none"]
    whole = plural(len(stragglers), "layer")
    if found.rank is None:
        ranks = len({row.rank for row in named})
        return (
            f"the straggler changes from layer to layer ({ranks} different GPUs in {whole}), "
            f"mostly because {_reason(named, found.cause, 'the straggler')}"
        )
    own = [row for row in named if row.rank == found.rank]
    return (
        f"GPU {found.rank} is the straggler in {found.layers} of {whole} because "
        f"{_reason(own, found.cause, 'it')}"
    )


def advice(result: Result) -> list[str]:
    """What to try next and the most it can win, largest first; never more than the run shows."""
    step_s, share = result.metrics.step_time_s.mean, shares(result)
    most = {term: f"at most {format_seconds(share[term] * step_s)} a step" for term in TERMS}
    lines: dict[str, list[str]] = {}
    if share["imbalance"] >= SMALL:
        lines["imbalance"] = _balance(result)
    if share["network"] >= LARGE:
        modes = "`--vary 'dispatch.mode=[per_expert, per_gpu, per_node]'`"
        lines["network"] = [f"Network: {most['network']}. Compare dispatch modes: {modes}."]
    if share["overhead"] >= LARGE:
        loads = "`--vary 'workload.tokens_per_gpu=[64, 128, 256]'`"
        lines["overhead"] = [f"Fixed costs: {most['overhead']}. More tokens a GPU spread them: {loads}."]
    if share["hardware"] >= SMALL:
        lines["hardware"] = [f"Hardware: healthy GPUs and links win {most['hardware']}."]
    return [line for term in sorted(lines, key=lambda term: -share[term]) for line in lines[term]]


def _balance(result: Result) -> list[str]:
    """Who can win what of the imbalance: placements, whoever gives requests to ranks, routers."""
    least_s = SMALL * result.metrics.step_time_s.mean
    homes_s = max(result.attribution.homes_s or 0.0, 0.0)
    # What unequal ranks cost stays, wherever experts are.
    placements_s = result.attribution.imbalance_s - homes_s
    lines = []
    if placements_s >= least_s:
        cause = next(iter(lost_by_cause(result.stragglers)), "none")
        slots = result.metrics.slots
        one_each = slots is not None and slots.held == result.gpus
        alone = sum(row.cause == "tokens" and row.expert_load > 1 for row in result.stragglers)
        why = _ONE_EACH if one_each and cause == "tokens" else _BALANCE_ADVICE[cause]
        lines.append(f"Placements: at most {format_seconds(placements_s)} a step. {why}")
        if alone and not one_each:
            lines.append(
                f"In {alone} of {plural(len(result.stragglers), 'layer')} the straggler's hottest expert "
                "alone has more assignments than the mean GPU. No rearrangement mends that: give it replicas "
                "(more slots than experts) or cap it (`routing.policy=drop`)."
            )
    if homes_s >= least_s:
        lines.append(
            f"Homes: {format_seconds(homes_s)} a step, since ranks have unequal tokens or contexts. No "
            "placement changes that: the scheduler has to even them out."
        )
    if result.ceilings is not None and result.ceilings.routers_s - result.ceilings.placements_s >= least_s:
        lines.append(
            f"Routers: at most {format_seconds(result.ceilings.routers_s - homes_s)} a step, since fewer "
            "experts with tokens stream fewer weights, which no placement changes."
        )
    return lines


def _reason(stragglers: Sequence[Straggler], cause: str, subject: str) -> str:
    """Why ``subject`` is last, for this cause; tokens with their mean excess."""
    if cause != "tokens":
        return f"{subject} {CAUSES[cause]}"
    load = sum(row.load for row in stragglers if row.cause == "tokens")
    load /= sum(row.cause == "tokens" for row in stragglers)
    return f"{subject} gets {load:.1f} times the mean GPU's tokens"
