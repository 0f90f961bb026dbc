"""Plans: what is written is what the simulation replays, and what is broken is refused in one line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from executor.plan.errors import PlanError
from executor.plan.plan import Kind, Plan
from executor.plan.plan_file import read_plan
from moesim.deployment.batch import batches, gather_ids, gather_weights
from moesim.deployment.deployment import Deployment, deploy
from moesim.live.plan import write_plan
from moesim.spec.scenario import load_scenario
from tests.moesim.command import files
from tests.moesim.tiny import tiny_scenario, write_scenario
from tests.traces.mutations import damaged_bytes, damaged_fields

ARRAYS = ("ids", "offsets", "replica_count", "replica_slots", "slot_expert", "slot_gpu", "weights")


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """Replicas, drops, several steps."""
    scenario = tiny_scenario(
        placement={"solver": "greedy", "slots": 12},
        routing={"policy": "drop", "capacity_factor": 1.25},
        dispatch={"mode": "per_expert", "padded": True},
        seed=3,
    )
    return deploy(load_scenario(str(write_scenario(tmp_path_factory.mktemp("scenario"), scenario))))


@pytest.fixture(scope="module")
def folder(deployment: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan") / "new" / "plan"
    write_plan(deployment, folder)
    return folder


def test_what_is_written_is_read(deployment: Deployment, folder: Path) -> None:
    plan, scenario = read_plan(folder), deployment.scenario
    assert (plan.name, plan.ranks, plan.ranks_per_node, plan.steps, plan.seed) == ("tiny", 4, 2, 2, 3)
    assert (plan.dtype, plan.mode, plan.padded, plan.replicas) == ("bf16", "per_expert", True, "round_robin")
    assert plan.routing == scenario.routing
    shape = plan.model
    assert (shape.name, shape.hidden, shape.width, shape.gated) == ("tiny", 64, 32, True)
    assert (shape.experts, shape.top_k, shape.shared_width, shape.layers) == (8, 2, 0, (1, 2))
    placement = deployment.placement
    assert plan.slot_expert_LS.tolist() == placement.slot_expert_LS.tolist()
    assert plan.slot_gpu_S.tolist() == placement.slot_gpu_S.tolist()
    count_LE, slots_LER = placement.replica_table()
    assert plan.count_LE.tolist() == count_LE.tolist()
    assert plan.slots_LER.tolist() == slots_LER.tolist()
    assert [plan.local_slots(rank).tolist() for rank in range(4)] == [
        np.flatnonzero(placement.slot_gpu_S == rank).tolist() for rank in range(4)
    ]


def test_steps_are_those_of_the_simulation(deployment: Deployment, folder: Path) -> None:
    plan, scenario, trace = read_plan(folder), deployment.scenario, deployment.replayed
    assert trace.weights_TLK is not None
    tokens = list(batches(trace, scenario.workload, 4, scenario.seed))
    assert len(tokens) == plan.steps
    for number, expected in enumerate(tokens):
        (step,) = plan.micro_batches(number)
        assert step.offsets_G.tolist() == expected.offsets_G.tolist()
        assert step.ids_LTK.tolist() == gather_ids(trace.ids_TLK, expected.row_T).tolist()
        assert step.weights_LTK is not None
        assert step.weights_LTK.tolist() == gather_weights(trace.weights_TLK, expected.row_T).tolist()


def test_micro_batches_are_those_of_the_simulation(
    deployment: Deployment, folder: Path, tmp_path: Path
) -> None:
    as_plan = tmp_path / "plan"
    shutil.copytree(folder, as_plan)
    head_with(overlap=["two_batch"])(as_plan)
    plan, scenario, trace = read_plan(as_plan), deployment.scenario, deployment.replayed
    assert trace.weights_TLK is not None
    for number, tokens in enumerate(batches(trace, scenario.workload, 4, scenario.seed)):
        for half, (part, expected) in enumerate(
            zip(plan.micro_batches(number), tokens.halves(), strict=True)
        ):
            assert part.number == 2 * number + half
            assert part.offsets_G.tolist() == expected.offsets_G.tolist()
            assert part.ids_LTK.tolist() == gather_ids(trace.ids_TLK, expected.row_T).tolist()
            assert part.weights_LTK is not None
            assert part.weights_LTK.tolist() == gather_weights(trace.weights_TLK, expected.row_T).tolist()


def test_equal_deployments_give_equal_bytes(deployment: Deployment, folder: Path, tmp_path: Path) -> None:
    write_plan(deployment, tmp_path / "again")
    assert files(tmp_path / "again") == files(folder)
    assert sorted(files(folder)) == sorted([*(f"{name}.npy" for name in ARRAYS), "plan.json"])


def test_a_plan_is_read_without_the_simulator(folder: Path) -> None:
    """Where a plan runs there may be neither pydantic nor simpy, nor what else the simulator needs."""
    blocked = ("pydantic", "simpy", "pulp", "yaml", "networkx", "typer", "matplotlib")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked}))\n"
        "from pathlib import Path; from executor.plan.plan_file import read_plan\n"
        "import executor.__main__, executor.ranks.watch\n"
        "print(read_plan(Path(sys.argv[1])).steps)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, folder], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout, done.stderr) == ("2\n", "")


def head_with(**changes: Any) -> Callable[[Path], None]:
    """Fields of plan.json replaced, or removed by None; those of objects by ``object__field``."""

    def change(folder: Path) -> None:
        head = json.loads((folder / "plan.json").read_text())
        for key, value in changes.items():
            *outer, name = key.split("__")
            inside = head[outer[0]] if outer else head
            if value is None:
                del inside[name]
            else:
                inside[name] = value
        (folder / "plan.json").write_text(json.dumps(head))

    return change


def array_with(name: str, make: Callable[[Any], Any]) -> Callable[[Path], None]:
    """An array made of the one that is there."""

    def change(folder: Path) -> None:
        file = folder / f"{name}.npy"
        np.save(file, make(np.load(file)), allow_pickle=True)

    return change


def entry(value: Any, *at: int) -> Callable[[Any], Any]:
    """The array with another value in one place."""

    def change(array: Any) -> Any:
        array[at] = value
        return array

    return change


def elsewhere(array: Any) -> Any:
    """The first replicas of two experts exchanged."""
    array[0, [0, 1], 0] = array[0, [1, 0], 0]
    return array


def of_python_2(folder: Path) -> None:
    """A header with a long integer, of which numpy warns."""
    path = folder / "ids.npy"
    path.write_bytes(path.read_bytes().replace(b"(32, 2, 2), }", b"(32L,2, 2), }", 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "plan.json").unlink(), "plan.json: there is no such file"),
        (lambda folder: (folder / "plan.json").write_text("{"), "plan.json:1: is not JSON: Expecting"),
        (
            lambda folder: (folder / "plan.json").write_text("[1]"),
            "plan.json: is not a plan: must be a JSON object",
        ),
        (
            lambda folder: (folder / "plan.json").write_text("[" * 10**5),
            "plan.json: is not a plan: nested too deeply",
        ),
        (
            lambda folder: (folder / "plan.json").write_bytes(b" " * ((32 << 20) + 1)),
            "plan.json: is larger than 32 MiB, too large for a plan",
        ),
        (
            head_with(format="moesim.plan/3"),
            "plan.json: format: needs a newer moesim: this one reads moesim.plan/2 (got 'moesim.plan/3')",
        ),
        (head_with(format="moesim.trace/1"), "plan.json: format: is not a moesim plan"),
        (head_with(ranks=None), "plan.json: ranks: is missing"),
        (head_with(ranks=True), "plan.json: ranks: must be an integer (got True)"),
        (head_with(ranks=0), "plan.json: ranks: must be at least 1 and fit 64 bits (got 0)"),
        (head_with(seed=1 << 63), "plan.json: seed: must be at least 0 and fit 64 bits"),
        (head_with(dtype="fp8"), "plan.json: dtype: must be one of: fp32, bf16, fp16 (got 'fp8')"),
        (head_with(dispatch__mode="mail"), "plan.json: dispatch.mode: must be one of: per_expert, per_gpu, "),
        (head_with(model__gated=1), "plan.json: model.gated: must be true or false (got 1)"),
        (head_with(model__layers=[2, 1]), "plan.json: model.layers: must be ascending integers from 0 on"),
        (head_with(ranks_per_node=3), "plan.json: ranks_per_node: must divide the plan's 4 ranks (got 3)"),
        (head_with(replicas="any"), "plan.json: replicas: must be one of: round_robin"),
        (head_with(routing={}), "plan.json: routing.policy: name a policy: none, "),
        (head_with(routing={"policy": "drop"}), "plan.json: routing.capacity_factor: policy drop needs it"),
        (head_with(weighted=False), "plan.json: routing.policy: policy drop needs gate weights"),
        (head_with(steps=3), "offsets.npy: must hold int64 of shape (3, 5) (got 'int64 of shape (2, 5)')"),
        (head_with(model__experts=9), "replica_count.npy: must hold int32 of shape (2, 9)"),
        (lambda folder: (folder / "ids.npy").unlink(), "ids.npy: there is no such file"),
        (lambda folder: (folder / "ids.npy").write_bytes(b""), "ids.npy: is empty"),
        (
            lambda folder: (folder / "ids.npy").write_bytes((folder / "ids.npy").read_bytes()[:-1]),
            "ids.npy: is not a .npy array: ",
        ),
        (of_python_2, "ids.npy: is not a .npy array: "),
        (array_with("ids", lambda ids: ids.astype(np.int32)), "ids.npy: must hold int16 of shape (32, 2, 2)"),
        (array_with("ids", lambda ids: ids.astype(">i2")), "ids.npy: must hold int16"),
        (array_with("ids", lambda ids: ids[:-1]), "ids.npy: must hold int16 of shape (32, 2, 2)"),
        (array_with("ids", lambda ids: ids.astype(object)), "ids.npy: is not a .npy array: "),
        (array_with("ids", entry(8, 0, 0, 0)), "plan.json: arrays.ids: must be from 0 to 7 (got 8)"),
        (array_with("ids", entry(-1, 0, 0, 0)), "plan.json: arrays.ids: must be from 0 to 7 (got -1)"),
        (array_with("weights", entry(np.nan, 0, 0, 0)), "plan.json: arrays.weights: must be finite"),
        (array_with("offsets", entry(1, 0, 0)), "plan.json: arrays.offsets: must ascend from 0"),
        (array_with("offsets", entry(17, 1, 0)), "plan.json: arrays.offsets: must ascend from 0"),
        (array_with("slot_gpu", entry(4, 0)), "plan.json: arrays.slot_gpu: must be from 0 to 3 (got 4)"),
        (array_with("slot_expert", entry(8, 0, 0)), "plan.json: arrays.slot_expert: must be from -1 to 7"),
        (array_with("replica_count", entry(0, 0, 0)), "plan.json: arrays.replica_count: must be from 1 to "),
        (array_with("replica_slots", entry(12, 0, 0, 0)), "plan.json: arrays.replica_slots: must be from -1"),
        (
            array_with("replica_slots", elsewhere),
            "plan.json: arrays.replica_slots: must name slots that hold",
        ),
        (array_with("replica_slots", entry(-1, 0, 0, 0)), "plan.json: arrays.replica_slots: must name slots"),
    ],
)
def test_broken_plans_are_refused(
    folder: Path, tmp_path: Path, change: Callable[[Path], object], message: str
) -> None:
    broken = tmp_path / "plan"
    shutil.copytree(folder, broken)
    change(broken)
    with pytest.raises(PlanError) as error:
        read_plan(broken)
    assert str(error.value).startswith(f"{broken}/{message}")


def test_a_plan_of_the_format_before_is_still_read(folder: Path, tmp_path: Path) -> None:
    """Format 1 is what format 2 is where all experts are of one kind."""
    assert json.loads((folder / "plan.json").read_text())["format"] == "moesim.plan/2"
    old = tmp_path / "plan"
    shutil.copytree(folder, old)
    head_with(format="moesim.plan/1")(old)
    before, now = vars(read_plan(old)), vars(read_plan(folder))
    np.testing.assert_equal(before, now)
    assert now["model"].kinds == ()


@pytest.fixture(scope="module")
def of_kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan whose experts 1 and 6 of layer 2 are half as wide."""
    scenario = tiny_scenario()
    narrow = {"name": "narrow", "width": 16, "layers": [2], "experts": [1, 6]}
    scenario["model"]["experts"] |= {"kinds": [narrow]}
    path = write_scenario(tmp_path_factory.mktemp("scenario"), scenario)
    folder = tmp_path_factory.mktemp("plan") / "plan"
    write_plan(deploy(load_scenario(str(path))), folder)
    return folder


def test_kinds_of_experts_are_in_the_plan(of_kinds: Path) -> None:
    shape = read_plan(of_kinds).model
    assert (shape.width, shape.kinds) == (32, (Kind("default", 32), Kind("narrow", 16)))
    narrow = [[(layer, expert) in ((2, 1), (2, 6)) for expert in range(8)] for layer in (1, 2)]
    assert [list(map(bool, kinds)) for kinds in shape.kind_LE] == narrow
    assert [shape.width_of(2, expert) for expert in (-1, 0, 1)] == [0, 32, 16]
    assert json.loads((of_kinds / "plan.json").read_text())["model"]["kinds"] == [
        {"name": "default", "width": 32, "dtype": "bf16"},
        {"name": "narrow", "width": 16, "dtype": "bf16"},
    ]


def test_kinds_of_one_width_are_one_to_the_executor(of_kinds: Path, tmp_path: Path) -> None:
    equal = tmp_path / "plan"
    shutil.copytree(of_kinds, equal)
    kinds = [{"name": name, "width": 32, "dtype": "bf16"} for name in ("a", "b")]
    head_with(model__kinds=kinds)(equal)
    assert read_plan(equal).model.kinds == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (head_with(model__kinds=[]), "plan.json: model.kinds: must be a list of objects"),
        (head_with(model__kinds=[1]), "plan.json: model.kinds: must be a list of objects"),
        (head_with(model__kinds=[{"name": "a"}]), "plan.json: model.kinds[0].width: is missing"),
        (
            head_with(model__kinds=[{"name": "a", "width": 32, "dtype": "bf16", "bits": 2.5}]),
            "plan.json: model.kinds: have a field that no back end knows (got 'bits')",
        ),
        (
            head_with(
                model__kinds=[
                    {"name": name, "width": 32, "dtype": dtype}
                    for name, dtype in (("a", "fp8"), ("b", "bf16"), ("c", "fp32"))
                ]
            ),
            "plan.json: model.kinds: must have weights in bf16, the dtype of all that the plan multiplies "
            "(got 'a, c')",
        ),
        (head_with(model__width=33), "plan.json: model.width: must be that of the widest kind, 32 (got 33)"),
        (
            array_with("expert_kind", entry(2, 0, 0)),
            "plan.json: arrays.expert_kind: must be from 0 to 1 (got 2)",
        ),
        (
            array_with("expert_kind", lambda kinds: kinds[:1]),
            "expert_kind.npy: must hold int16 of shape (2, 8)",
        ),
        (lambda folder: (folder / "expert_kind.npy").unlink(), "expert_kind.npy: there is no such file"),
    ],
)
def test_kinds_that_do_not_fit_are_refused(
    of_kinds: Path, tmp_path: Path, change: Callable[[Path], object], message: str
) -> None:
    broken = tmp_path / "plan"
    shutil.copytree(of_kinds, broken)
    change(broken)
    with pytest.raises(PlanError) as error:
        read_plan(broken)
    assert str(error.value).startswith(f"{broken}/{message}")


def refused_or_whole(folder: Path) -> Plan | None:
    """A plan whose arrays fit each other, or None where it is refused as such."""
    try:
        plan = read_plan(folder)
    except PlanError as error:
        assert str(error).startswith(str(folder))  # noqa: PT017 - it may as well be whole
        return None
    for number in range(plan.steps):
        for part in plan.micro_batches(number):
            assert part.ids_LTK.shape[0] == len(plan.model.layers)
    return plan


def test_damaged_fields_are_refused_or_harmless(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "plan"
    shutil.copytree(folder, broken)
    head = json.loads((folder / "plan.json").read_text())
    read = []
    for damaged in damaged_fields(head, 300):
        (broken / "plan.json").write_text(json.dumps(damaged))
        read.append(refused_or_whole(broken))
    assert None in read


@pytest.mark.parametrize("name", ARRAYS)
def test_damaged_arrays_are_refused_or_harmless(folder: Path, tmp_path: Path, name: str) -> None:
    broken = tmp_path / "plan"
    shutil.copytree(folder, broken)
    read = []
    for damaged in damaged_bytes((folder / f"{name}.npy").read_bytes(), 150):
        (broken / f"{name}.npy").write_bytes(damaged)
        read.append(refused_or_whole(broken))
    assert None in read
