"""Is a generated trace as near to requests it never saw as those that it was fitted to are?"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from experiments.comparison import Comparison, Row
from experiments.generator_fit.statistics import STATISTICS, distance
from moesim.errors import TraceError
from traces.fitting import fitted
from traces.generator import generate
from traces.interop import load_any
from traces.interop.hints import Hints
from traces.routing import RoutingTrace, join

SOURCE = "AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting at 72b368f: gpt-oss-20b decoding 212 requests"

SPLITS = 10
BOUND = 1.5
"""Times the distance between the halves that the generator may be from the unseen one."""

_REQUESTS = 400  # generated, so that little of the distance is their own accident


def generator_fit() -> Comparison:
    """For each statistic, how far the generator is from the unseen half, beside how far the halves are.

    Raises:
        TraceError: the trace is not there.
    """
    return compare(gpt_oss(), SPLITS)


def gpt_oss() -> RoutingTrace:
    """The recorded trace, from the folder that ``MOESIM_SHARED`` names, by default ``../shared``."""
    shared = Path(os.environ.get("MOESIM_SHARED", Path(__file__).parents[3] / "shared"))
    path = shared / "data/gptoss20b/decode_routing.npz"
    if not path.exists():
        raise TraceError("there is no such file; name the folder of data with MOESIM_SHARED", file=path)
    return load_any(path, Hints(model="gpt-oss-20b", experts=32))


def compare(trace: RoutingTrace, splits: int, requests: int = _REQUESTS) -> Comparison:
    """``splits`` random halvings of the requests, each fitted on one half."""
    between: dict[str, list[float]] = {name: [] for name in STATISTICS}
    unseen: dict[str, list[float]] = {name: [] for name in STATISTICS}
    for seed in range(splits):
        seen, other = halves(trace, seed)
        length = round(seen.tokens / (len(seen.request_offsets) - 1))
        made = generate(fitted(seen, seed=seed), requests, length, seed)
        for name, statistic in STATISTICS.items():
            wanted = statistic(other)
            between[name].append(distance(statistic(seen), wanted))
            unseen[name].append(distance(statistic(made), wanted))
    rows = [
        Row(name, "L1, mean over layers", float(np.mean(between[name])), float(np.mean(unseen[name])))
        for name in STATISTICS
    ]
    checks = []
    for name in STATISTICS:
        ratios = np.array(unseen[name]) / np.array(between[name])
        checks.append(Row(f"{name}: ratio in the worst split", "", BOUND, float(ratios.max())))
        met = float((ratios <= BOUND).sum())
        checks.append(Row(f"{name}: splits within {BOUND:g}", f"of {splits}", splits, met))
    return Comparison("generator_fit", SOURCE, rows=tuple(rows), checks=tuple(checks), parameters=())


def halves(trace: RoutingTrace, seed: int) -> tuple[RoutingTrace, RoutingTrace]:
    """The requests, dealt at random into two traces of as many, each in the order of the trace."""
    requests = len(trace.request_offsets) - 1
    order_R = np.random.default_rng(seed).permutation(requests)
    first, second = (np.sort(part) for part in (order_R[: requests // 2], order_R[requests // 2 :]))
    return _selected(trace, first.tolist()), _selected(trace, second.tolist())


def _selected(trace: RoutingTrace, requests: list[int]) -> RoutingTrace:
    parts = [trace.select_requests(request, request + 1) for request in requests]
    return join(parts, sum(part.tokens for part in parts))
