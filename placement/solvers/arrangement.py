"""From what each GPU holds to slots, so that as little as possible changes place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from placement.problem.placement import EMPTY, Placement
from placement.problem.problem import Problem
from traces.base.arrays import Bools, Int16s, Int32s, Ints, ranks


def arranged(problem: Problem, item_LGK: Sequence[Ints], origin: str) -> Placement:
    """Experts on GPUs as a placement; what ``problem.previous`` has in a slot of the same GPU stays there.

    Args:
        item_LGK: for each layer int64 [G, K], the experts on each GPU, in any order, among ``EMPTY``; K is
            the most slots of a GPU, or the number of experts where that is less.
    """
    slot_gpu_S, previous, rank_S = problem.slot_gpu_S, problem.previous, ranks(problem.slot_gpu_S)
    slot_expert_LS = np.full((len(item_LGK), problem.slots), EMPTY, dtype=np.int16)
    for row, item_GK in enumerate(item_LGK):
        if previous is not None and previous.slot_gpu_S is slot_gpu_S:
            held = np.zeros((problem.experts, problem.gpus), dtype=np.bool_)
            gpu_N, item_N = np.nonzero(item_GK != EMPTY)
            held[item_GK[gpu_N, item_N], gpu_N] = True
            slot_expert_LS[row] = in_slots(held, slot_gpu_S, previous.slot_expert_LS[row])
        else:
            # As unsigned numbers empty places come last.
            sorted_GK = np.sort(item_GK.astype(np.uint16), axis=1).astype(np.int16)
            here_S = rank_S < item_GK.shape[1]
            slot_expert_LS[row, here_S] = sorted_GK[slot_gpu_S[here_S], rank_S[here_S]]
    return Placement(slot_expert_LS, slot_gpu_S, problem.experts, problem.gpus, problem.layers, origin)


def in_slots(held: Bools, slot_gpu_S: Int32s, before_S: Int16s) -> Int16s:
    """int16 [S], copies in the slots that held them before, the others by expert in what is free.

    One GPU has 2, 5 and 7, and had 7 and 2 in its first and last slot:

    >>> held = np.isin(np.arange(8), [2, 5, 7])[:, None]
    >>> in_slots(held, np.zeros(4, np.int32), np.array([7, 1, 7, 2], np.int16))
    array([ 7,  5, -1,  2], dtype=int16)

    Args:
        held: bool [E, G], on which GPUs each expert has a copy.
    """
    slot_expert_S, new = np.full_like(before_S, EMPTY), held.copy()
    stay_N = np.flatnonzero((before_S != EMPTY) & held[before_S, slot_gpu_S])
    # A second copy of one expert on the GPU makes room.
    pair_N = np.ravel_multi_index((before_S[stay_N], slot_gpu_S[stay_N]), held.shape)
    stay_N = stay_N[ranks(pair_N) == 0]
    slot_expert_S[stay_N] = before_S[stay_N]
    new[before_S[stay_N], slot_gpu_S[stay_N]] = False
    gpu_N, expert_N = np.nonzero(new.T)
    free_N = np.flatnonzero(slot_expert_S == EMPTY)
    free_N = free_N[np.argsort(slot_gpu_S[free_N], kind="stable")]
    # Of the GPUs' free slots, those from the first on.
    at_N = np.searchsorted(slot_gpu_S[free_N], gpu_N) + np.arange(len(gpu_N)) - np.searchsorted(gpu_N, gpu_N)
    slot_expert_S[free_N[at_N]] = expert_N
    return slot_expert_S
