"""From what each GPU holds to slots, so that as little as possible changes place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from placement.problem.placement import EMPTY, Placement
from placement.problem.problem import Problem
from traces.base.arrays import Ints


def arranged(problem: Problem, item_LGK: Sequence[Ints], origin: str) -> Placement:
    """Experts on GPUs as a placement; what ``problem.previous`` has in a slot of the same GPU stays there.

    Args:
        item_LGK: for each layer int64 [G, K], the experts on each GPU, in any order, among ``EMPTY``; K is
            the most slots of a GPU, or the number of experts where that is less.
    """
    slot_gpu_S = problem.slot_gpu_S
    slot_expert_LS = np.full((len(item_LGK), problem.slots), EMPTY, dtype=np.int16)
    by_gpu_S = np.argsort(slot_gpu_S, kind="stable")
    first_G = np.cumsum(problem.slots_G) - problem.slots_G
    rank_S = np.arange(problem.slots) - first_G[slot_gpu_S[by_gpu_S]]
    for row, item_GK in enumerate(item_LGK):
        # As unsigned numbers empty places come last.
        sorted_GK = np.sort(item_GK.astype(np.uint16), axis=1).astype(np.int16)
        most = item_GK.shape[1]
        has_slot_GK = np.arange(most) < problem.slots_G[:, None]
        slot_expert_LS[row, by_gpu_S[rank_S < most]] = sorted_GK[has_slot_GK]
    previous = problem.previous
    if previous is not None and previous.slot_gpu_S is slot_gpu_S:
        for slot_N in np.split(by_gpu_S, first_G[1:]):
            for row, before_S in enumerate(previous.slot_expert_LS):
                kept_N = _in_place(slot_expert_LS[row, slot_N].tolist(), before_S[slot_N].tolist())
                slot_expert_LS[row, slot_N] = kept_N
    return Placement(slot_expert_LS, slot_gpu_S, problem.experts, problem.gpus, problem.layers, origin)


def _in_place(expert_N: list[int], before_N: list[int]) -> list[int]:
    """The experts of one GPU in slot order: those that it had in their slots, the others in what is free.

    >>> _in_place([2, 5, 7, EMPTY], [7, 1, 7, 2])
    [7, 5, -1, 2]
    """
    left = set(expert_N) - {EMPTY}
    after_N = []
    for before in before_N:
        after_N.append(before if before in left else EMPTY)
        left.discard(before)  # a second copy of one expert on the GPU makes room
    new = iter(sorted(left))
    return [next(new, EMPTY) if expert == EMPTY else expert for expert in after_N]
