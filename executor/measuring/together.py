"""All ranks at once, as in a real system: every repeat, step and layer of a plan, measured on each rank."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from executor.dispatch.transport import Groups
from executor.layer.lanes import lane
from executor.layer.moe_layer import TORCH_DTYPES, plan_layers
from executor.layer.spans import COLUMNS, clock_on
from executor.layer.step import most_tokens, of_rank, run_step
from executor.measuring.clock import aligned, measure_offsets
from executor.plan.options import Options
from executor.plan.plan import Plan
from executor.ranks.memory import check_memory
from executor.ranks.patience import phase_s, preparation_s
from executor.ranks.process_group import Group
from executor.ranks.progress import Mark
from executor.ranks.supervised import START_S, Patience


def measure_together(
    plan: Plan,
    options: Options,
    group: Group,
    groups: Groups,
    local_ranks: int,
    mark: Mark,
    patience: Patience,
) -> list[NDArray[np.int64]]:
    """The spans of every rank on rank 0's clock, as ``executor.layer.spans.COLUMNS`` says; else empty.

    Ranks meet only where a real system makes them: inside dispatch and combine, and at the end of a step,
    before which the schedulers of all ranks must agree on the next batch.

    Args:
        group, groups: all ranks, and those that dispatch uses.
        local_ranks: of this node, which share its memory.
        mark: told how far this rank has come.

    Raises:
        PlanError: the weights do not fit into memory.
    """
    device = group.device
    check_memory(plan, group.rank, device, local_ranks)
    patience(preparation_s(plan))
    mark.enter("routing")
    steps = of_rank(plan, group.rank, device)
    x_XH = inputs(plan, most_tokens(steps), device)
    # Only when every rank has asked for its memory does one take it.
    group.barrier()
    mark.enter("making of weights")
    spans = clock_on(device, mark.enter)
    layers = plan_layers(plan, groups, backend=options.backend, device=device, spans=spans)
    mark.enter("comparison of clocks")
    before = measure_offsets(group)
    # On a GPU the first pass compiles kernels and connects ranks.
    settled = options.passes.start + (device.type == "cuda")
    with no_garbage_collection(), lane(plan.overlap, device) as own:
        for repeat in options.passes:
            if repeat == settled:
                # Some have waited here for long, and must not be taken to hang once patience is short.
                mark.enter("begin")
                group.barrier()
                patience(phase_s(plan, device.type))
            for step, parts in enumerate(steps):
                run_step(plan, layers, parts, x_XH, own, repeat=repeat, step=step)
                mark.enter("end", repeat, step)
                group.barrier()
    mark.enter("comparison of clocks")
    patience(START_S)
    after = measure_offsets(group)
    tables = group.gather(spans.table())
    if before is not None and after is not None:
        times = [COLUMNS.index("start_ns"), COLUMNS.index("end_ns")]
        for rank, table_NC in enumerate(tables):
            table_NC[:, times] = aligned(table_NC[:, times], rank, before, after)
    return tables


def inputs(plan: Plan, rows: int, device: torch.device) -> Tensor:
    """Normal rows that every layer can be given: what they hold does not change how long it takes."""
    dtype = TORCH_DTYPES[plan.dtype]
    generator = torch.Generator(device).manual_seed(plan.seed)
    return torch.randn(rows, plan.model.hidden, generator=generator, dtype=dtype, device=device)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Nothing that runs inside the block is interrupted by Python's collector of cycles."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
