"""The layers of several plans, run in turns on one rank and measured like those of a single one."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from executor.dispatch.modes import dispatcher
from executor.dispatch.transport import Groups, Transport
from executor.layer.lanes import InLine
from executor.layer.moe_layer import TORCH_DTYPES, MoELayer, plan_layers
from executor.layer.spans import COLUMNS, CudaSpans, HostSpans, clock_on
from executor.layer.step import RankStep, most_tokens, of_rank, run_step
from executor.measuring.clock import aligned, measure_offsets
from executor.measuring.measure import measure_peaks
from executor.measuring.recording import timeline
from executor.measuring.spec import MACHINE, Spec
from executor.measuring.together import inputs, no_garbage_collection
from executor.plan.errors import PlanError
from executor.plan.plan import Plan
from executor.plan.plan_file import read_plan
from executor.ranks.launch import Launch
from executor.ranks.memory import check_memory
from executor.ranks.patience import phase_s, preparation_s
from executor.ranks.process_group import Group, device_of, joined
from executor.ranks.progress import Mark
from executor.ranks.supervised import START_S, Patience
from traces.base.files import write_json
from traces.base.memory import physical_memory
from traces.timeline import write_timeline

_LEAST_REPEATS = 5
_WARMUP = 1
_TIMES = [COLUMNS.index("start_ns"), COLUMNS.index("end_ns")]


@dataclass(frozen=True)
class Bench:
    """A plan that is ready to run on this rank, on its own clock."""

    plan: Plan
    layers: Sequence[MoELayer]
    steps: Sequence[RankStep]
    spans: HostSpans | CudaSpans

    def run(self, repeat: int, x_XH: Tensor, group: Group, mark: Mark) -> None:
        """Every step once."""
        for step, parts in enumerate(self.steps):
            run_step(self.plan, self.layers, parts, x_XH, InLine(), repeat=repeat, step=step)
            mark.enter("end", repeat, step)
            group.barrier()


def measure(spec: Spec, benches: Sequence[Bench], group: Group, mark: Mark, patience: Patience) -> None:
    """All plans in turns, until the time is over."""
    rows = max(most_tokens(bench.steps) for bench in benches)
    x_XH = inputs(benches[0].plan, rows, group.device)
    group.barrier()
    begun_s = time.monotonic()
    with no_garbage_collection():
        repeat = -_WARMUP
        while repeat < _LEAST_REPEATS or goes_on(time.monotonic() - begun_s < spec.seconds, group):
            if repeat == 0:
                # Some have waited here for long, and must not be taken to hang once patience is short.
                mark.enter("begin")
                group.barrier()
                patience(slowest_s([bench.plan for bench in benches], group.device.type))
            for bench in benches:
                bench.run(repeat, x_XH, group, mark)
            repeat += 1


def prepare(spec: Spec, plans: Sequence[Plan], group: Group, mark: Mark) -> list[Bench]:
    """The weights of the first plan serve all of them."""
    groups = Groups.make(group.ranks, plans[0].ranks_per_node, group.timeout)
    layers = plan_layers(plans[0], groups, backend=spec.backend, device=group.device)
    benches = []
    for plan in plans:
        spans, transport = clock_on(group.device, mark.enter), Transport()
        sending = dispatcher(
            plan.mode, groups, plan.slot_gpu_S, transport, padded=plan.padded, device=group.device
        )
        own = [replace(layer, dispatcher=sending, transport=transport, spans=spans) for layer in layers]
        benches.append(Bench(plan, own, of_rank(plan, group.rank, group.device), spans))
    return benches


def slowest_s(plans: Sequence[Plan], device: str) -> float:
    """How long a healthy rank may stay in a phase of any of the plans."""
    return max(phase_s(plan, device) for plan in plans)


def goes_on(mine: bool, group: Group) -> bool:
    """Rank 0's answer, on every rank."""
    if group.control is None:
        return mine
    answer = torch.tensor([mine])
    dist.broadcast(answer, 0, group=group.control)
    return bool(answer)


def device_name(device: torch.device) -> str:
    """What the maker calls it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def read_plans(folders: Sequence[Path]) -> list[Plan]:
    """Plans that can share their weights.

    Raises:
        PlanError: one breaks its format, or is not like the first.
    """
    plans = [read_plan(folder) for folder in folders]
    first = plans[0]
    for folder, plan in zip(folders, plans, strict=True):
        same = (plan.model, plan.ranks, plan.dtype, plan.seed) == (
            first.model,
            first.ranks,
            first.dtype,
            first.seed,
        )
        if not (
            same
            and np.array_equal(plan.slot_expert_LS, first.slot_expert_LS)
            and np.array_equal(plan.slot_gpu_S, first.slot_gpu_S)
        ):
            rule = "must all have the shape, the ranks and the slots of the first one"
            raise PlanError(rule, field="plans", got=folder.name)
        if plan.overlap:
            raise PlanError("must have no overlap: phases are measured alone", field="plans", got=folder.name)
    return plans


def run(spec: Spec, out: Path, launch: Launch, mark: Mark, patience: Patience) -> None:
    """Measure on this rank; rank 0 writes when all have ended.

    Raises:
        PlanError: the plans do not fit the ranks, their devices or their memory.
        OutputError: the results cannot be written.
    """
    plans = read_plans(spec.plans)
    launch.check(plans[0], serial=False)
    torch.set_num_threads(spec.threads)
    device = device_of(spec.device, launch)
    mark.enter("joining")
    healthy_s = max(preparation_s(plans[0]), slowest_s(plans, device.type))
    with joined(launch, device, healthy_s) as group, torch.inference_mode():
        check_memory(plans[0], launch.rank, device, launch.local_ranks)
        mark.enter("measuring of peaks")
        peaks = measure_peaks(group, TORCH_DTYPES[plans[0].dtype])
        patience(preparation_s(plans[0]))
        mark.enter("making of weights")
        benches = prepare(spec, plans, group, mark)
        before = measure_offsets(group)
        measure(spec, benches, group, mark, patience)
        mark.enter("writing")
        patience(START_S)
        after = measure_offsets(group)
        reached = [
            dict(zip(asdict(peaks), rank.tolist(), strict=True))
            for rank in group.gather(np.array(list(asdict(peaks).values())))
        ]
        tables = [group.gather(bench.spans.table()) for bench in benches]
        if before is not None and after is not None:
            for folder, of_ranks in zip(spec.plans, tables, strict=True):
                recorded = [_recorded(table_NC) for table_NC in of_ranks]
                for rank, table_NC in enumerate(recorded):
                    table_NC[:, _TIMES] = aligned(table_NC[:, _TIMES], rank, before, after)
                write_timeline(timeline(folder.name, recorded), out / f"{folder.name}.parquet")
            write_json(out / MACHINE, _describe(device, launch, reached))
        # Nobody is done before the files are there.
        group.barrier()


def _describe(device: torch.device, launch: Launch, peaks: list[dict[str, float]]) -> dict[str, Any]:
    return {
        "format": "moesim.machine/1",
        "kind": device.type,
        "device": device_name(device),
        "memory": _memory(device, launch),
        "sms": _multiprocessors(device),
        "torch": str(torch.__version__),
        "peaks": peaks,
    }


def _recorded(table_NC: NDArray[np.int64]) -> NDArray[np.int64]:
    """Without the warm-up."""
    return table_NC[table_NC[:, COLUMNS.index("repeat")] >= 0]


def _memory(device: torch.device, launch: Launch) -> int:
    """Bytes for each rank."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return physical_memory() // launch.local_ranks


def _multiprocessors(device: torch.device) -> int:
    """Of a GPU; a rank on CPU counts as one."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
