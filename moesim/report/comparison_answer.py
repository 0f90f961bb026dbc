"""What a comparison shows, in sentences: which point is best, at which price, and what it cannot say.

Every sentence is made from ``whatif.json`` alone, so that the terminal and the page say the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from moesim.analysis.ranking import BASE, Ranking, comparable, rank, tried
from moesim.analysis.result_file import Compared, Comparison, Metrics, Outcome, Result
from moesim.report.findings import SMALL, TERMS, shares
from moesim.report.point_names import baseline_named, named_runs, speedup, steps, vary
from moesim.report.ranked_answer import (
    front_answer,
    modelling_answer,
    otherwise_modelled,
    price,
    targets_answer,
)
from moesim.spec.question import plural
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


def whatif_answer(comparison: Comparison) -> str:
    """Which points answer the question, at which price; whether rebalancing pays, and slow hardware."""
    ranking, found = rank(comparison), unranked(comparison)
    if ranking.kind == "targets":
        found = " ".join(filter(None, (targets_answer(comparison, ranking), found)))
    elif not found:
        found = _ranked(comparison, ranking)
    if comparison.infeasible is not None:
        named = baseline_named(comparison)
        found = f"The scenario itself cannot be; points are compared with {named}. {found}"
    return found + _rebalancing(comparison) + _slow_hardware(comparison)


def _ranked(comparison: Comparison, ranking: Ranking) -> str:
    """Without targets: the front of points with other loads, or the fastest point and what it won."""
    if ranking.kind == "front":
        return front_answer(comparison, ranking)
    if ranking.kind == "modelling":
        return modelling_answer(comparison)
    if ranking.best is None:
        if comparison.infeasible is not None:
            return "No other point can be."
        return "Nothing but the scenario itself was tried." if comparison.points else "Nothing was varied."
    best = ranking.best
    sentences = (_fastest, _alike, _beyond)
    found = "".join(sentence(comparison, best) for sentence in sentences) + _weights_read(comparison)
    return found + otherwise_modelled(comparison, best)


def _alike(comparison: Comparison, best: int) -> str:
    """Which runs the draws do not tell from the best point; empty where there are no draws, or none such."""
    drawn = comparison.baseline.intervals
    if comparison.faster is None or drawn is None:
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


def _beyond(comparison: Comparison, best: int) -> str:
    """What a placement won that even work would not have: not by balance but by less work."""
    base = comparison.baseline
    if base.ceilings is None or not _places(comparison.outcomes[best]):
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
    best = rank(comparison).best
    payback = None if best is None or best == BASE else comparison.outcomes[best].payback_steps
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


def _fastest(comparison: Comparison, best: int) -> str:
    """The best point that costs no quality to speak of; if another is faster, also that and its price."""
    point, base = comparison.outcomes[best], comparison.baseline
    less_s = base.metrics.step_time_s.mean - point.metrics.step_time_s.mean
    if point.speedup < 1 + SMALL / 2:
        return f"Nothing tried here is faster: the best point, {vary(point)}, runs {speedup(point)}."
    free = _is_free(point, base)
    sentence = f"{vary(point)} is {'best' if free else 'fastest'}: {speedup(point)}, "
    sentence += f"{format_seconds(less_s)} less per step{_won(base, point)}{price(point, base)}."
    return sentence if free else f"{_best_free(comparison)} {sentence}"


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


def _best_free(comparison: Comparison) -> str:
    """The fastest point that leaves the router's choice as the scenario does, or that there is none."""
    base = comparison.baseline
    points = [point for _, point in comparable(comparison)]
    free = [point for point in points if _is_free(point, base)]
    best = max(free, key=lambda point: point.speedup, default=None)
    if best is None or best.speedup < 1 + SMALL / 2:
        faster = [point for point in points if point.speedup >= 1 + SMALL / 2]
        most = any(point.metrics.rerouted > _MOST for point in faster)
        also = " and reroutes less than half" if most else ""
        return f"No point that drops no more than the scenario{also} is faster."
    more = price(best, base)
    what = "that drops next to nothing" if "drops" in more else "without dropping more than the scenario"
    return f"Best {what} is {vary(best)}, {speedup(best)}{more}."
