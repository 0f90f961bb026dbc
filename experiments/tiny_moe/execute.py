"""The model run by several processes through the executor, beside the model in one process."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

from executor.dispatch.transport import Groups
from executor.ranks.launch import Launch
from executor.ranks.process_group import joined
from experiments.tiny_moe.corpus import Corpus
from experiments.tiny_moe.model import TinyMoe
from experiments.tiny_moe.spread import spread
from experiments.tiny_moe.train import held_out_bytes, loss_of
from placement.problem.placement import Placement
from placement.solvers.solvers import solve
from traces.sample import SAMPLE_TRACE
from traces.statistics import expert_loads
from traces.trace_file import read_trace


@torch.no_grad()
def execute(model: TinyMoe, corpus: Corpus) -> Table | None:
    """Called by every rank that torchrun has started, on one node; the table on rank 0, else None.

    Each rank reads four passages of each domain. A row for each placement: the held-out loss, that of the
    model in one process, and the largest difference of a logit.

    Raises:
        PlacementError: the experts do not divide over the ranks.
    """
    launch = Launch.from_environment()
    found = {}
    with joined(launch, torch.device("cpu")) as group:
        groups = Groups.make(launch.ranks, launch.ranks)
        passages = held_out_bytes(corpus, model.config.context + 1, sequences=4 * launch.ranks)
        bytes_BC = torch.cat([each[launch.rank :: launch.ranks] for each in passages.values()])
        alone, loss_alone = model(bytes_BC[:, :-1]), loss_of(model, bytes_BC)
        for name, placement in _placements(model, launch.ranks).items():
            here = spread(model, placement, groups)
            differs = float((here(bytes_BC[:, :-1]) - alone).abs().max())
            found[name] = group.gather(np.array([loss_of(here, bytes_BC), loss_alone, differs]))
    return _table(found, launch.ranks) if launch.rank == 0 else None


def _placements(model: TinyMoe, ranks: int) -> dict[str, Placement]:
    """In order; balanced for the loads of the sample; and that with an expert more on each rank."""
    load_LE = expert_loads(read_trace(SAMPLE_TRACE))
    experts, layers = model.config.experts, tuple(range(model.config.layers))
    chosen = {
        "linear": ("linear", experts),
        "swap": ("swap", experts),
        f"swap, {experts + ranks} slots": ("swap", experts + ranks),
    }
    return {
        name: solve(solver, load_LE, experts=experts, gpus=ranks, layers=layers, slots=slots)
        for name, (solver, slots) in chosen.items()
    }


def _table(found: dict[str, list[NDArray[np.float64]]], ranks: int) -> Table:
    table = Table(title=f"held-out loss on {ranks} ranks, nats a byte", title_justify="left")
    for column in ("placement", "executor", "one process", "largest difference of a logit"):
        table.add_column(column, justify="left" if column == "placement" else "right")
    for name, by_rank in found.items():
        executed, alone, differs = zip(*by_rank, strict=True)
        table.add_row(
            name, f"{sum(executed) / ranks:.5f}", f"{sum(alone) / ranks:.5f}", f"{max(differs):.1e}"
        )
    return table
