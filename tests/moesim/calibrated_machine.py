"""A machine that a simulation stands in for: timelines of a calibration's plans with a known profile."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from moesim.calibration.design import Settings, write_spec
from moesim.calibration.observed import COLLECTIVES
from moesim.deployment.deployment import Deployment
from moesim.live.repeats import join_repeats
from moesim.simulation.run import run
from moesim.spec.base import validate
from moesim.spec.cluster import Cluster
from moesim.spec.links import Links
from moesim.spec.profile import DATA_SHEET, Profile, Roof, Tile
from traces.timeline import PHASES, Timeline, write_timeline

FLOPS, BANDWIDTH, LAUNCH_S, LINK = 60e9, 8e9, 4e-6, 1e9

TRUTH = DATA_SHEET.model_copy(
    update={
        "name": "truth",
        "grouped_gemm": Roof(compute=0.8, memory=0.7, overlap=0.0),
        "router": Roof(compute=0.2, memory=0.7, overlap=0.0),
        "tiles": (Tile(rows=1, efficiency=0.2), Tile(rows=16, efficiency=1.0, start=12.0)),
        "loop": True,
        "fused_activation": False,
        "launch": LAUNCH_S,
        "kernels": {"router": 40},
        "dispatch": {
            mode: Links(nvlink=1, nic=1, fixed=fixed, counts=2e-4, arrange=0.5)
            for mode, fixed in (
                ("per_gpu", 5e-4),
                ("per_expert", 6e-4),
                ("all_gather", 7e-4),
                ("all_reduce", 8e-4),
            )
        },
    }
)


def machine(ranks: int) -> Cluster:
    """The cluster of that machine."""
    gpu = {
        "name": "Test core",
        "memory": 4 << 30,
        "memory_bandwidth": BANDWIDTH,
        "flops": {"fp32": FLOPS},
        "sms": 1,
        "nvlink": {"bandwidth": LINK},
    }
    return validate(Cluster, {"gpu": gpu, "gpus_per_node": ranks, "nic": {"bandwidth": LINK}})


def as_truth(deployment: Deployment, profile: Profile = TRUTH, cluster: Cluster | None = None) -> Deployment:
    """The same deployment on that machine."""
    cluster = cluster or machine(deployment.scenario.parallelism.ep)
    scenario = deployment.scenario.model_copy(update={"profile": profile, "cluster": cluster})
    return dataclasses.replace(deployment, scenario=scenario)


def measure(
    settings: Settings, folder: Path, *, noise: float = 0.0, repeats: int = 6
) -> Sequence[Deployment]:
    """The plans of a calibration; what its microbenchmarks would find is written into ``folder``/measured."""
    simulated = _simulated(dataclasses.replace(settings, seconds=0.0))
    rng = np.random.default_rng(0)
    (folder / "measured").mkdir()
    for each, timeline in simulated:
        noisy = join_repeats([_disturbed(timeline, noise, rng) for _ in range(repeats)])
        write_timeline(noisy, folder / "measured" / f"{each.scenario.name}.parquet")
    peaks = {"flops": FLOPS, "bandwidth": BANDWIDTH, "launch_s": LAUNCH_S, "exchange_s": 1e-4}
    found = {
        "format": "moesim.machine/1",
        "kind": "cpu",
        "device": "Test",
        "memory": 4 << 30,
        "sms": 1,
        "torch": "0",
        "peaks": [peaks] * settings.ranks,
    }
    (folder / "measured" / "machine.json").write_text(json.dumps(found))
    return [each for each, _ in simulated]


@cache
def _simulated(settings: Settings) -> Sequence[tuple[Deployment, Timeline]]:
    """The plans, and how each runs on that machine: the same for all tests."""
    with tempfile.TemporaryDirectory() as folder:
        return [(each, run(as_truth(each)).timeline) for each in write_spec(settings, Path(folder))]


def _disturbed(timeline: Timeline, noise: float, rng: np.random.Generator) -> Timeline:
    """Every span shorter by up to twice the noise: kernels begin later, collectives end earlier."""
    lost_s_N = (timeline.end_s_N - timeline.start_s_N) * 2 * noise * rng.random(len(timeline))
    meets_N = np.isin(timeline.phase_N, [PHASES.index(phase) for phase in COLLECTIVES])
    return dataclasses.replace(
        timeline,
        start_s_N=timeline.start_s_N + np.where(meets_N, 0.0, lost_s_N),
        end_s_N=timeline.end_s_N - np.where(meets_N, lost_s_N, 0.0),
    )
