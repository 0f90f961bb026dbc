"""What a real run makes of a scenario: everything that only a simulation can do is gone, and said."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.deployment.deployment import deploy
from moesim.errors import MemoryFitError, SpecError
from moesim.live.scenario import Executable, cpu_ranks, crowded, executable, local_gpus, own_cluster
from moesim.spec.override import Override
from moesim.spec.presets import preset_names
from moesim.spec.scenario import Scenario
from tests.examples import examples
from tests.moesim.tiny import TINY, tiny_scenario, write_scenario
from traces.base.memory import physical_memory

MODEL = TINY["model"]
# With multiprocessors to spare for overlapping transfers.
GPU = TINY["cluster"]["gpu"] | {"sms": 100, "flops": dict.fromkeys(("fp32", "bf16", "fp16"), "1 TFLOPS")}
CLUSTER = TINY["cluster"] | {"gpu": GPU}


def on_cpu(path: Path | str, ranks: int, *options: str) -> Executable:
    return executable(str(path), [Override.parse(option) for option in options], ranks, cpu_ranks)


def runs_for_real(scenario: Scenario, ranks: int) -> bool:
    """Every rule that the executor relies on."""
    model, dispatch = scenario.model, scenario.dispatch
    dtypes = {model.activation_dtype, model.weight_dtype, *(kind.dtype for kind in model.kinds)}
    return (
        (scenario.parallelism.ep, scenario.parallelism.tp) == (ranks, 1)
        and scenario.workload.part == "moe"
        and scenario.workload.graph_sizes is None
        and not scenario.faults
        and dtypes | {dispatch.dtype, dispatch.combine_dtype} in ({"fp32"}, {"bf16"}, {"fp16"})
        and scenario.cluster.gpus == ranks
    )


def test_each_change_is_said(tmp_path: Path) -> None:
    fine = {"name": "fine", "width": 16, "dtype": "fp8", "experts": [3]}
    scenario = tiny_scenario(
        model=MODEL | {"expert_dtype": "fp8", "experts": MODEL["experts"] | {"kinds": [fine]}},
        cluster=CLUSTER,
        parallelism={"ep": 4, "tp": 2},
        overlap=["two_batch"],
        faults=[{"gpu": 1, "clock": 0.5}],
        dispatch={"mode": "per_node", "dtype": "fp8", "combine_dtype": "bf16"},
        workload=TINY["workload"] | {"tokens_per_gpu": [4, 5, 6, 7], "graph_sizes": [8]},
        placement={"solver": "greedy", "slots": 8},
    )
    found = on_cpu(write_scenario(tmp_path, scenario), 3)
    assert runs_for_real(found.scenario, 3)
    assert found.notes == (
        "cluster is this machine's CPU, not tiny-2x2",
        "parallelism.tp is 1, not 2: attention does not run",
        "parallelism.ep is 3, not 4",
        "workload.part is moe, not model: only the MoE part of each layer runs, gate to combine",
        "workload.graph_sizes is none, not [8]: batches run as they are",
        "workload.tokens_per_gpu is [4, 5, 6], not [4, 5, 6, 7]: dealt to 3 ranks",
        "faults is none, not [{'gpu': 1, 'clock': 0.5, 'from_s': 0.0}]: hardware is what it is",
        "model.expert_dtype is bf16, not fp8: the executor multiplies fp32, bf16, fp16, all in one dtype",
        "model.experts.kinds is [{'name': 'fine', 'width': 16, 'experts': [3]}], not "
        "[{'name': 'fine', 'width': 16, 'dtype': 'fp8', 'experts': […: "
        "the executor multiplies fp32, bf16, fp16, all in one dtype",
        "dispatch.dtype is bf16, not fp8: activations travel as they are",
        "placement.slots is 9, not 8: every one of 3 ranks has as many",
    )


def test_what_can_run_stays_as_it_is(tmp_path: Path) -> None:
    found = on_cpu(write_scenario(tmp_path, tiny_scenario()), 4, "workload.part=moe")
    assert found.notes == ("cluster is this machine's CPU, not tiny-2x2",)
    kept = ("model", "trace", "workload", "placement", "routing", "dispatch", "seed", "replicas")
    asked = executable(str(tmp_path / "scenario.yaml"), [], 4, own_cluster).scenario
    for field in kept:
        assert getattr(found.scenario, field) == getattr(asked, field), field


@pytest.mark.parametrize("name", preset_names("scenarios"))
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_every_preset_can_be_executed(name: str, ranks: int) -> None:
    assert runs_for_real(on_cpu(name, ranks).scenario, ranks)


def test_a_profiles_machine_is_called_that() -> None:
    """It may have the name of the CPU that runs."""
    assert "cluster is this machine's CPU, not the profile's" in on_cpu("cpu-ep2", 2).notes


def test_what_fits_the_asked_ranks_alone_is_understood(tmp_path: Path) -> None:
    """Ten slots do not divide over the scenario's four GPUs, but over the two ranks that were asked for."""
    path = write_scenario(tmp_path, tiny_scenario(placement={"solver": "greedy", "slots": 10}))
    found = on_cpu(path, 2)
    assert found.scenario.placement.slots == 10
    with pytest.raises(SpecError, match="does not divide over 4 GPUs"):
        on_cpu(path, 3)


def test_a_fault_of_the_scenario_is_still_one(tmp_path: Path) -> None:
    path = write_scenario(tmp_path, tiny_scenario(seed=-1))
    with pytest.raises(SpecError, match=r"scenario\.yaml:\d+: seed: must be at least 0"):
        on_cpu(path, 2)


def test_a_plan_for_a_cluster_fills_its_nodes(tmp_path: Path) -> None:
    path = str(write_scenario(tmp_path, tiny_scenario()))
    for ranks, nodes, per_node in ((1, 1, 1), (2, 1, 2), (6, 3, 2)):
        cluster = executable(path, [], ranks, own_cluster).scenario.cluster
        assert (cluster.nodes, cluster.gpus_per_node, cluster.gpu.name) == (nodes, per_node, "tiny")
    with pytest.raises(SpecError, match=r"--ranks parallelism\.ep: .*must"):
        executable(path, [], 3, own_cluster)


def test_ranks_on_a_cpu_share_its_memory_or_take_turns(tmp_path: Path) -> None:
    path = str(write_scenario(tmp_path, tiny_scenario()))
    share = executable(path, [], 2, cpu_ranks).scenario.cluster.gpu.memory
    alone = executable(path, [], 2, lambda asked, ranks: cpu_ranks(asked, ranks, serial=True)).scenario
    assert (share, alone.cluster.gpu.memory) == (physical_memory() // 2, physical_memory())
    gpus = executable(path, [], 2, local_gpus).scenario.cluster
    assert (gpus.gpu.name, gpus.gpu.memory, gpus.nodes, gpus.gpus_per_node) == ("tiny", 1e9, 1, 2)


def test_experts_that_do_not_fit_say_how_much_is_missing(tmp_path: Path) -> None:
    found = on_cpu(write_scenario(tmp_path, tiny_scenario()), 2, "model.experts.width=1000000000")
    with pytest.raises(MemoryFitError, match=r"needs .* on GPU 0 .*more than cpu offers"):
        deploy(found.scenario)


def test_a_profile_of_other_hardware_does_not_matter(tmp_path: Path) -> None:
    found = on_cpu(write_scenario(tmp_path, tiny_scenario()), 2, "profile.gpu=tiny")
    assert found.scenario.profile.name == "generic"
    assert not any("profile" in note for note in found.notes)


def test_crowded_cores_are_remarked() -> None:
    cores = os.cpu_count() or 1
    assert crowded(cores) is None
    assert crowded(cores + 1) == f"{cores + 1} ranks share {cores} cores, and slow each other down"


DTYPES = st.sampled_from(["fp32", "bf16", "fp16", "fp8"])


@settings(max_examples=examples(25))
@given(
    ranks=st.integers(1, 9),
    dtypes=st.fixed_dictionaries(
        {"activation_dtype": st.sampled_from(["fp32", "bf16", "fp16"]), "expert_dtype": DTYPES}
    ),
    slots=st.sampled_from([None, 8, 12, 16, 32]),
    tokens=st.sampled_from([4, [1, 2, 3, 4], {"uniform": [1, 5]}]),
    overlap=st.sampled_from(["none", "two_batch", "shared_expert"]),
    mode=st.sampled_from(["per_gpu", "per_node", "all_reduce", "expert_to_expert"]),
)
def test_every_scenario_can_be_executed(
    tmp_path_factory: pytest.TempPathFactory,
    ranks: int,
    dtypes: dict[str, str],
    slots: int | None,
    tokens: Any,
    overlap: str,
    mode: str,
) -> None:
    scenario = tiny_scenario(
        model=MODEL | dtypes,
        cluster=CLUSTER,
        placement={"solver": "greedy", "slots": slots},
        workload=TINY["workload"] | {"tokens_per_gpu": tokens},
        overlap=overlap,
        dispatch={"mode": mode},
    )
    found = on_cpu(write_scenario(tmp_path_factory.mktemp("scenario"), scenario), ranks)
    assert runs_for_real(found.scenario, ranks)
    assert found.scenario.dispatch.mode == mode
    assert deploy(found.scenario).placement.gpus == ranks
