"""Placements made in one pass: what serving systems start from, and largest load first.

Every function has the same form, so that each can stand in the dictionary of solvers::

    (load_LE, slot_gpu_S, gpus) -> slot_expert_LS

load_LE: float64 [L, E], the load of each expert, finite and not negative; ``linear`` and
``round_robin`` look at its shape alone. slot_gpu_S: int32 [S], the GPU of each slot, in any order,
with at least E slots; GPUs may hold unequal numbers of slots. The result is int16 [L, S] with every
expert in at least one slot and no slot empty. "In turn" and "first" refer to ascending indices, and
every tie goes to the lowest index.
"""

from __future__ import annotations

import numpy as np

from traces.base.arrays import Floats, Int16s, Int32s, Ints
from traces.base.jit import jit, jit_inside

_NONE = -1


def linear(load_LE: Floats, slot_gpu_S: Int32s, gpus: int) -> Int16s:
    """Slot s holds expert s mod E, whatever its GPU: where SGLang and vLLM start from.

    With equal slots in GPU order and none to spare, GPU g holds the experts g·E/G to (g+1)·E/G − 1.
    """
    layers, experts = load_LE.shape
    slot_expert_S = (np.arange(len(slot_gpu_S)) % experts).astype(np.int16)
    return np.tile(slot_expert_S, (layers, 1))


def round_robin(load_LE: Floats, slot_gpu_S: Int32s, gpus: int) -> Int16s:
    """Expert e on GPU e mod G, as vLLM's ``round_robin`` strategy; redundant slots continue the deal.

    Copy c is of expert c mod E and is offered to the GPUs in turn from c mod G; the first with a free
    slot that does not hold the expert yet takes it, else the first with a free slot. (vLLM itself has
    no redundant slots under this strategy.)
    """
    layers, experts = load_LE.shape
    return np.tile(_deal(experts, slot_gpu_S, gpus), (layers, 1))


def greedy(load_LE: Floats, slot_gpu_S: Int32s, gpus: int) -> Int16s:
    """Replicate what is loaded most per replica, then place the largest first on the least loaded GPU.

    First every redundant slot goes to the expert with the largest load per replica; an expert that has
    a replica for each GPU is passed over while another has not. Then the replicas, by falling load, go
    each to the least loaded GPU among those that have a free slot and do not hold the expert yet, or
    where there is none, that have a free slot. Longest processing time first (Graham, "Bounds on
    multiprocessing timing anomalies", 1969) with a limit on the jobs of each machine.

    Loads 8, 4, 2, 2 on two GPUs of three slots: 8 becomes 4 + 4 and 4 becomes 2 + 2.

    >>> greedy(np.array([[8.0, 4.0, 2.0, 2.0]]), np.array([0, 0, 0, 1, 1, 1], dtype=np.int32), 2)
    array([[0, 1, 2, 0, 1, 3]], dtype=int16)
    """
    load_LE = np.ascontiguousarray(load_LE, dtype=np.float64)
    room_G = np.bincount(slot_gpu_S, minlength=gpus)
    replicas_LE = _replicate(load_LE, len(slot_gpu_S), int(np.count_nonzero(room_G)))
    share_LE = load_LE / replicas_LE
    order_LE = np.argsort(-share_LE, axis=1, kind="stable")
    by_gpu_S = np.argsort(slot_gpu_S, kind="stable")
    return _pack(order_LE, replicas_LE, share_LE, room_G, by_gpu_S)


def _deal(experts: int, slot_gpu_S: Int32s, gpus: int) -> Int16s:
    """int16 [S]: see :func:`round_robin`."""
    slot_expert_S = np.full(len(slot_gpu_S), _NONE, dtype=np.int16)
    free_G: list[list[int]] = [[] for _ in range(gpus)]
    for slot in reversed(range(len(slot_gpu_S))):
        free_G[slot_gpu_S[slot]].append(slot)
    holds_G: list[set[int]] = [set() for _ in range(gpus)]
    for copy in range(len(slot_gpu_S)):
        expert, taker = copy % experts, _NONE
        for gpu in (turn % gpus for turn in range(copy, copy + gpus)):
            if free_G[gpu] and expert not in holds_G[gpu]:
                taker = gpu
                break
            if free_G[gpu] and taker == _NONE:
                taker = gpu
        slot_expert_S[free_G[taker].pop()] = expert
        holds_G[taker].add(expert)
    return slot_expert_S


@jit
def _replicate(load_LE: Floats, slots: int, useful: int) -> Ints:
    """int64 [L, E], replicas of each expert, ``slots`` in all; above ``useful`` only as a last resort."""
    replicas_LE = np.empty(load_LE.shape, dtype=np.int64)
    for layer in range(len(load_LE)):
        _, replicas_LE[layer] = replicas(load_LE[layer], slots, useful)
    return replicas_LE


@jit_inside
def replicas(load_E: Floats, slots: int, useful: int) -> tuple[Ints, Ints]:
    """One replica of each expert, then one by one where a replica has the most load.

    Returns:
        int64 [S], the expert of each, and int64 [E], how many each has; above ``useful`` only where all are.
    """
    experts = len(load_E)
    expert_S, replicas_E = np.arange(slots), np.ones(experts, dtype=np.int64)
    for slot in range(experts, slots):
        best, most, spare = 0, -1.0, False
        for expert in range(experts):
            share, fresh = load_E[expert] / replicas_E[expert], replicas_E[expert] < useful
            if (fresh and not spare) or (fresh == spare and share > most):
                best, most, spare = expert, share, fresh
        expert_S[slot] = best
        replicas_E[best] += 1
    return expert_S, replicas_E


@jit
def _pack(order_LE: Ints, replicas_LE: Ints, share_LE: Floats, room_G: Ints, by_gpu_S: Ints) -> Int16s:
    """int16 [L, S]: the replicas of each expert, in the given order of experts, on the least loaded GPUs.

    Args:
        order_LE: experts by falling load of one replica, ``share_LE``.
        room_G: slots of each GPU; ``by_gpu_S`` lists those of GPU 0 first, then those of GPU 1, and so on.
    """
    layers, gpus = len(order_LE), len(room_G)
    slot_expert_LS = np.empty((layers, len(by_gpu_S)), dtype=np.int16)
    first_G = np.cumsum(room_G) - room_G
    for layer in range(layers):
        used_G = np.zeros(gpus, dtype=np.int64)
        load_G = np.zeros(gpus, dtype=np.float64)
        newest_G = np.full(gpus, _NONE, dtype=np.int64)
        for expert in order_LE[layer]:
            for _ in range(replicas_LE[layer, expert]):
                gpu = _least_loaded(load_G, used_G, room_G, newest_G, expert)
                slot_expert_LS[layer, by_gpu_S[first_G[gpu] + used_G[gpu]]] = expert
                used_G[gpu] += 1
                load_G[gpu] += share_LE[layer, expert]
                newest_G[gpu] = expert
    return slot_expert_LS


@jit
def _least_loaded(load_G: Floats, used_G: Ints, room_G: Ints, newest_G: Ints, expert: int) -> int:
    """The GPU for the next replica of ``expert``.

    The replicas of an expert are placed one after another, so a GPU holds the expert exactly if it is
    the newest there.
    """
    best = _NONE
    for gpu in range(len(load_G)):
        if used_G[gpu] == room_G[gpu]:
            continue
        if best == _NONE:
            best = gpu
            continue
        fresh, best_fresh = newest_G[gpu] != expert, newest_G[best] != expert
        if (fresh and not best_fresh) or (fresh == best_fresh and load_G[gpu] < load_G[best]):
            best = gpu
    return best
