"""Run by torchrun: sends small plans through real processes; rank 0 pickles what came of them.

``torchrun … gloo_ranks.py OUT``: for each case the plan, the largest error of a layer, and the counts.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from executor.counting import count_plan, join_work
from executor.modes.transport import Groups
from executor.moe_layer import TORCH_DTYPES, plan_layers
from executor.plan import MODES, Plan
from executor.routing import route
from tests.executor.plans import expected, small_plan, step_inputs

_DROP = {"policy": "drop", "capacity_factor": 0.6}


def cases(ranks: int) -> Iterator[tuple[str, Plan]]:
    """Every mode, padded ones too, over nodes of every size; dtypes, drops and shared experts in turn."""
    turns = [("fp32", None, 0), ("bf16", _DROP, 4), ("fp16", _DROP, 0)]
    modes = [(mode, False) for mode in MODES] + [("per_expert", True), ("per_gpu", True)]
    for seed, (mode, padded) in enumerate(modes):
        for size in _sizes(ranks):
            dtype, routing, shared = turns[(seed + size) % len(turns)]
            known: dict[str, Any] = {"padded": padded, "routing": routing, "shared_width": shared}
            yield (
                f"{mode}{' padded' if padded else ''}, {size} per node, {dtype}",
                small_plan(ranks, size, mode, seed=seed, dtype=dtype, **known),
            )
    for mode in MODES if ranks == 2 else ():
        yield f"{mode}, idle rank", small_plan(ranks, 2, mode, seed=1, tokens=[0, 3])
        yield f"{mode}, one expert", small_plan(ranks, 2, mode, seed=2, one_expert=True, spare_slots=0)
        yield f"{mode}, top 8", small_plan(ranks, 2, mode, seed=3, top_k=8, experts=9)


def largest_error(plan: Plan, groups: Groups) -> float:
    """Of any value that a layer gives for a token that this rank then holds; infinite for a wrong shape."""
    dtype = TORCH_DTYPES[plan.dtype]
    routed = route(plan, plan.step(0))
    x_TH = step_inputs(plan, routed).to(dtype)
    worst = 0.0
    for row, layer in enumerate(plan_layers(plan, groups)):
        y_TH = layer(x_TH[routed.tokens(row, groups.rank)], routed.layer(row, groups.rank))
        wanted_TH = expected(plan, routed, row, x_TH, dtype)[routed.tokens(row + 1, groups.rank)]
        if y_TH.shape != wanted_TH.shape or y_TH.dtype != dtype:
            return float("inf")
        worst = max(worst, (y_TH - wanted_TH).abs().max().item() if len(y_TH) else 0.0)
    return worst


def _sizes(ranks: int) -> list[int]:
    """Ranks per node."""
    return [size for size in (1, 2, 4) if ranks % size == 0]


def main(out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    ranks, rank = dist.get_world_size(), dist.get_rank()
    groups = {size: Groups.make(ranks, size) for size in _sizes(ranks)}
    mine = {}
    for name, plan in cases(ranks):
        mine[name] = (
            largest_error(plan, groups[plan.ranks_per_node]),
            count_plan(plan, groups[plan.ranks_per_node]),
        )
    gathered: list[Any] | None = [None] * ranks if rank == 0 else None
    dist.gather_object(mine, gathered)
    dist.destroy_process_group()
    if gathered is None:
        return
    found = {}
    for name, plan in cases(ranks):
        errors, tables = zip(*(each[name] for each in gathered), strict=True)
        found[name] = (plan, max(errors), join_work(tables))
    out.write_bytes(pickle.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
