"""Running a plan on one rank, and writing what all of them measured."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch

from executor.dispatch.transport import Groups
from executor.measuring.counting import count_plan, join_work
from executor.measuring.recording import timeline
from executor.measuring.serial import measure_in_turns
from executor.measuring.together import measure_together
from executor.plan.options import Options
from executor.plan.plan import Plan
from executor.ranks.launch import Launch
from executor.ranks.patience import phase_s, preparation_s
from executor.ranks.process_group import Group, device_of, joined
from executor.ranks.progress import Mark
from executor.ranks.supervised import Patience
from traces.base.files import write_json
from traces.timeline import Timeline, WorkTable, write_timeline, write_work


def run(plan: Plan, options: Options, launch: Launch, mark: Mark, patience: Patience) -> Timeline | None:
    """Run a plan; rank 0 writes the timeline when all have ended, and returns it.

    Args:
        plan, options: the same on every rank.
        launch: which one this is.
        mark: told how far this rank has come.

    Raises:
        PlanError: the plan does not fit the ranks, their devices or their memory.
        OutputError: the timeline cannot be written.
    """
    launch.check(plan, serial=options.serial)
    torch.set_num_threads(options.threads)
    device = device_of(options.device, launch)
    mark.enter("joining")
    slowest_s = max(preparation_s(plan), phase_s(plan, device.type))
    with joined(launch, device, slowest_s) as group, torch.inference_mode():
        counts: list[WorkTable] = []
        if options.serial:
            tables = measure_in_turns(plan, options, device, mark, patience)
        else:
            groups = Groups.make(plan.ranks, plan.ranks_per_node, group.timeout)
            tables = measure_together(plan, options, group, groups, launch.local_ranks, mark, patience)
            if options.count:
                mark.enter("counting")
                own = count_plan(plan, groups, device)
                columns = [group.gather(getattr(own, column.name)) for column in fields(WorkTable)]
                counts = [WorkTable(*rank) for rank in zip(*columns, strict=True)]
        mark.enter("writing")
        measured = None
        if group.rank == 0:
            if counts:
                write_work(join_work(counts), options.out / "work.parquet")
            write_json(options.out / "run.json", _describe(options, group))
            # The timeline comes last: where it is, all is.
            measured = timeline(plan.name, tables, together=not options.serial)
            write_timeline(measured, options.out / "timeline.parquet")
        # Nobody is done before the files are there.
        group.barrier()
    return measured


def _describe(options: Options, group: Group) -> dict[str, Any]:
    gpu = group.device.type == "cuda"
    return {
        "format": "moesim.run/1",
        "device": torch.cuda.get_device_name(group.device) if gpu else "cpu",
        "backend": options.backend,
        "threads": options.threads,
        "repeats": options.repeats,
        "warmup": options.warmup,
        "serial": options.serial,
        "torch": str(torch.__version__),
    }
