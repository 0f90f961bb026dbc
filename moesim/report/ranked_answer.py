"""The answer where no one number ranks points: by targets, on a front, or between ways to model."""

from __future__ import annotations

from moesim.analysis.ranking import (
    BASE,
    Ranking,
    comparable,
    decodes,
    latency_s,
    modelled,
    per_gpu,
    targets_of,
    tried,
)
from moesim.analysis.result_file import Compared, Comparison, Outcome, Result
from moesim.report.point_names import baseline_named, named_vary, vary
from moesim.spec.question import plural
from moesim.units import format_count, format_seconds, format_share

LATENCY = {True: "inter-token latency", False: "time of a step"}
"""What the length of a step is called, where all runs decode and where not."""

_MOST = 3


def targets_answer(comparison: Comparison, ranking: Ranking) -> str:
    """The point with the most tokens a second and GPU that meets all targets; else which comes nearest."""
    targets = targets_of(comparison)
    asked = " and ".join(target.text for target in targets)
    runs: list[Compared] = [comparison.baseline, *(point for _, point in tried(comparison))]
    if ranking.best is None:
        assert ranking.nearest is not None  # the baseline ran
        run = run_of(comparison, ranking.nearest)
        missed = (target for target in targets if not target.met(run.metrics))
        named = ", ".join(f"{target.metric} {target.show(run.metrics)}" for target in missed)
        return f"Nothing meets {asked}: {name_of(comparison, ranking.nearest)} comes nearest, with {named}."
    run = run_of(comparison, ranking.best)
    met = sum(all(target.met(each.metrics) for target in targets) for each in runs)
    who, rate = name_of(comparison, ranking.best), _rate(comparison, run)
    of = f"the {met} of {len(runs)} that meet" if met > 1 else "the only one that meets"
    best = f"is best of {of}" if met > 1 else f"is {of}"
    more = price(run, comparison.baseline) if isinstance(run, Outcome) else ""
    return f"{_upper(who)} {best} {asked}: {rate}{more}."


def front_answer(comparison: Comparison, ranking: Ranking) -> str:
    """From which point to which the front goes."""
    latency = LATENCY[decodes(comparison)]
    first, last = ranking.front[0], ranking.front[-1]
    low, high = (
        f"{name_of(comparison, n)} ({_rate(comparison, run_of(comparison, n))})" for n in (first, last)
    )
    if first == last:
        return f"Nothing beats {low}, neither in tokens/s/GPU nor in {latency}."
    runs = 1 + len(tried(comparison))
    return (
        f"Loads differ, so no one number ranks the points: {len(ranking.front)} of {runs} are on the front "
        f"of tokens/s/GPU against {latency}, from {low} to {high}. A --target picks one."
    )


def modelling_answer(comparison: Comparison) -> str:
    """How much longer or shorter a step is with other ways to model it; none of them is better."""
    base_s = latency_s(comparison.baseline)
    points = sorted((point for _, point in tried(comparison)), key=latency_s)
    ends = points if len(points) <= _MOST else [points[0], points[-1]]
    told = [
        f"with {vary(point)} {format_seconds(latency_s(point))} ({latency_s(point) / base_s:.2f}×)"
        for point in ends
    ]
    between = ", " if ends is points else " to "
    return (
        "Ways to model are compared, none is best: a step takes "
        f"{format_seconds(base_s)} {baseline_named(comparison)}, {between.join(told)}."
    )


def otherwise_modelled(comparison: Comparison, best: int) -> str:
    """Whether the best point is best with other ways to model, too; empty where there is one way."""
    chosen = _chosen(comparison.outcomes[best])
    same = {number for number, _ in comparable(comparison)}
    ways: dict[str, list[Outcome]] = {}
    for number, point in tried(comparison):
        if number not in same:
            ways.setdefault(named_vary(modelled(point)), []).append(point)
    found = ""
    for way, points in list(ways.items())[:_MOST]:
        first = max(points, key=lambda point: point.speedup)
        who = "the same point" if _chosen(first) == chosen else named_vary(_chosen(first)) or "as asked"
        found += f" With {way}, {who} is ahead."
    return found


def price(point: Outcome, base: Result) -> str:
    """What a point does to the router's choice more than the baseline."""
    metrics, prices = point.metrics, list[str]()
    for name, verb in (("dropped", "drops"), ("rerouted", "reroutes"), ("added", "adds")):
        share = getattr(metrics, name)
        if share <= getattr(base.metrics, name):
            continue
        whole = "" if prices else " of the assignments"
        prices.append(f"{verb} {format_share(share)}{whole}")
        if name == "dropped" and metrics.gate_mass_lost is not None:
            prices[-1] += f" ({format_share(metrics.gate_mass_lost)} of the gate mass)"
    return f"; it {' and '.join(prices)}" if prices else ""


def run_of(comparison: Comparison, number: int) -> Compared:
    """The run of a number in a ranking."""
    return comparison.baseline if number == BASE else comparison.outcomes[number]


def name_of(comparison: Comparison, number: int) -> str:
    """What to call it."""
    if number != BASE:
        return vary(comparison.outcomes[number])
    return "the scenario itself" if comparison.infeasible is None else baseline_named(comparison)


def _chosen(point: Outcome) -> dict[str, object]:
    """What of a point one could choose."""
    way = modelled(point)
    return {key: value for key, value in point.vary.items() if key not in way}


def _rate(comparison: Comparison, run: Compared) -> str:
    gpus = run.gpus or comparison.baseline.gpus
    each, step = format_count(per_gpu(comparison, run)), format_seconds(latency_s(run))
    return f"{each} tokens/s/GPU at {step} on {plural(gpus, 'GPU')}"


def _upper(text: str) -> str:
    return f"The{text[3:]}" if text.startswith("the ") else text
