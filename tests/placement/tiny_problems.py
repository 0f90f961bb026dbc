"""Problems small enough to try every placement."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from hypothesis import strategies as st

from placement.problem.objective import Objective
from placement.problem.placement import EMPTY, Placement
from placement.problem.problem import Problem


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Two to four experts on up to three GPUs, unequal slots and speeds, one or two windows."""
    experts, gpus = draw(st.integers(2, 4)), draw(st.integers(1, 3))
    windows = draw(st.integers(1, 2))
    slots = draw(st.lists(st.integers(0, 3), min_size=gpus, max_size=gpus))
    while sum(min(each, experts) for each in slots) < experts or sum(slots) > 6:
        short = sum(min(each, experts) for each in slots) < experts
        slots[slots.index(min(slots) if short else max(slots))] += 1 if short else -1
    load = draw(
        st.lists(
            st.lists(st.integers(0, 9), min_size=experts, max_size=experts).filter(any),
            min_size=windows,
            max_size=windows,
        )
    )
    speed = draw(st.lists(st.sampled_from([1.0, 1.0, 0.5, 2.0]), min_size=gpus, max_size=gpus))
    active = draw(st.sampled_from([0.0, 0.0, 2.0]))
    others: dict[str, Any] = {}
    if active:
        chances = st.lists(st.sampled_from([0.0, 0.3, 1.0]), min_size=experts, max_size=experts)
        others["active_WLE"] = np.array([draw(chances)])
    objective = Objective(per_token=1.0, per_active=active, worst_window=draw(st.booleans()))
    return Problem.of(
        np.array(load, dtype=float)[:, None],
        gpus,
        slots,
        speed=speed,
        objective=objective,
        **others,
    )


def every_placement(problem: Problem) -> Iterator[Placement]:
    """Every way to fill the slots of a problem of one layer, empty slots and twins included."""
    kinds = [
        list(itertools.combinations_with_replacement([EMPTY, *range(problem.experts)], int(slots)))
        for slots in problem.slots_G
    ]
    slot_gpu_S = np.repeat(np.arange(problem.gpus, dtype=np.int32), problem.slots_G)
    for filling in itertools.product(*kinds):
        slot_expert_S = [expert for held in filling for expert in held]
        if set(range(problem.experts)) <= set(slot_expert_S):
            yield Placement(
                np.array([slot_expert_S]), slot_gpu_S, problem.experts, problem.gpus, problem.layers
            )


def naive_cost(problem: Problem, placement: Placement) -> float:
    """The objective of one layer without moves and copies across nodes, term by term."""
    objective = problem.objective
    slots = placement.slot_expert_LS[0].tolist()
    largest = []
    for window in range(problem.windows):
        gpu_load = [0.0] * problem.gpus
        for slot, expert in enumerate(slots):
            if expert == EMPTY:
                continue
            copies = slots.count(expert)
            load = objective.per_token * problem.load_WLE[window, 0, expert] / copies
            if objective.per_active:
                assert problem.active_WLE is not None
                quiet = (1 - problem.active_WLE[window, 0, expert]) ** (1 / copies)
                load += objective.per_active * (1 - quiet)
            gpu = placement.slot_gpu_S[slot]
            gpu_load[gpu] += load / problem.speed_G[gpu]
        largest.append(max(gpu_load))
    return max(largest) if objective.worst_window else sum(largest) / len(largest)
