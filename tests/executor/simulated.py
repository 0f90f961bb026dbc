"""The simulator's counts of a plan; apart from the plans, so that ranks need not import the simulator."""

from __future__ import annotations

from executor.dispatch.routing import route
from executor.layer.moe_layer import TORCH_DTYPES
from executor.plan.plan import Plan, StepRouting
from moesim.analysis.counts import same_counts
from moesim.dispatch.count import count_work
from moesim.dispatch.work import Work
from moesim.hardware.transfer import Bytes
from moesim.simulation.recording import Recording
from traces.timeline import WorkTable


def simulated_work(plan: Plan, number: int) -> list[Work]:
    """What the simulator counts in each micro-batch of a step."""
    return [_work(plan, part) for part in plan.micro_batches(number)]


def _work(plan: Plan, part: StepRouting) -> Work:
    routed = route(plan, part)
    return count_work(
        routed.slot_LTK,
        part.offsets_G,
        plan.slot_gpu_S,
        plan.ranks_per_node,
        plan.mode,
        pad=plan.padded,
        path=routed.rank_XT,
    )


def equals_simulated(plan: Plan, counted: WorkTable) -> bool:
    """Whether counts are those of the simulation of the same plan."""
    recording = Recording(plan.name, plan.model.layers)
    for number in range(plan.steps):
        recording.add_work(number, simulated_work(plan, number))
    copy_bytes = plan.model.hidden * TORCH_DTYPES[plan.dtype].itemsize
    copy = Bytes(copy_bytes, copy_bytes)
    return same_counts(counted, recording.work(copy, reduces_to_all=plan.mode == "all_reduce"))
