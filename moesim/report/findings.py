"""What was found, in sentences: the answer, who the stragglers are, what would help.

Every sentence is made from ``result.json`` alone, so that the terminal and the page say the same.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from moesim.analysis.culprit import Straggler, culprit, lost_by_cause
from moesim.analysis.result_file import Compared, Comparison, Metrics, Outcome, Result
from moesim.spec.question import brief, plural
from moesim.units import format_bytes, format_count, format_seconds, format_share

# Below this share of a step a cost is not worth acting on.
SMALL: Final = 0.02
# From this share on a cost is worth a line of advice.
LARGE: Final = 0.15
# So few more assignments dropped are none to speak of.
NEGLIGIBLE: Final = 0.001
# Whichever is faster in all but so few of the draws is faster.
DOUBT: Final = 0.05
# What reroutes a larger share of the assignments is another router.
MOST: Final = 0.5

TERMS: Final = {
    "imbalance": "slower than if every GPU had the same work",
    "network": "what remains of transfers between GPUs once they are balanced",
    "overhead": "kernel launches and other fixed costs",
    "hardware": "GPUs or links that are slower than they should be",
    "migration": "experts that move, and the solver that says where to",
    "ideal": "the work itself: balanced, on a free network, without fixed costs",
}
# Where a faster point won its time.
WON: Final = {
    "imbalance": "from better balance",
    "network": "from less network",
    "overhead": "from fewer fixed costs",
    "hardware": "from healthier hardware",
    "ideal": "from less work",
    "migration": "from moving fewer experts",
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


def tried(comparison: Comparison) -> list[tuple[int, Outcome]]:
    """The points with their indices, but for those that are the scenario itself."""
    return [item for item in enumerate(comparison.outcomes) if not item[1].as_asked]


def named_runs(comparison: Comparison) -> list[tuple[str, Compared]]:
    """The baseline and the tried points, each with what to call it in a sentence."""
    points = [(f"with {vary(point)}", point) for _, point in tried(comparison)]
    named = baseline_named(comparison)
    return [(f"with {named}" if comparison.infeasible else named, comparison.baseline), *points]


def baseline_named(comparison: Comparison) -> str:
    """What others are compared with: the scenario as asked, or what it yielded to."""
    if comparison.infeasible is None:
        return "as asked"
    return next((vary(point) for point in comparison.outcomes if point.as_asked), "the first that can be")


def best_point(comparison: Comparison) -> int | None:
    """Index of the tried point with the largest speedup, the first of equals; None where none was tried."""
    best = max(tried(comparison), key=lambda item: item[1].speedup, default=None)
    return None if best is None else best[0]


def whatif_answer(comparison: Comparison) -> str:
    """Which point is best, at which price; whether rebalancing pays, and who is on slow hardware."""
    ranked = unranked(comparison) or "".join(
        sentence(comparison) for sentence in (_fastest, _alike, _beyond, _weights_read)
    )
    if comparison.infeasible is not None:
        named = baseline_named(comparison)
        ranked = f"The scenario itself cannot be; points are compared with {named}. {ranked}"
    return ranked + _rebalancing(comparison) + _slow_hardware(comparison)


def _alike(comparison: Comparison) -> str:
    """Which runs the draws do not tell from the best point; empty where there are no draws, or none such."""
    best, drawn = best_point(comparison), comparison.baseline.intervals
    if best is None or comparison.faster is None or drawn is None:
        return ""
    # The scenario comes first in the table of pairs.
    others = [(at + 1, vary(point)) for at, point in tried(comparison) if at != best]
    faster = {name: comparison.faster[best + 1][at] for at, name in [(0, "the scenario itself"), *others]}
    name, *more = [name for name, share in faster.items() if DOUBT < share < 1 - DOUBT] or [""]
    if not name:
        return ""
    also = f", nor from {plural(len(more), 'other point')}" if more else ""
    share = f"{format_share(faster[name])} of {drawn.samples} draws of the profile's figures"
    return f" It cannot be told from {name}{also}: it is faster in {share}."


def _beyond(comparison: Comparison) -> str:
    """What a placement won that even work would not have: not by balance but by less work."""
    base, best = comparison.baseline, best_point(comparison)
    if best is None or base.ceilings is None or not _places(comparison.outcomes[best]):
        return ""
    before, after = base.metrics, comparison.outcomes[best].metrics
    won_s, most_s = before.step_time_s.mean - after.step_time_s.mean, base.ceilings.placements_s
    if won_s - most_s < SMALL * won_s:
        return ""
    fewer, most = ", ".join(fewer_of(before, after)), format_seconds(most_s)
    return f" Even work would have won {most}; the rest comes from {fewer}." if fewer else ""


def fewer_of(before: Metrics, after: Metrics) -> list[str]:
    """What a run has less of than another, of all that balance does not change."""
    rows: list[tuple[str, float, float, Callable[[float], str]]] = [
        ("bytes between nodes", before.cross_node_bytes, after.cross_node_bytes, format_bytes),
        ("bytes inside nodes", before.in_node_bytes, after.in_node_bytes, format_bytes),
    ]
    if before.slots is not None and after.slots is not None:
        rows += [
            ("experts with tokens in a layer", before.slots.active, after.slots.active, format_count),
            ("rows of experts in a layer", before.slots.rows, after.slots.rows, format_count),
        ]
    return [f"fewer {name} ({show(new)} for {show(old)})" for name, old, new, show in rows if new < old]


def _weights_read(comparison: Comparison) -> str:
    """Whose copies balance better and are slower, since more experts are read; the fastest such point."""
    before = comparison.baseline.metrics
    for _, point in sorted(tried(comparison), key=lambda item: -item[1].speedup):
        after = point.metrics
        if before.slots is None or after.slots is None or not _places(point):
            continue
        read = after.slots.active - before.slots.active
        if point.speedup < 1 and after.balancedness > before.balancedness and read >= 1:
            more = plural(round(read), "more expert")
            return f" {vary(point)} balances better and is slower: {more} read in a layer."
    return ""


def _places(point: Outcome) -> bool:
    """Whether a point differs in nothing but where experts are."""
    return all(key.split(".")[0] in ("placement", "replicas") for key in point.vary)


def unranked(comparison: Comparison) -> str:
    """Why runs in different dispatch modes are not ranked; empty where they are, or have one mode."""
    runs = [run for _, run in named_runs(comparison)]
    outside = {run.unseen: None for run in runs if run.unseen}
    if len({run.mode for run in runs}) == 1 or not outside:
        return ""
    count = sum(bool(run.unseen) for run in runs)
    fitted = ". ".join(outside)
    return (
        f"Dispatch modes are not ranked: {count} of {len(runs)} runs lie outside what their transfers were "
        f"fitted on. {fitted}."
    )


def _rebalancing(comparison: Comparison) -> str:
    """Empty where nothing rebalances, or nothing beside it tells whether that pays."""
    runs: list[tuple[float, Compared]] = [
        (1.0, comparison.baseline),
        *((point.speedup, point) for point in comparison.outcomes),
    ]
    moving = [factor for factor, run in runs if rebalances(run)]
    still = [factor for factor, run in runs if not rebalances(run)]
    if not moving or not still:
        return ""
    if max(moving) <= max(still):
        return (
            " Rebalancing does not pay here: nothing that rebalances is faster than the best that does not."
        )
    best = best_point(comparison)
    payback = None if best is None else comparison.outcomes[best].payback_steps
    if payback is None or max(moving) <= 1:
        return ""
    return f" There a rebalance has paid for itself after {steps(payback)}."


def _slow_hardware(comparison: Comparison) -> str:
    """What slow hardware costs where it costs most, and whose it is; empty where it costs nothing."""
    where, most = max(named_runs(comparison), key=lambda run: shares(run[1])["hardware"])
    if shares(most)["hardware"] < SMALL:
        return ""
    share, found, gpu = format_share(shares(most)["hardware"]), most.culprit, slow_gpu(most)
    blamed = f"; {gpu} holds up {plural(found.layers, 'layer')}" if found is not None and gpu else ""
    return f" Slow hardware costs most {where}: {share} of a step{blamed}."


def slow_gpu(point: Compared) -> str:
    """The GPU that holds up most layers because its hardware is slow; empty where there is none."""
    found = point.culprit
    if found is None or found.rank is None or found.cause != "hardware":
        return ""
    return f"GPU {found.rank}"


def rebalances(point: Compared) -> int:
    """How often a run placed its experts anew."""
    return point.metrics.rebalancing.rebalances


def steps(count: float) -> str:
    """A number of steps, one that has begun counting whole.

    >>> steps(0.2), steps(41.3)
    ('1 step', '42 steps')
    """
    return plural(max(1, math.ceil(count)), "step")


def _fastest(comparison: Comparison) -> str:
    """The best point that costs no quality to speak of; if another is faster, also that and its price."""
    best = best_point(comparison)
    if best is None:
        if comparison.infeasible is not None:
            return "No other point can be."
        return "Nothing but the scenario itself was tried." if comparison.points else "Nothing was varied."
    point, base = comparison.outcomes[best], comparison.baseline
    base_s, point_s = base.metrics.step_time_s.mean, point.metrics.step_time_s.mean
    if point.speedup < 1 + SMALL / 2:
        return f"Nothing tried here is faster: the best point, {vary(point)}, runs {speedup(point)}."
    free = _is_free(point, base)
    more = (point.gpus or 0) > base.gpus
    sentence = f"{vary(point)} is {'best' if free and not more else 'fastest'}: {speedup(point)}"
    if not math.isclose(_tokens_per_step(point), _tokens_per_step(base), rel_tol=1e-6):
        sentence += " the tokens per second"
    else:
        sentence += f", {format_seconds(base_s - point_s)} less per step{_won(base, point)}"
    sentence += _price(point, base)
    return f"{sentence}." if free else f"{_best_free(comparison)} {sentence}."


def _won(base: Result, point: Outcome) -> str:
    """Where most of what a point saves comes from, and what of that it loses elsewhere."""
    saved = {term: base.attribution.seconds(term) - point.attribution.seconds(term) for term in TERMS}
    term = max(saved, key=lambda name: saved[name])
    won_s = saved[term]
    lost_s = won_s - (base.metrics.step_time_s.mean - point.metrics.step_time_s.mean)
    if lost_s < SMALL * won_s:
        return f", {format_seconds(won_s)} of it {WON[term]}"
    return f": {format_seconds(won_s)} {WON[term]}, of which {format_seconds(lost_s)} are lost elsewhere"


def _is_free(point: Outcome, base: Result) -> bool:
    """Whether a point leaves the router's choice as the scenario does, or nearly so.

    It drops next to nothing more, and does not reroute most of the assignments unless the scenario does.
    """
    metrics, before = point.metrics, base.metrics
    few = metrics.dropped <= before.dropped + NEGLIGIBLE
    return few and metrics.rerouted <= max(before.rerouted, MOST)


def _price(point: Outcome, base: Result) -> str:
    """On how many GPUs it runs, where that differs, and what it does to the router's choice more."""
    metrics = point.metrics
    asked, used, runs = base.gpus, point.gpus, ""
    if used and used != asked:
        each = point.speedup * asked / used
        runs = f", on {plural(used, 'GPU')} instead of {asked:,} ({each:.2f}× for each GPU)"
    prices: list[str] = []
    for name, verb in (("dropped", "drops"), ("rerouted", "reroutes"), ("added", "adds")):
        share = getattr(metrics, name)
        if share <= getattr(base.metrics, name):
            continue
        whole = "" if prices else " of the assignments"
        prices.append(f"{verb} {format_share(share)}{whole}")
        if name == "dropped" and metrics.gate_mass_lost is not None:
            prices[-1] += f" ({format_share(metrics.gate_mass_lost)} of the gate mass)"
    return runs + (f"; it {' and '.join(prices)}" if prices else "")


def _tokens_per_step(run: Compared) -> float:
    return run.metrics.tokens_per_s * run.metrics.step_time_s.mean


def vary(point: Outcome, names: Mapping[str, str] | None = None) -> str:
    """A point's varied keys, or their ``names``, and values, ``key=value`` after another."""
    return named_vary(point.vary, names)


def named_vary(values: Mapping[str, Any], names: Mapping[str, str] | None = None) -> str:
    """Varied keys and their values."""
    return ", ".join(f"{(names or {}).get(key, key)}={brief(value)}" for key, value in values.items())


def varied_keys(comparison: Comparison) -> dict[str, str]:
    """Every varied key in order of appearance, and its short name: the last part where that is unique."""
    keys = list(dict.fromkeys(key for point in comparison.outcomes for key in point.vary))
    last = Counter(key.rsplit(".", 1)[-1] for key in keys)
    return {key: short if last[short := key.rsplit(".", 1)[-1]] == 1 else key for key in keys}


def speedup(point: Outcome) -> str:
    """A speedup as a factor: 1.31×."""
    return f"{point.speedup:.2f}×"


def _best_free(comparison: Comparison) -> str:
    """The fastest point that leaves the router's choice as the scenario does, or that there is none."""
    base = comparison.baseline
    free = [point for point in comparison.outcomes if _is_free(point, base)]
    best = max(free, key=lambda point: point.speedup, default=None)
    if best is None or best.speedup < 1 + SMALL / 2:
        faster = [point for point in comparison.outcomes if point.speedup >= 1 + SMALL / 2]
        most = any(point.metrics.rerouted > MOST for point in faster)
        also = " and reroutes less than half" if most else ""
        return f"No point that drops no more than the scenario{also} is faster."
    price = _price(best, base)
    what = "that drops next to nothing" if "drops" in price else "without dropping more than the scenario"
    return f"Best {what} is {vary(best)}, {speedup(best)}{price}."


def _reason(stragglers: Sequence[Straggler], cause: str, subject: str) -> str:
    """Why ``subject`` is last, for this cause; tokens with their mean excess."""
    if cause != "tokens":
        return f"{subject} {CAUSES[cause]}"
    load = sum(row.load for row in stragglers if row.cause == "tokens")
    load /= sum(row.cause == "tokens" for row in stragglers)
    return f"{subject} gets {load:.1f} times the mean GPU's tokens"
