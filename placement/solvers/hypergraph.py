"""Exchanging experts so that tokens need fewer nodes (or GPUs), with every GPU's load under a limit.

Axes: T sampled tokens, K experts of a token, C copies of experts in a layer (empty slots count as copies of
no expert), E experts, G GPUs, D domains (nodes, or GPUs), W windows.

The problem is to partition a hypergraph: copies are vertices, tokens are nets over them, and the number of
domains that a token needs is its connectivity. What an exchange of two copies changes is kept up to date as
in Fiduccia and Mattheyses, "A linear-time heuristic for improving network partitions" (DAC 1982).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from traces.base.arrays import Bools, Floats, Int16s, Ints
from traces.base.jit import jit

NO_LIMIT = 2**62
"""A budget that is never used up."""


class Layer(NamedTuple):
    """The copies of one layer, as compiled code reads them.

    Attributes:
        copy_TK: int64, the copy that serves each of a token's experts.
        expert_C: int64, −1 for an empty slot.
        cost_WC: float64, what a copy adds to the load of its GPU, at speed 1.
        speed_G: float64.
        limit_W: float64, what no GPU's load by its speed may exceed.
        allowed_EG: bool, where a copy of an expert may lie.
        pinned_C: bool, copies that stay.
        before_EG: bool, where the previous placement has a copy.
    """

    copy_TK: Ints
    expert_C: Ints
    cost_WC: Floats
    speed_G: Floats
    limit_W: Floats
    allowed_EG: Bools
    pinned_C: Bools
    before_EG: Bools


@jit
def refine(
    layer: Layer, gpu_C: Ints, domain_G: Ints, within_G: Ints, home_T: Ints, budget: int, sweeps: int
) -> int:
    """Exchange the GPUs of two copies, the best partner for each in turn, while tokens need fewer domains.

    Args:
        gpu_C: the GPU of each copy; changed in place.
        domain_G: the domain of each GPU.
        within_G: only GPUs with the same number here exchange.
        home_T: a domain that a token needs anyway; −1 = none.
        budget: how many more copies than now may lie where the previous placement has none.
        sweeps: most passes over all copies.

    Returns:
        the budget that was used.
    """
    state = _start(layer, gpu_C, domain_G, home_T)
    spent = 0
    for _ in range(sweeps):
        improved = False
        for copy in range(len(gpu_C)):
            best, partner = 0, -1
            for other in range(len(gpu_C)):
                if _apart(state, within_G, copy, other):
                    change = _change(layer, state, copy, other, budget - spent, best)
                    if change < best:
                        best, partner = change, other
            if partner >= 0:
                spent += _moves(layer, gpu_C, copy, partner)
                _carry_out(layer, state, copy, partner)
                improved = True
        if not improved:
            break
    return spent


@jit
def anneal(
    layer: Layer, gpu_C: Ints, domain_G: Ints, within_G: Ints, home_T: Ints, pair_S2: Ints, heat_S: Floats
) -> None:
    """Try pairs of copies one after another, and let an exchange cost up to ``heat_S`` domains.

    With heat −t · ln u, u uniform, that is the rule of Metropolis at temperature t, and with t falling to 0
    simulated annealing (Kirkpatrick, Gelatt, Vecchi, Science 1983). ``gpu_C`` becomes the best seen.
    """
    state = _start(layer, gpu_C, domain_G, home_T)
    best_C, total, best = gpu_C.copy(), 0, 0
    for step in range(len(heat_S)):
        copy, other = pair_S2[step, 0], pair_S2[step, 1]
        if _apart(state, within_G, copy, other):
            ceiling = int(np.ceil(heat_S[step]))
            change = _change(layer, state, copy, other, NO_LIMIT, ceiling)
            if change < ceiling:
                _carry_out(layer, state, copy, other)
                total += change
                if total < best:
                    best, best_C[:] = total, gpu_C
    gpu_C[:] = best_C


class State(NamedTuple):
    """Where the copies are, and what exchanges are judged by; kept up to date by :func:`_carry_out`.

    Attributes:
        gpu_C, domain_C: where each copy is.
        load_WG: float64, load of each GPU.
        held_EG: int64, how many copies of an expert a GPU holds.
        first_C, token_N: tokens of copy c are token_N[first_C[c] : first_C[c + 1]].
        needs_TD: how many of a token's experts are in a domain, its home one more.
        alone_C: tokens for which the copy is the only reason to need its domain.
        new_CD: tokens of the copy that do not need the domain.
    """

    gpu_C: Ints
    domain_C: Ints
    load_WG: Floats
    held_EG: Ints
    first_C: Ints
    token_N: Ints
    needs_TD: Int16s
    alone_C: Ints
    new_CD: Ints


@jit
def _start(layer: Layer, gpu_C: Ints, domain_G: Ints, home_T: Ints) -> State:
    copy_TK = layer.copy_TK
    tokens, chosen = copy_TK.shape
    copies, domains = len(gpu_C), domain_G.max() + 1
    domain_C = domain_G[gpu_C]
    first_C = np.zeros(copies + 1, np.int64)
    first_C[1:] = np.cumsum(np.bincount(copy_TK.ravel(), minlength=copies))
    token_N, filled_C = np.empty(tokens * chosen, np.int64), first_C.copy()
    needs_TD = np.zeros((tokens, domains), np.int16)
    for token in range(tokens):
        if home_T[token] >= 0:
            needs_TD[token, home_T[token]] += 1
        for copy in copy_TK[token]:
            token_N[filled_C[copy]] = token
            filled_C[copy] += 1
            needs_TD[token, domain_C[copy]] += 1
    alone_C, new_CD = np.zeros(copies, np.int64), np.zeros((copies, domains), np.int64)
    for token in range(tokens):
        for copy in copy_TK[token]:
            alone_C[copy] += needs_TD[token, domain_C[copy]] == 1
            for domain in range(domains):
                new_CD[copy, domain] += needs_TD[token, domain] == 0
    load_WG, held_EG = loads(layer, gpu_C)
    return State(gpu_C, domain_C, load_WG, held_EG, first_C, token_N, needs_TD, alone_C, new_CD)


@jit
def loads(layer: Layer, gpu_C: Ints) -> tuple[Floats, Ints]:
    """(load_WG, held_EG): load of each GPU, and how many copies of an expert it holds."""
    load_WG = np.zeros((len(layer.cost_WC), len(layer.speed_G)))
    held_EG = np.zeros(layer.allowed_EG.shape, np.int64)
    for copy in range(len(gpu_C)):
        for window in range(len(load_WG)):
            load_WG[window, gpu_C[copy]] += layer.cost_WC[window, copy]
        if layer.expert_C[copy] >= 0:
            held_EG[layer.expert_C[copy], gpu_C[copy]] += 1
    return load_WG, held_EG


@jit
def _apart(state: State, within_G: Ints, copy: int, other: int) -> bool:
    here, there = state.gpu_C[copy], state.gpu_C[other]
    return bool(state.domain_C[copy] != state.domain_C[other] and within_G[here] == within_G[there])


@jit
def _change(layer: Layer, state: State, copy: int, other: int, budget: int, below: int) -> int:
    """By how much an exchange changes the domains that tokens need; ``below`` if not less, or not allowed."""
    change = _hoped(state, copy, other)
    if (
        change < below
        and _fits(layer, state.gpu_C, state.load_WG, copy, other)
        and may_hold(layer, state.gpu_C, state.held_EG, copy, other)
        and _moves(layer, state.gpu_C, copy, other) <= budget
    ):
        return min(below, change + _together(state, layer.copy_TK, copy, other))
    return below


@jit
def _carry_out(layer: Layer, state: State, copy: int, other: int) -> None:
    exchange(layer, state.gpu_C, state.load_WG, state.held_EG, copy, other)
    here, there = state.domain_C[copy], state.domain_C[other]
    _move(state, layer.copy_TK, copy, there)
    _move(state, layer.copy_TK, other, here)


@jit
def _hoped(state: State, copy: int, other: int) -> int:
    """Change of domains needed if the two copies had no token in common; never above the true change."""
    here, there = state.domain_C[copy], state.domain_C[other]
    gone = state.alone_C[copy] + state.alone_C[other]
    return int(state.new_CD[copy, there] + state.new_CD[other, here] - gone)


@jit
def _together(state: State, copy_TK: Ints, copy: int, other: int) -> int:
    """What to add for the tokens of both, whose needs do not change."""
    here, there = state.domain_C[copy], state.domain_C[other]
    counted = 0
    for token in state.token_N[state.first_C[copy] : state.first_C[copy + 1]]:
        for mate in copy_TK[token]:
            if mate == other:
                counted += (state.needs_TD[token, here] == 1) + (state.needs_TD[token, there] == 1)
    return counted


@jit
def _move(state: State, copy_TK: Ints, copy: int, to: int) -> None:
    """Bring the state up to date for one copy that goes to another domain."""
    here = state.domain_C[copy]
    for token in state.token_N[state.first_C[copy] : state.first_C[copy + 1]]:
        mates_K = copy_TK[token]
        left = state.needs_TD[token, here] - 1
        state.needs_TD[token, here] = left
        if left == 0:
            state.alone_C[copy] -= 1
            for mate in mates_K:
                state.new_CD[mate, here] += 1
        elif left == 1:
            for mate in mates_K:
                state.alone_C[mate] += mate != copy and state.domain_C[mate] == here
        found = state.needs_TD[token, to]
        state.needs_TD[token, to] = found + 1
        if found == 0:
            state.alone_C[copy] += 1
            for mate in mates_K:
                state.new_CD[mate, to] -= 1
        elif found == 1:
            for mate in mates_K:
                state.alone_C[mate] -= mate != copy and state.domain_C[mate] == to
    state.domain_C[copy] = to


@jit
def _fits(layer: Layer, gpu_C: Ints, load_WG: Floats, copy: int, other: int) -> bool:
    """Whether no limit is broken when two copies change places."""
    here, there = gpu_C[copy], gpu_C[other]
    for window in range(len(load_WG)):
        more = layer.cost_WC[window, other] - layer.cost_WC[window, copy]
        gpu, change = (here, more) if more > 0 else (there, -more)
        if load_WG[window, gpu] + change > layer.limit_W[window] * layer.speed_G[gpu]:
            return False
    return True


@jit
def may_hold(layer: Layer, gpu_C: Ints, held_EG: Ints, copy: int, other: int) -> bool:
    """Whether rules let two copies change places: nothing pinned or forbidden, no expert twice on a GPU."""
    if layer.pinned_C[copy] or layer.pinned_C[other]:
        return False
    for expert, gpu in ((layer.expert_C[copy], gpu_C[other]), (layer.expert_C[other], gpu_C[copy])):
        if expert >= 0 and (held_EG[expert, gpu] > 0 or not layer.allowed_EG[expert, gpu]):
            return False
    return True


@jit
def _moves(layer: Layer, gpu_C: Ints, copy: int, other: int) -> int:
    """By how many an exchange changes the copies that are not where the previous placement has them."""
    here, there = gpu_C[copy], gpu_C[other]
    change = 0
    for one, old, new in ((layer.expert_C[copy], here, there), (layer.expert_C[other], there, here)):
        if one >= 0:
            change += int(layer.before_EG[one, old]) - int(layer.before_EG[one, new])
    return change


@jit
def exchange(layer: Layer, gpu_C: Ints, load_WG: Floats, held_EG: Ints, copy: int, other: int) -> None:
    """Let two copies change places, and bring loads and holdings up to date."""
    here, there = gpu_C[copy], gpu_C[other]
    for window in range(len(load_WG)):
        more = layer.cost_WC[window, other] - layer.cost_WC[window, copy]
        load_WG[window, here] += more
        load_WG[window, there] -= more
    for one, old, new in ((layer.expert_C[copy], here, there), (layer.expert_C[other], there, here)):
        if one >= 0:
            held_EG[one, old] -= 1
            held_EG[one, new] += 1
    gpu_C[copy], gpu_C[other] = there, here
