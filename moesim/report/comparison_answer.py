"""What a comparison shows, in sentences: which point is best, at which price, and what it cannot say.

Every sentence is made from ``whatif.json`` alone, so that the terminal and the page say the same.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

from moesim.analysis.result_file import Compared, Comparison, Metrics, Outcome, Result
from moesim.report.findings import SMALL, TERMS, shares
from moesim.spec.question import brief, plural
from moesim.units import format_bytes, format_count, format_seconds, format_share

# So few more assignments dropped are none to speak of.
_NEGLIGIBLE: Final = 0.001
# Whichever is faster in all but so few of the draws is faster.
_DOUBT: Final = 0.05
# What reroutes a larger share of the assignments is another router.
_MOST: Final = 0.5

# Where a faster point won its time.
_WON: Final = {
    "imbalance": "from better balance",
    "network": "from less network",
    "overhead": "from fewer fixed costs",
    "hardware": "from healthier hardware",
    "ideal": "from less work",
    "migration": "from moving fewer experts",
}


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
    name, *more = [name for name, share in faster.items() if _DOUBT < share < 1 - _DOUBT] or [""]
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
        return f", {format_seconds(won_s)} of it {_WON[term]}"
    return f": {format_seconds(won_s)} {_WON[term]}, of which {format_seconds(lost_s)} are lost elsewhere"


def _is_free(point: Outcome, base: Result) -> bool:
    """Whether a point leaves the router's choice as the scenario does, or nearly so.

    It drops next to nothing more, and does not reroute most of the assignments unless the scenario does.
    """
    metrics, before = point.metrics, base.metrics
    few = metrics.dropped <= before.dropped + _NEGLIGIBLE
    return few and metrics.rerouted <= max(before.rerouted, _MOST)


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
        most = any(point.metrics.rerouted > _MOST for point in faster)
        also = " and reroutes less than half" if most else ""
        return f"No point that drops no more than the scenario{also} is faster."
    price = _price(best, base)
    what = "that drops next to nothing" if "drops" in price else "without dropping more than the scenario"
    return f"Best {what} is {vary(best)}, {speedup(best)}{price}."
