"""What a policy is charged for on a GPU, in numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.hardware.kernels import Kernels
from moesim.hardware.network import Fabric
from moesim.hardware.policy_time import exchange_seconds, launching, pass_seconds, total
from moesim.routing.policy import Cost
from moesim.spec.cluster import load_cluster
from moesim.spec.presets import load_model
from moesim.spec.profile import DATA_SHEET, Profile, Roof
from moesim.spec.yaml_source import Source
from tests.tolerance import rounding

NOWHERE = Source(None, None, {})


def fabric(gpus: int) -> Fabric:
    """Nodes of 8 GPUs, as far as there are so many."""
    return Fabric(min(8, gpus), 1e11, 2e10, 1e-6, 3e-6)


def kernels(profile: Profile) -> Kernels:
    """DeepSeek-V3, 8 of 256 experts, on a GPU with 1 TB/s."""
    gpu = load_cluster("h800-1x8", NOWHERE).gpu.model_copy(update={"memory_bandwidth": 1e12})
    return Kernels(load_model({"base": "deepseek-v3"}, NOWHERE), gpu, profile)


def test_passes_read_tables_at_the_bandwidth_that_routers_reach() -> None:
    profile = DATA_SHEET.model_copy(update={"router": Roof(compute=1, memory=0.5)})
    found = pass_seconds(Cost(assignments=3, candidates=2), kernels(profile), np.array([0.0, 128.0]))
    # 3 · 8 · 8 bytes of assignments and 2 · 256 · 4 bytes of scores for each of 128 tokens.
    np.testing.assert_allclose(found, [0.0, 128 * 2240 / 0.5e12], rtol=rounding(1000))


def test_without_a_roof_of_their_own_routers_read_as_matrix_products_do() -> None:
    profile = DATA_SHEET.model_copy(update={"router": None, "gemm": Roof(compute=1, memory=0.25)})
    found = pass_seconds(Cost(assignments=1), kernels(profile), np.array([100.0]))
    np.testing.assert_allclose(found, [100 * 64 / 0.25e12], rtol=rounding(1000))


@pytest.mark.parametrize(
    ("gpus", "seconds"),
    [
        (8, 7 * 1024 / 1e11 + 1e-6),  # all over NVLink
        (16, 8 * 1024 / 2e10 + 3e-6),  # 8 over the NIC take longer than 7 over NVLink
        (1, 1e-6),  # nobody to tell: the latency alone
    ],
)
def test_an_exchange_takes_counts_of_all_experts_to_all_ranks(gpus: int, seconds: float) -> None:
    found = exchange_seconds(Cost(exchanges=2), 256, fabric(gpus), gpus)
    assert found == pytest.approx(2 * seconds, rel=rounding(1000))


def test_each_pass_and_each_exchange_is_a_launch() -> None:
    profile = DATA_SHEET.model_copy(update={"kernels": {"router": 2, "experts": 3}})
    charged = launching(profile, total([Cost(assignments=3), Cost(candidates=2), Cost(exchanges=1)]))
    assert charged.kernels == {"router": 8, "experts": 3}
    assert launching(profile, total([])) is profile
