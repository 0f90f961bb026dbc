"""Which positions the rules of a problem leave, whether a placement obeys them, and the nearest that does."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from placement.problem.asked import Asked
from placement.problem.errors import PlacementError
from placement.problem.placement import EMPTY, Placement
from traces.base.arrays import Bools, Int8s, Ints
from traces.base.memory import require_memory

FREE, FIXED, FORBIDDEN = 0, 1, -1
"""Entries of a table of rules."""


def rule_EG(problem: Asked, row: int) -> Int8s:
    """int8 [E, G] of the layer at index ``row``: ``FREE``, ``FIXED`` or ``FORBIDDEN``; groups apart."""
    rule = np.full((problem.experts, problem.gpus), FREE, dtype=np.int8)
    rule[:, problem.slots_G == 0] = FORBIDDEN
    layer = problem.layers[row]
    for kind, positions in ((FORBIDDEN, problem.forbidden), (FIXED, problem.fixed)):
        for position in positions:
            if position.layer == layer:
                rule[position.expert, position.gpu] = kind
    return rule


def held_EG(placement: Placement, row: int) -> Bools:
    """bool [E, G], whether a GPU holds a copy of an expert in the layer at index ``row``."""
    held = np.zeros((placement.experts, placement.gpus), dtype=np.bool_)
    slot_expert_S = placement.slot_expert_LS[row]
    filled_S = slot_expert_S != EMPTY
    held[slot_expert_S[filled_S], placement.slot_gpu_S[filled_S]] = True
    return held


def before_EG(problem: Asked, row: int) -> Bools:
    """bool [E, G], where the previous placement holds copies; nowhere without one."""
    if problem.previous is None:
        return np.zeros((problem.experts, problem.gpus), dtype=np.bool_)
    return held_EG(problem.previous, row)


def moves(problem: Asked, row: int, held: Bools) -> int:
    """Copies of a layer that lie where the previous placement has none of the expert; 0 without one."""
    return 0 if problem.previous is None else int(np.count_nonzero(held & ~before_EG(problem, row)))


def moves_L(problem: Asked, placement: Placement) -> Ints:
    """int64 [L], :func:`moves` of each layer."""
    rows = range(len(problem.layers))
    return np.array([moves(problem, row, held_EG(placement, row)) for row in rows], dtype=np.int64)


def held_EN(problem: Asked, held: Bools) -> Bools:
    """bool [E, N], whether a node holds a copy of an expert, from the same of its GPUs."""
    return np.stack([held[:, problem.node_G == node].any(axis=1) for node in range(problem.nodes)], axis=1)


def check_obeys(problem: Asked, placement: Placement) -> None:
    """Refuse a placement that breaks a rule of the problem.

    Raises:
        PlacementError: naming the rule, layer, expert and GPU.
    """
    placement.check_fits(problem.experts, problem.gpus, problem.layers)
    used_G = np.bincount(placement.slot_gpu_S, minlength=problem.gpus)
    if (used_G > problem.slots_G).any():
        gpu = int(np.argmax(used_G > problem.slots_G))
        raise PlacementError(
            f"GPU {gpu} has no more than {problem.slots_G[gpu]} slots", field="placement", got=used_G[gpu]
        )
    layer_row = {layer: row for row, layer in enumerate(problem.layers)}
    for positions, wanted in ((problem.fixed, True), (problem.forbidden, False)):
        for layer, expert, gpu in positions:
            slots_S = placement.slot_expert_LS[layer_row[layer]] == expert
            if bool((placement.slot_gpu_S[slots_S] == gpu).any()) != wanted:
                raise PlacementError(
                    f"layer {layer}: expert {expert} must {'' if wanted else 'not '}be on GPU {gpu}",
                    field="placement",
                )
    if problem.groups > 1:
        _check_groups(problem, placement)
    if problem.distinct:
        check_distinct(placement)
    moved = int(moves_L(problem, placement).sum())
    if problem.max_moves is not None and moved > problem.max_moves:
        raise PlacementError(f"must move at most {problem.max_moves} copies", field="placement", got=moved)


def check_distinct(placement: Placement) -> None:
    """Refuse a placement with two copies of an expert on one GPU.

    Raises:
        PlacementError: naming layer, expert and GPU.
    """
    for layer, slot_expert_S in zip(placement.layers, placement.slot_expert_LS, strict=True):
        filled_S = slot_expert_S != EMPTY
        held = np.stack([slot_expert_S[filled_S], placement.slot_gpu_S[filled_S]], axis=1)
        found, copies = np.unique(held, axis=0, return_counts=True)
        if (copies > 1).any():
            (expert, gpu), many = found[copies.argmax()].tolist(), copies.max()
            raise PlacementError(
                f"layer {layer}: GPU {gpu} must hold one copy of expert {expert} only; name another solver, "
                "such as swap",
                field="placement",
                got=many,
            )


def check_possible(problem: Asked) -> None:
    """Refuse a problem whose rules no placement obeys.

    Raises:
        PlacementError: naming the rules that contradict each other.
    """
    both = set(problem.fixed) & set(problem.forbidden)
    if both:
        layer, expert, gpu = min(both)
        raise PlacementError(
            f"layer {layer}: expert {expert} on GPU {gpu} is fixed and forbidden", field="fixed"
        )
    least = sum(moves(problem, row, nearest_EG(problem, row)) for row in _rows_with_rules(problem))
    if problem.max_moves is not None and least > problem.max_moves:
        raise PlacementError(
            f"the other rules alone make {least} copies move", field="max_moves", got=problem.max_moves
        )


def nearest_EG(problem: Asked, row: int) -> Bools:
    """bool [E, G], the copies of one layer that obey the rules with the fewest moves from ``previous``.

    What lies where it may stays, as far as slots reach; each expert that is left without a copy gets one.
    Without a previous placement it has one copy of each expert and what is fixed. Exact, as an
    assignment of experts to slots (Kuhn, "The Hungarian method", 1955), but for the choice of nodes for
    groups, where it is the fewest experts without a copy on their node.

    Raises:
        PlacementError: nothing obeys them.
    """
    before, rule = before_EG(problem, row), rule_EG(problem, row)
    if problem.groups > 1:
        rule[~_group_home_EG(problem, before)] = FORBIDDEN
    _check_alone(problem, row, rule)
    held: Bools = rule == FIXED
    room_G = problem.slots_G - held.sum(axis=0)
    homeless_E = np.flatnonzero(~held.any(axis=1))
    if len(homeless_E):
        gpu_E = _assign(problem, row, rule[homeless_E], before[homeless_E], room_G)
        held[homeless_E, gpu_E] = True
        room_G -= np.bincount(gpu_E, minlength=problem.gpus)
    # Further copies that lie there already stay while there is room.
    for gpu in range(problem.gpus):
        stay_E = np.flatnonzero(before[:, gpu] & ~held[:, gpu] & (rule[:, gpu] == FREE))[: room_G[gpu]]
        held[stay_E, gpu] = True
    return held


def _rows_with_rules(problem: Asked) -> list[int]:
    if problem.max_moves is not None:
        return list(range(len(problem.layers)))
    named = {position.layer for position in (*problem.fixed, *problem.forbidden)}
    return [row for row, layer in enumerate(problem.layers) if layer in named]


def _check_alone(problem: Asked, row: int, rule: Int8s) -> None:
    """Contradictions of one expert or one GPU by itself, which are easily named."""
    layer = problem.layers[row]
    fixed_G = (rule == FIXED).sum(axis=0)
    if (fixed_G > problem.slots_G).any():
        gpu = int(np.argmax(fixed_G > problem.slots_G))
        raise PlacementError(
            f"layer {layer}: more experts are fixed on GPU {gpu} than its {problem.slots_G[gpu]} slots",
            field="fixed",
            got=fixed_G[gpu],
        )
    nowhere_E = (rule == FORBIDDEN).all(axis=1)
    if nowhere_E.any():
        raise PlacementError(
            f"layer {layer}: expert {nowhere_E.argmax()} is forbidden on every GPU with slots",
            field="forbidden",
        )


def _assign(problem: Asked, row: int, rule: Int8s, before: Bools, room_G: Ints) -> Ints:
    """int64 [E], a GPU for each expert of ``rule``, as many as can where they were ``before``."""
    gpu_S = np.repeat(np.arange(problem.gpus), np.maximum(room_G, 0))
    require_memory(len(rule) * len(gpu_S) * 8, "a table of experts and slots", error=PlacementError)
    cost_ES = np.where(before, 0.0, 1.0)[:, gpu_S]
    cost_ES[(rule == FORBIDDEN)[:, gpu_S]] = np.inf
    try:
        expert_N, slot_N = linear_sum_assignment(cost_ES)
    except ValueError:
        expert_N, slot_N = np.empty(0, np.int64), np.empty(0, np.int64)
    if len(expert_N) < len(rule):
        raise PlacementError(
            f"layer {problem.layers[row]}: some experts together may only lie on GPUs that have fewer "
            "slots left than they are",
            field="forbidden" if problem.forbidden else "fixed",
        )
    gpu_E = np.empty(len(rule), dtype=np.int64)
    gpu_E[expert_N] = gpu_S[slot_N]
    return gpu_E


def _group_home_EG(problem: Asked, before: Bools) -> Bools:
    """bool [E, G], whether a GPU is on the node of an expert's group, with few experts leaving theirs."""
    nodes, size = problem.nodes, problem.experts // problem.groups
    stay_PN = held_EN(problem, before).reshape(problem.groups, size, nodes).sum(axis=1)
    seat_node = np.repeat(np.arange(nodes), problem.groups // nodes)
    _, seat_P = linear_sum_assignment(-stay_PN[:, seat_node])
    node_E = np.repeat(seat_node[seat_P], size)
    home: Bools = node_E[:, None] == problem.node_G[None, :]
    return home


def _check_groups(problem: Asked, placement: Placement) -> None:
    size = problem.experts // problem.groups
    for row, layer in enumerate(problem.layers):
        expert_N, gpu_N = np.nonzero(held_EG(placement, row))
        node_N, group_N = problem.node_G[gpu_N], expert_N // size
        node_P = np.empty(problem.groups, dtype=np.int64)
        node_P[group_N] = node_N
        if (node_P[group_N] != node_N).any():
            group = int(group_N[np.argmax(node_P[group_N] != node_N)])
            raise PlacementError(
                f"layer {layer}: the experts of group {group} must lie on one node", field="placement"
            )
        if (np.bincount(node_P, minlength=problem.nodes) != problem.groups // problem.nodes).any():
            raise PlacementError(
                f"layer {layer}: every node must serve {problem.groups // problem.nodes} groups",
                field="placement",
            )
