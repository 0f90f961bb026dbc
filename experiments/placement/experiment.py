"""Placements by ``swap`` beside the published balancer, on the same loads, and beside a proven bound."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from joblib import Parallel, delayed

from experiments.comparison import Comparison, Parameter, Row
from experiments.placement.loads import (
    EXPERTS,
    FAMILIES,
    LAYERS,
    SEEDS,
    Floats,
    family,
    request_loads,
    trace_file,
    windows_of,
)
from placement.judging.evaluation import cost_L
from placement.problem.objective import Objective
from placement.problem.placement import Placement
from placement.problem.problem import Problem
from placement.solvers.eplb import eplb
from placement.solvers.lp_bound import sharpened
from placement.solvers.one_pass import linear
from placement.solvers.solution import Solution
from placement.solvers.swap import swap
from traces.base.processes import end_with

SOURCE = "DeepSeek's EPLB (github.com/deepseek-ai/EPLB), run on the same families of loads"

GROUPS = 8
"""Expert groups of DeepSeek-V3."""


class Setting(NamedTuple):
    """Slots on GPUs.

    Attributes:
        nodes: above 1 the problem is strictly hierarchical: the experts of a group share a node.
        published: balancedness that EPLB was measured to reach, for each of ``FAMILIES``.
    """

    slots: int
    gpus: int
    nodes: int
    published: tuple[float, ...]

    @property
    def name(self) -> str:
        strict = f", strictly in {self.nodes} nodes" if self.nodes > 1 else ""
        return f"{self.slots} slots on {self.gpus} GPUs{strict}"

    def problem(self, name: str, seed: int) -> Problem:
        groups = GROUPS if self.nodes > 1 else 1
        per_node = self.gpus // self.nodes
        return Problem.of(family(name, seed), self.gpus, self.slots, gpus_per_node=per_node, groups=groups)


SETTINGS = (
    Setting(256, 32, 1, (0.525, 0.186, 0.963, 0.746)),
    Setting(288, 32, 1, (0.9987, 0.9946, 0.9916, 0.9951)),
    Setting(288, 72, 1, (0.960, 0.884, 0.968, 0.982)),
    Setting(288, 144, 1, (0.727, 0.487, 0.948, 0.760)),
    Setting(256, 32, 4, (0.522, 0.186, 0.943, 0.720)),
    Setting(288, 32, 4, (0.938, 0.719, 0.970, 0.933)),
    Setting(320, 64, 8, (0.740, 0.394, 0.858, 0.731)),
)

SLOTS_OF_NODES = (10, 9, 9, 8)
"""Slots of each GPU, node by node, of a cluster with unequal memory: 288 on 4 nodes of 8 GPUs."""

BUDGET = 0.1
"""Share of all copies that may move from a previous placement."""

EP = (4, 8, 16)
WINDOWS = 8
ROTATIONS = 12
"""Cuts of the trace in order, each beginning elsewhere."""


class Cell(NamedTuple):
    """One setting and family, over seeds.

    Attributes:
        eplb, swap: balancedness, averaged over layers and seeds.
        first, bound: that of ``swap`` with the first seed, and what it proves that none exceeds there.
        gap_L: of the first seed, how far ``swap`` is above its bound in each layer.
        eplb_s, swap_s: seconds of processor time for all layers, the least of the seeds.
    """

    eplb: float
    swap: float
    first: float
    bound: float
    gap_L: Floats
    eplb_s: float
    swap_s: float


def placement(jobs: int = -1) -> Comparison:
    """EPLB's balancedness against the measured; beside it ``swap``, its bound, moves and a trace.

    Args:
        jobs: processes, by default one for each core.
    """
    # Both are compiled before anything is timed, and before processes would do so beside each other.
    for solve in (eplb, swap):
        solve(Setting(256, 32, 1, ()).problem("zipf 0.6", 0))
    cases = [(setting, name) for setting in SETTINGS for name in FAMILIES]
    published = [value for setting in SETTINGS for value in setting.published]
    # One by one: some take a second and some minutes.
    asked = [delayed(_cell)(setting, name) for setting, name in cases]
    asked += [delayed(unequal)(), delayed(moved)(), delayed(_recorded)()]
    *cells, uneven, gains, trace = Parallel(
        jobs, "loky", batch_size=1, initializer=end_with, initargs=(os.getpid(),)
    )(asked)
    rows: list[Row] = []
    checks: list[Row] = []
    for (setting, name), measured, cell in zip(cases, published, cells, strict=True):
        case = f"{setting.name}, {name}"
        rows.append(Row(f"EPLB, {case}", "balancedness", measured, cell.eplb))
        checks += _beside(case, cell)
    checks += uneven
    checks += gains
    skipped = (
        () if trace else (Parameter("gpt-oss", "skipped", f"no file {trace_file().name}: set MOESIM_SHARED"),)
    )
    return Comparison("placement", SOURCE, tuple(rows), (*checks, *trace), skipped)


def _cell(setting: Setting, name: str) -> Cell:
    return compare([setting.problem(name, seed) for seed in SEEDS])


def _recorded() -> list[Row]:
    return list(recorded())


def compare(problems: Sequence[Problem], rivals: Sequence[Problem] | None = None) -> Cell:
    """Solve by both; ``rivals`` are what EPLB gets where it cannot take the problems themselves."""
    published, solved, eplb_s, swap_s = [], [], [], []
    for problem, rival in zip(problems, rivals or problems, strict=True):
        begun = time.process_time()
        published.append(balance(rival, eplb(rival)))
        eplb_s.append(time.process_time() - begun)
        begun = time.process_time()
        solved.append(swap(problem))
        swap_s.append(time.process_time() - begun)
    # The sharper bound takes up to a second a layer: of one seed only.
    first = sharpened(problems[0], solved[0])
    return Cell(
        float(np.mean(published)),
        float(np.mean([balance(problem, found) for problem, found in zip(problems, solved, strict=True)])),
        balance(problems[0], first),
        even(problems[0], first.bound_L),
        first.gap_L,
        min(eplb_s),
        min(swap_s),
    )


def balance(problem: Problem, solution: Solution) -> float:
    """Mean over layers of the mean over the largest load of a GPU."""
    return even(problem, solution.cost_L)


def even(problem: Problem, cost: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    """Mean over layers of an even load over a cost."""
    even_L = problem.load_WLE.mean(axis=0).sum(axis=1) / problem.gpus
    return float((even_L / cost).mean())


def _beside(case: str, cell: Cell) -> list[Row]:
    """Rows of one cell: each gives ``swap`` as predicted beside something as measured."""
    half, most, nearly = np.quantile(1.0 + cell.gap_L, [0.5, 0.8, 0.95]).tolist()
    return [
        Row(f"swap beside EPLB, {case}", "balancedness", cell.eplb, cell.swap),
        Row(f"swap beside bound, {case}", "balancedness", cell.bound, cell.first),
        Row(f"largest load over bound, half of the layers, {case}", "", 1.0, half),
        Row(f"largest load over bound, 80 % of the layers, {case}", "", 1.0, most),
        Row(f"largest load over bound, 95 % of the layers, {case}", "", 1.0, nearly),
        Row(f"time beside EPLB's, {case}", "ms", 1e3 * cell.eplb_s, 1e3 * cell.swap_s),
    ]


def unequal() -> list[Row]:
    """Nodes with unequal slots; EPLB, which needs equal ones, has to leave the others empty."""
    rows: list[Row] = []
    slots = np.repeat(SLOTS_OF_NODES, 8).tolist()
    for name in FAMILIES:
        problems = [Problem.of(family(name, seed), 32, slots, gpus_per_node=8) for seed in SEEDS]
        rivals = [Problem.of(family(name, seed), 32, 32 * min(SLOTS_OF_NODES)) for seed in SEEDS]
        rows += _beside(f"{sum(slots)} unequal slots on 32 GPUs, {name}", compare(problems, rivals))
    return rows


def moved() -> list[Row]:
    """From EPLB's placement for yesterday's loads: what a tenth of the copies may gain by moving."""
    rows = []
    for slots in (256, 288):
        gains = []
        for seed in SEEDS:
            rng = np.random.default_rng([seed, slots])
            yesterday_LE = family("lognormal 1.0", seed)
            load_LE = yesterday_LE * rng.lognormal(0.0, 0.5, size=(LAYERS, EXPERTS))
            before = eplb(Problem.of(yesterday_LE, 32, slots)).placement
            free = Problem.of(load_LE, 32, slots)
            most = int(BUDGET * LAYERS * slots)
            bound = Problem.of(load_LE, 32, slots, previous=before, max_moves=most)
            start, full = cost_L(free, before).sum(), swap(free).cost
            gains.append((start - swap(bound).cost) / (start - full))
        case = f"gain by {BUDGET:.0%} of the moves, {slots} slots on 32 GPUs, loads drifted by σ = 0.5"
        rows.append(Row(case, "of the full gain", 1.0, float(np.mean(gains))))
    return rows


def recorded() -> Iterator[Row]:
    """gpt-oss-20b placed on a part of the requests, scored on the others; nothing where it is absent."""
    file = trace_file()
    if not file.exists():
        return
    load_RLE = request_loads(file)
    half, quarter = len(load_RLE) // 2, len(load_RLE) // 4
    shuffled = [load_RLE[np.random.default_rng(seed).permutation(len(load_RLE))] for seed in SEEDS]
    turned = [np.roll(load_RLE, -turn * len(load_RLE) // ROTATIONS, axis=0) for turn in range(ROTATIONS)]
    for gpus in EP:
        yield from _kept_back("a random half", shuffled, half, gpus)
        yield from _kept_back("the last quarter", turned, quarter, gpus)


def _kept_back(name: str, orders: Sequence[Floats], kept: int, gpus: int) -> Iterator[Row]:
    """Of each solver the balance on what is kept back, as predicted, beside that on what it saw."""
    seen: dict[str, list[float]] = {}
    unseen: dict[str, list[float]] = {}
    for load_RLE in orders:
        whole, other = (Problem.of(part.sum(axis=0), gpus) for part in (load_RLE[:-kept], load_RLE[-kept:]))
        alike = windows_of(load_RLE[:-kept], max(2, len(load_RLE) // kept - 1))
        cut = windows_of(load_RLE[:-kept], WINDOWS)
        worst = Problem.of(cut, gpus, objective=Objective(worst_window=True))
        for solver, placed in (
            ("linear", linear(whole).placement),
            ("EPLB", eplb(whole).placement),
            ("swap", swap(whole).placement),
            (f"swap, mean of {len(alike)} windows", swap(Problem.of(alike, gpus)).placement),
            (f"swap, mean of {WINDOWS} windows", swap(Problem.of(cut, gpus)).placement),
            (f"swap, worst of {WINDOWS} windows", swap(worst).placement),
        ):
            seen.setdefault(solver, []).append(_scored(whole, placed))
            unseen.setdefault(solver, []).append(_scored(other, placed))
    for solver, values in unseen.items():
        case = f"gpt-oss, EP{gpus}, {solver}, {name} beside what it saw"
        yield Row(case, "balancedness", float(np.mean(seen[solver])), float(np.mean(values)))


def _scored(problem: Problem, placed: Placement) -> float:
    return even(problem, cost_L(problem, placed))
