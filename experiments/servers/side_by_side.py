"""DeepSeek's training profile: transfers beside kernels, and matrices beside transfers."""

from __future__ import annotations

import numpy as np

from experiments.comparison import Row
from experiments.servers.step import deployed
from moesim.deployment.deployment import Deployment
from moesim.hardware.gemm import Matrix, Rates, Rows, gemm_seconds
from moesim.simulation.price import priced
from moesim.simulation.program import Program
from moesim.spec.profile import Profile

_SMS = 20
"""Multiprocessors of the transfers; all others compute."""


def side_by_side() -> list[Row]:
    """What dispatch and combine take beside kernels, and the experts' matrices beside transfers.

    The measured ones hold the waiting for other GPUs' kernels: transfers can be faster, not slower.
    """
    deployment = deployed("training")
    profile = _with_sms(deployment.scenario.profile)
    deployment = deployed("training", profile=profile.model_dump(mode="json"))
    (step,) = priced(deployment)
    gate_up_s, down_s = _matrices_s(deployment, step.program)
    measured_us = (
        ("dispatch, at most", 4346.0, _transfer_s(deployment, step.program, "dispatch")),
        ("combine, at most", 6181.0, _transfer_s(deployment, step.program, "combine")),
        ("gate and up", 1862.0, gate_up_s),
        ("down", 1035.0, down_s),
    )
    return [Row(f"training, {name}", "µs", us, 1e6 * seconds) for name, us, seconds in measured_us]


def _with_sms(profile: Profile) -> Profile:
    links = profile.dispatch["per_node"].model_copy(update={"sms": _SMS})
    return profile.model_copy(update={"dispatch": {**profile.dispatch, "per_node": links}})


def _transfer_s(deployment: Deployment, program: Program, phase: str) -> float:
    """Mean seconds of a collective beside kernels, when all GPUs enter together."""
    network = deployment.pricing.network(deployment.scenario.profile)
    seconds = []
    for operation in program.operations:
        if operation.phase == phase and operation.transfer is not None:
            transfer, now_G = operation.transfer, np.zeros(len(operation.busy_G))
            wire_G = network.collective(now_G, transfer.first_GG, transfer.second_GG)
            seconds.append(float((wire_G + operation.seconds_G).mean()))
    return float(np.mean(seconds))


def _matrices_s(deployment: Deployment, program: Program) -> tuple[float, float]:
    """Mean seconds of gate and up, and of down, longer by as much as all of the experts' kernels are."""
    scenario = deployment.scenario
    gpu, model, profile = scenario.cluster.gpu, scenario.model, scenario.profile
    experts = [each for each in program.operations if each.phase == "experts"]
    slowed = float(np.mean([1.0 + (each.wire_G / each.busy_G).mean() for each in experts]))
    served = float(np.mean([each.assignments_G.mean() for each in experts]))
    slots = model.experts.count / scenario.parallelism.ep
    left = gpu.sms - _SMS
    rates = Rates(gpu.peak_flops("fp8") * left / gpu.sms, gpu.memory_bandwidth, left)
    tiles_MX = np.array([[slots * np.ceil(served / slots / tile.rows)] for tile in profile.tiles])
    rows = Rows(tiles_MX, np.array([slots]), np.array([served]))
    width, hidden = model.experts.width, model.hidden
    gate_up, down = Matrix(2 * width, hidden, 1, 1, 2), Matrix(hidden, width, 1, 1, 2)
    first_s, second_s = (
        float(gemm_seconds(rows, each, profile.grouped_gemm, profile, rates)[0]) for each in (gate_up, down)
    )
    return first_s * slowed, second_s * slowed
