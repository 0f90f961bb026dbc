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
import numpy.typing as npt

from traces.jit import jit

_NONE = -1


def linear(
    load_LE: npt.NDArray[np.float64], slot_gpu_S: npt.NDArray[np.int32], gpus: int
) -> npt.NDArray[np.int16]:
    """Slot s holds expert s mod E, whatever its GPU: where SGLang and vLLM start from.

    With equal slots in GPU order and none to spare, GPU g holds the experts g·E/G to (g+1)·E/G − 1.
    """
    layers, experts = load_LE.shape
    slot_expert_S = (np.arange(len(slot_gpu_S)) % experts).astype(np.int16)
    return np.tile(slot_expert_S, (layers, 1))


def round_robin(
    load_LE: npt.NDArray[np.float64], slot_gpu_S: npt.NDArray[np.int32], gpus: int
) -> npt.NDArray[np.int16]:
    """Expert e on GPU e mod G, as vLLM's ``round_robin`` strategy; redundant slots continue the deal.

    Copy c is of expert c mod E and is offered to the GPUs in turn from c mod G; the first with a free
    slot that does not hold the expert yet takes it, else the first with a free slot. (vLLM itself has
    no redundant slots under this strategy.)
    """
    layers, experts = load_LE.shape
    return np.tile(_deal(experts, slot_gpu_S, gpus), (layers, 1))


def greedy(
    load_LE: npt.NDArray[np.float64], slot_gpu_S: npt.NDArray[np.int32], gpus: int
) -> npt.NDArray[np.int16]:
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
    return _greedy(np.ascontiguousarray(load_LE, dtype=np.float64), slot_gpu_S.astype(np.int32), gpus)


def _deal(experts: int, slot_gpu_S: npt.NDArray[np.int32], gpus: int) -> npt.NDArray[np.int16]:
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
def _greedy(
    load_LE: npt.NDArray[np.float64], slot_gpu_S: npt.NDArray[np.int32], gpus: int
) -> npt.NDArray[np.int16]:
    layers = len(load_LE)
    slots = len(slot_gpu_S)
    slot_expert_LS = np.full((layers, slots), _NONE, dtype=np.int16)
    room_G = np.zeros(gpus, dtype=np.int64)
    for gpu in slot_gpu_S:
        room_G[gpu] += 1
    # The slots of GPU g are slot_of_S[first_G[g] : first_G[g] + room_G[g]].
    slot_of_S = np.argsort(slot_gpu_S, kind="mergesort")
    first_G = np.cumsum(room_G) - room_G
    useful = int(np.count_nonzero(room_G))
    for row in range(layers):
        replicas_E = _replicate(load_LE[row], slots, useful)
        share_E = load_LE[row] / replicas_E
        used_G = np.zeros(gpus, dtype=np.int64)
        load_G = np.zeros(gpus)
        newest_G = np.full(gpus, _NONE, dtype=np.int64)
        for expert in np.argsort(-share_E, kind="mergesort"):
            for _ in range(replicas_E[expert]):
                gpu = _least_loaded(load_G, used_G, room_G, newest_G, expert)
                slot_expert_LS[row, slot_of_S[first_G[gpu] + used_G[gpu]]] = expert
                used_G[gpu] += 1
                load_G[gpu] += share_E[expert]
                newest_G[gpu] = expert
    return slot_expert_LS


@jit
def _replicate(load_E: npt.NDArray[np.float64], slots: int, useful: int) -> npt.NDArray[np.int64]:
    """int64 [E], replicas of each expert, ``slots`` in all; above ``useful`` only as a last resort."""
    experts = len(load_E)
    replicas_E = np.ones(experts, dtype=np.int64)
    for _ in range(slots - experts):
        best = _NONE
        for expert in range(experts):
            if best == _NONE:
                best = expert
                continue
            spare, best_spare = replicas_E[expert] < useful, replicas_E[best] < useful
            larger = load_E[expert] / replicas_E[expert] > load_E[best] / replicas_E[best]
            if (spare and not best_spare) or (spare == best_spare and larger):
                best = expert
        replicas_E[best] += 1
    return replicas_E


@jit
def _least_loaded(
    load_G: npt.NDArray[np.float64],
    used_G: npt.NDArray[np.int64],
    room_G: npt.NDArray[np.int64],
    newest_G: npt.NDArray[np.int64],
    expert: int,
) -> int:
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
