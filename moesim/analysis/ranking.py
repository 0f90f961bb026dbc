"""How the points of a comparison are ranked: by targets, on a front, by speed; or not at all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from moesim.analysis.result_file import Compared, Comparison, Outcome
from moesim.analysis.target import Target, missed_by

# What a user assumes, and no server can be set to.
_MODELLING: Final = ("network", "resolution", "profile")
# What a user asks of a GPU; without them, points that do more at once are slower, and no worse.
_LOADS: Final = ("workload.context", "workload.tokens_per_gpu", "workload.prefill_tokens_per_gpu")

BASE: Final = -1
"""The number of the baseline among the points."""


@dataclass(frozen=True)
class Ranking:
    """The tried points of a comparison by their numbers, and which of them answer it.

    Attributes:
        kind: ``targets``: the most tokens a second and GPU that meet all of them; ``front``: no point of it
            is beaten in both tokens a second and GPU, and latency; ``speed``: the largest speedup;
            ``modelling``: nothing to choose.
        order: best first; points that are the baseline itself are left out.
        best: None where nothing was tried, nothing meets the targets, or nothing is best.
        nearest: what misses the targets least, where nothing meets them.
        front: by latency; empty unless points have other loads than the baseline.
    """

    kind: Literal["targets", "front", "speed", "modelling"]
    order: tuple[int, ...]
    best: int | None
    nearest: int | None = None
    front: tuple[int, ...] = ()


def tried(comparison: Comparison) -> list[tuple[int, Outcome]]:
    """The points that ran with their numbers, but for those that are the baseline itself."""
    return [item for item in enumerate(comparison.outcomes) if not item[1].as_asked]


def rank(comparison: Comparison) -> Ranking:
    """The points of a comparison, ranked."""
    runs = dict(tried(comparison))
    front = _front(comparison, runs) if _other_loads(comparison) else ()
    if comparison.targets:
        return _by_targets(comparison, runs, front)
    if front:
        others = sorted(set(runs) - set(front), key=lambda number: -per_gpu(comparison, runs[number]))
        return Ranking("front", (*(n for n in front if n != BASE), *others), None, front=front)
    if runs and all(map(modelling, _keys(comparison))):
        return Ranking("modelling", tuple(runs), None)
    by_speed = sorted(runs, key=lambda number: -runs[number].speedup)
    same = dict(comparable(comparison))
    return Ranking("speed", tuple(by_speed), next((number for number in by_speed if number in same), None))


def per_gpu(comparison: Comparison, run: Compared) -> float:
    """Tokens a second of each GPU; a point whose file does not say how many it has, has the baseline's."""
    return run.metrics.tokens_per_s / (run.gpus or comparison.baseline.gpus)


def latency_s(run: Compared) -> float:
    """Mean seconds of a step: in decoding, between two tokens of a sequence."""
    return run.metrics.step_time_s.mean


def decodes(comparison: Comparison) -> bool:
    """Whether a step of every run yields the next token of each sequence."""
    phases = [comparison.baseline.scenario["workload"]["phase"]]
    phases += [
        value.get("phase", phases[0]) if isinstance(value, dict) else value
        for point in comparison.outcomes
        for key, value in point.vary.items()
        if key in ("workload", "workload.phase")
    ]
    return set(phases) == {"decode"}


def modelling(key: str) -> bool:
    """Whether a key is how one models, rather than what one could run."""
    return key.split(".")[0] in _MODELLING


def modelled(point: Outcome) -> dict[str, Any]:
    """What of a point is how it is modelled."""
    return {key: value for key, value in point.vary.items() if modelling(key)}


def comparable(comparison: Comparison) -> list[tuple[int, Outcome]]:
    """The tried points that are modelled as the baseline is, or as the first point is."""
    points = comparison.outcomes
    way = modelled(next((point for point in points if point.as_asked), points[0])) if points else {}
    return [(number, point) for number, point in tried(comparison) if modelled(point) == way]


def targets_of(comparison: Comparison) -> tuple[Target, ...]:
    """The targets of a comparison."""
    return tuple(map(Target.parse, comparison.targets))


def _by_targets(comparison: Comparison, runs: dict[int, Outcome], front: tuple[int, ...]) -> Ranking:
    targets = targets_of(comparison)
    candidates: dict[int, Compared] = {BASE: comparison.baseline, **runs}
    missed = {number: missed_by(targets, run.metrics) for number, run in candidates.items()}
    # Of those that meet all the fastest, then those that miss least.
    order = sorted(candidates, key=lambda n: (missed[n], -per_gpu(comparison, candidates[n])))
    best, nearest = (order[0], None) if missed[order[0]] == 0 else (None, order[0])
    return Ranking("targets", tuple(n for n in order if n != BASE), best, nearest, front)


def _front(comparison: Comparison, runs: dict[int, Outcome]) -> tuple[int, ...]:
    """The runs that no other beats in both, the baseline among them, by latency."""
    candidates: dict[int, Compared] = {BASE: comparison.baseline, **runs}
    order = sorted(candidates, key=lambda n: (latency_s(candidates[n]), -per_gpu(comparison, candidates[n])))
    front, most = [], -math.inf
    for number in order:
        if (rate := per_gpu(comparison, candidates[number])) > most:
            front.append(number)
            most = rate
    return tuple(front)


def _other_loads(comparison: Comparison) -> bool:
    """Whether points have other tokens, contexts or GPUs than the baseline."""
    base = comparison.baseline
    return any(
        not math.isclose(_tokens_per_step(point), _tokens_per_step(base), rel_tol=1e-6)
        or (point.gpus or base.gpus) != base.gpus
        or any(map(_is_load, point.vary))
        for _, point in tried(comparison)
    )


def _is_load(key: str) -> bool:
    return key == "workload" or any(f"{key}.".startswith(f"{load}.") for load in _LOADS)


def _tokens_per_step(run: Compared) -> float:
    return run.metrics.tokens_per_s * run.metrics.step_time_s.mean


def _keys(comparison: Comparison) -> Sequence[str]:
    return list(dict.fromkeys(key for point in comparison.outcomes for key in point.vary))
