"""``torchrun … -m executor.microbench SPEC.json -o OUT``: what a machine reaches, and layers of some plans.

SPEC.json names plans (folders beside it) that differ in routing and dispatch mode alone. Their layers share
weights and run in turns, so that whatever else the machine does disturbs all of them alike. OUT, a folder,
gets ``machine.json``, what each rank reaches at best, and ``NAME.parquet``, a timeline for each plan.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from executor.clock import aligned, measure_offsets
from executor.errors import PlanError
from executor.launch import Launch
from executor.measure import Peaks, measure_peaks
from executor.memory import check_memory
from executor.modes.catalogue import dispatcher
from executor.modes.transport import Groups, Transport
from executor.moe_layer import TORCH_DTYPES, MoELayer, plan_layers
from executor.plan import Plan, read_plan
from executor.process_group import Group, device_of, joined
from executor.recording import timeline
from executor.routing import LayerRouting, route
from executor.spans import COLUMNS, CudaSpans, HostSpans, clock_on
from executor.together import inputs, no_garbage_collection
from traces.errors import MoesimError
from traces.files import check_format, write_text
from traces.memory import physical_memory
from traces.timeline import write_timeline

_LEAST_REPEATS = 5
_WARMUP = 1


@dataclass(frozen=True)
class Spec:
    """What to measure.

    Attributes:
        plans: folders of plans, all for the same ranks, placement and weights.
        device, backend, threads: as of ``executor``.
        seconds: how long to repeat the plans; five times they run in any case.
    """

    plans: tuple[Path, ...]
    device: str
    backend: str
    threads: int
    seconds: float

    @classmethod
    def read(cls, file: Path) -> Spec:
        """From SPEC.json.

        Raises:
            PlanError: the file cannot be read, or lacks a field.
        """
        try:
            value = json.loads(file.read_bytes())
        except OSError as error:
            raise PlanError(f"cannot be read: {error.strerror or error}", file=file) from error
        except (ValueError, RecursionError) as error:
            raise PlanError(f"is not JSON: {error}", file=file) from error
        if not isinstance(value, dict):
            raise PlanError("must be a JSON object", file=file)
        check_format(value.get("format"), "microbench", 1, file=file, error=PlanError)
        try:
            plans = tuple(file.parent / name for name in value["plans"])
            device, backend = str(value["device"]), str(value["backend"])
            return cls(plans, device, backend, int(value["threads"]), float(value["seconds"]))
        except (KeyError, TypeError, ValueError) as error:
            raise PlanError(f"lacks a field, or it is of another type: {error!r}", file=file) from error


@dataclass(frozen=True)
class Bench:
    """A plan that is ready to run on this rank, on its own clock."""

    plan: Plan
    layers: Sequence[MoELayer]
    routing: Sequence[Sequence[LayerRouting]]
    spans: HostSpans | CudaSpans

    def run(self, repeat: int, x_XH: torch.Tensor, group: Group) -> None:
        """Every step once."""
        for step, choices in enumerate(self.routing):
            for index, layer, choice in zip(self.plan.model.layers, self.layers, choices, strict=True):
                self.spans.begin(repeat, step, index)
                layer(x_XH[: len(choice.token_T)], choice)
            group.barrier()


def measure(spec: Spec, plans: Sequence[Plan], group: Group, local_ranks: int) -> tuple[Peaks, list[Bench]]:
    """Peaks first, then all plans in turns until the time is over."""
    peaks = measure_peaks(group, TORCH_DTYPES[plans[0].dtype])
    check_memory(plans[0], group.rank, group.device, local_ranks)
    benches = prepare(spec, plans, group)
    rows = max(len(choice.token_T) for bench in benches for step in bench.routing for choice in step)
    x_XH = inputs(plans[0], rows, group.device)
    group.barrier()
    begun_s = time.monotonic()
    with no_garbage_collection():
        repeat = -_WARMUP
        while repeat < _LEAST_REPEATS or goes_on(time.monotonic() - begun_s < spec.seconds, group):
            for bench in benches:
                bench.run(repeat, x_XH, group)
            repeat += 1
    return peaks, benches


def prepare(spec: Spec, plans: Sequence[Plan], group: Group) -> list[Bench]:
    """The weights of the first plan serve all of them."""
    groups = Groups.make(group.ranks, plans[0].ranks_per_node)
    layers = plan_layers(plans[0], groups, backend=spec.backend, device=group.device)
    benches = []
    for plan in plans:
        spans, transport = clock_on(group.device, lambda *_: None), Transport()
        sending = dispatcher(
            plan.mode, groups, plan.slot_gpu_S, transport, padded=plan.padded, device=group.device
        )
        own = [replace(layer, dispatcher=sending, transport=transport, spans=spans) for layer in layers]
        routed = [route(plan, plan.step(step)) for step in range(plan.steps)]
        rows = range(len(layers))
        routing = [[step.layer(row, group.rank, group.device) for row in rows] for step in routed]
        benches.append(Bench(plan, own, routing, spans))
    return benches


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


def run(spec: Spec, out: Path, launch: Launch) -> None:
    """Measure on this rank; rank 0 writes when all have ended."""
    plans = [read_plan(folder) for folder in spec.plans]
    launch.check(plans[0], serial=False)
    torch.set_num_threads(spec.threads)
    device = device_of(spec.device, launch)
    with joined(launch, device) as group, torch.inference_mode():
        before = measure_offsets(group)
        peaks, benches = measure(spec, plans, group, launch.local_ranks)
        after = measure_offsets(group)
        all_peaks = group.gather(peaks.to_dict())
        tables = [group.gather(bench.spans.table()) for bench in benches]
        if before is None or after is None:
            return
        times = [COLUMNS.index("start_ns"), COLUMNS.index("end_ns")]
        for folder, of_ranks in zip(spec.plans, tables, strict=True):
            recorded = [_recorded(table_NC) for table_NC in of_ranks]
            for rank, table_NC in enumerate(recorded):
                table_NC[:, times] = aligned(table_NC[:, times], rank, before, after)
            write_timeline(timeline(folder.name, recorded), out / f"{folder.name}.parquet")
        machine = {
            "format": "moesim.machine/1",
            "kind": device.type,
            "device": device_name(device),
            "memory": _memory(device, launch),
            "sms": _multiprocessors(device),
            "torch": str(torch.__version__),
            "peaks": all_peaks,
        }
        write_text(out / "machine.json", json.dumps(machine, indent=1) + "\n")


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


def main() -> None:
    """The command line of one rank."""
    parser = argparse.ArgumentParser(prog="executor.microbench")
    parser.add_argument("spec", type=Path)
    parser.add_argument("-o", dest="out", type=Path, required=True)
    options = parser.parse_args()
    try:
        run(Spec.read(options.spec), options.out, Launch.from_environment())
    except MoesimError as error:
        print(f"executor: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
