"""Scenarios: presets and options resolve, faults name file or option, and a resolved one loads to itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.errors import MoesimError, SpecError
from moesim.spec.override import Override
from moesim.spec.presets import preset_names
from moesim.spec.scenario import Scenario, load_scenario
from moesim.spec.yaml_source import parse_yaml
from tests.examples import examples
from tests.moesim.tiny import tiny_scenario, write_scenario


def load(folder: Path, *options: str, **changes: Any) -> Scenario:
    path = write_scenario(folder, tiny_scenario(**changes))
    return load_scenario(str(path), [Override.parse(option) for option in options])


def fault(folder: Path, *options: str, **changes: Any) -> str:
    with pytest.raises(MoesimError) as caught:
        load(folder, *options, **changes)
    return str(caught.value).removeprefix(f"{folder}/")


# Presets, defaults, options


@pytest.mark.parametrize("name", preset_names("scenarios"))
def test_preset_scenarios_load(name: str) -> None:
    assert load_scenario(name).name == name


def test_what_may_be_left_out(tmp_path: Path) -> None:
    short = load(tmp_path, placement=None, routing=None, dispatch=None)
    assert (short.placement.solver, short.routing, short.seed) == ("linear", {"policy": "none"}, 0)
    assert short.profile.name == "generic"
    assert short.dispatch.mode == "per_gpu"


def test_presets_expand_before_an_option_reaches_into_them(tmp_path: Path) -> None:
    whole = load(tmp_path, cluster="h800-4x8")
    half = load(tmp_path, "cluster.nodes=2", cluster="h800-4x8", parallelism={"ep": 8})
    assert half.cluster.gpu == whole.cluster.gpu
    assert (whole.cluster.nodes, half.cluster.nodes, half.cluster.gpus_per_node) == (4, 2, 8)
    assert load(tmp_path, "profile.launch=9 us").profile.launch == pytest.approx(9e-6)
    assert load(tmp_path, "placement.slots=12").placement.slots == 12
    assert load(tmp_path, "placement.slots=12", placement=None).placement.slots == 12


def test_presets_inside_presets_expand_too(tmp_path: Path) -> None:
    cluster = {"gpu": "h800", "nodes": 2, "gpus_per_node": 2, "nic": "cx7"}
    plain = load(tmp_path, cluster=cluster)
    slow = load(tmp_path, "cluster.nic.bandwidth=1 GB/s", "cluster.gpu.memory=7 GB", cluster=cluster)
    assert (slow.cluster.nic.bandwidth, slow.cluster.gpu.memory) == (1e9, 7_000_000_000)
    assert slow.cluster.nic.latency == plain.cluster.nic.latency
    assert slow.cluster.gpu.flops == plain.cluster.gpu.flops


def test_options_apply_in_turn(tmp_path: Path) -> None:
    assert load(tmp_path, "seed=1", "seed=2").seed == 2
    later = load(tmp_path, "cluster=h800-4x8", "cluster.nodes=2", "parallelism={ep: 8}", "parallelism.tp=2")
    assert (later.cluster.name, later.cluster.nodes) == ("h800-4x8", 2)
    assert (later.parallelism.ep, later.parallelism.tp) == (8, 2)
    assert load(tmp_path, "cluster.nodes=2", "cluster=h800-4x8").cluster.nodes == 4


def test_values_are_yaml(tmp_path: Path) -> None:
    made = load(tmp_path, "placement={solver: greedy, slots: 12}", "name=a=b", "profile=null", "seed=7")
    assert made.placement.model_dump() == {
        "solver": "greedy",
        "slots": 12,
        "hierarchical": False,
        "fit_fraction": 0.5,
        "file": None,
    }
    assert (made.name, made.profile.name, made.seed) == ("a=b", "generic", 7)


def test_a_policy_gets_all_its_parameters(tmp_path: Path) -> None:
    made = load(tmp_path, "routing.capacity_factor=2", routing={"policy": "drop", "capacity_factor": 1.0})
    assert made.routing == {
        "policy": "drop",
        "capacity_factor": 2.0,
        "unit": "expert",
        "scope": "source",
        "order": "score",
        "renormalise": False,
        "seed": 0,
    }


# Paths


def test_paths_in_a_file_are_relative_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "scenarios"
    inner.mkdir()
    monkeypatch.chdir(tmp_path)
    made = load(inner, trace={"file": "../traces/x.parquet"}, placement={"file": "p.json"})
    assert made.trace.file == str((tmp_path / "traces" / "x.parquet").resolve())
    assert made.placement.file == str((inner / "p.json").resolve())


@pytest.mark.parametrize("option", ["trace={file: x.parquet}", "trace.file=x.parquet"])
def test_paths_in_an_option_are_relative_to_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    inner = tmp_path / "scenarios"
    inner.mkdir()
    monkeypatch.chdir(tmp_path)
    made = load(inner, option, trace={"file": "other.parquet"})
    assert made.trace.file == str((tmp_path / "x.parquet").resolve())
    # An option beside it does not move what the file says.
    assert load(inner, "seed=1", trace={"file": "x.parquet"}).trace.file == str(
        (inner / "x.parquet").resolve()
    )


def test_models_and_profiles_are_found_the_same_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "scenarios"
    inner.mkdir()
    monkeypatch.chdir(tmp_path)
    fields = tiny_scenario()["model"]
    profile = load(tmp_path).profile.model_dump(mode="json")
    for folder, name in ((inner, "beside the file"), (tmp_path, "in the current directory")):
        (folder / "model.yaml").write_text(yaml.safe_dump(fields | {"name": name}))
        (folder / "profile.yaml").write_text(yaml.safe_dump(profile | {"name": name}))
    beside = load(inner, model="model.yaml", profile="profile.yaml")
    assert (beside.model.name, beside.profile.name) == ("beside the file", "beside the file")
    here = load(inner, "model=model.yaml", "profile=profile.yaml", "profile.launch=0", "model.vocab=7")
    assert (here.model.name, here.profile.name) == ("in the current directory", "in the current directory")
    assert (here.model.vocab, here.profile.launch) == (7, 0)


# Faults


def test_a_fault_in_the_file_names_its_line(tmp_path: Path) -> None:
    path = write_scenario(tmp_path, tiny_scenario())
    text = path.read_text().replace("steps: 2", "steps: 0")
    path.write_text(text)
    line = text.splitlines().index("  steps: 0") + 1
    with pytest.raises(SpecError, match=rf"yaml:{line}: workload\.steps: must be at least 1 \(got 0\)$"):
        load_scenario(str(path))


def test_a_fault_of_an_option_names_the_option(tmp_path: Path) -> None:
    assert fault(tmp_path, "workload.steps=0").startswith("-s workload.steps: must be at least 1")
    # Where an option sets a whole mapping, the fault is inside it; where it sets a part, around it.
    assert fault(tmp_path, "workload={tokens_per_gpu: 4, context: 8, steps: 0}").startswith(
        "-s workload: workload.steps: "
    )
    assert fault(tmp_path, "trace.file=x").startswith("-s trace.file: trace: must name one of file, sample")
    tiles = "profile.tiles=[{rows: 0, efficiency: 1}]"
    assert fault(tmp_path, tiles).startswith("-s profile.tiles: profile.tiles[0].rows: must be at least 1")


def test_an_innocent_option_is_not_blamed(tmp_path: Path) -> None:
    assert fault(tmp_path, "seed=1", parallelism={"ep": 3}).startswith("scenario.yaml:")
    assert fault(tmp_path, "model.layers=1", model="nope").startswith("scenario.yaml:2: model: no such model")
    # The keys of another file are its own: `name` there is not the scenario's.
    profile = load(tmp_path).profile.model_dump(mode="json")
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(profile | {"name": 3}, sort_keys=False))
    assert fault(tmp_path, "name=x", profile="p.yaml").startswith("p.yaml:2: name: must be text")


def test_an_option_that_breaks_a_rule_elsewhere_is_told_where(tmp_path: Path) -> None:
    line = fault(tmp_path, "model.experts.count=6")
    assert line.startswith("scenario.yaml:")
    assert "parallelism.ep: 6 experts do not divide over 4 GPUs; a placement with slots: 8 would" in line


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (
            ["parallelism.ep=8", "cluster.nodes=4", "cluster.gpus_per_node=3"],
            "must divide the cluster's 12 GPUs",
        ),
        (
            ["parallelism.ep=6", "cluster.nodes=3", "cluster.gpus_per_node=4"],
            "must fill whole nodes of 4 GPUs",
        ),
        (["parallelism.tp=4"], "must divide 4 attention heads and fit whole groups into a node of 2"),
        (["parallelism={ep: 4, tp: 3}"], "must divide ep, which is 4"),
        (["model.activation_dtype=fp16"], "has no figure for fp16"),
        (["placement.slots=10"], "does not divide over 4 GPUs; a placement with slots: 12 would"),
        (["placement={file: p.json, slots: 8}"], "belong to a solver; a file has its own"),
        (["placement={}"], "must name either a solver or a file, and not both"),
        (["routing={policy: top_k, k: 3}"], "routing.k: must be at most 2, the experts that a token chooses"),
        (
            ["routing={policy: 'tests.moesim.own_policy:FirstOnly', places: 3}"],
            "routing.places: must be at most 2, the experts that a token chooses",
        ),
        (
            ["routing=[{policy: drop, capacity_factor: 1}, {policy: top_k, k: [2, 3]}]"],
            "routing[1].k: must be",
        ),
        (["routing={policy: important, share: 0.5, k: 3}"], "must be at most 2"),
        (
            ["routing={policy: mask, experts: [7, 8]}"],
            "experts: must be below the 8 experts of a layer (got 8)",
        ),
        (["routing={policy: mask_least, off: 1, protect: [8]}"], "must be below the 8 experts"),
        (["seed=1.5"], "must be a whole number"),
        (["seed=true"], "must be a whole number"),
        (["seed=9223372036854775808"], "must be less than"),
        (["name=null"], "must be text"),
        (["network=wifi"], "must be one of"),
        (["dispatch.mode=pigeon"], "must be one of"),
        (["trace={synth: {skew: 11}}"], "must be at most 10"),
        (["trace={synth: {skew: .nan}}"], "must be finite"),
        (["trace={synth: {base: deepseek}}"], "no such generator preset"),
        (["trace={synth: {file: gen.yaml, candidates: 3}}"], "does not belong beside a fitted generator"),
        (["trace={synth: {skew: 1, persistence: 1}}"], "must be less than 1"),
    ],
)
def test_rules_between_the_parts(tmp_path: Path, options: list[str], rule: str) -> None:
    assert rule in fault(tmp_path, *options)


def test_after_more_experts_than_chosen_more_may_stay(tmp_path: Path) -> None:
    scenario = load(tmp_path, "routing=[{policy: expert_choice}, {policy: top_k, k: 3}]")
    assert scenario.routing[1]["k"] == 3  # type: ignore[index]


@pytest.mark.parametrize("text", ["", "a", "a.b", "=1", ".a=1", "a..b=1", "a.=1"])
def test_options_must_read_key_value(text: str) -> None:
    with pytest.raises(SpecError, match=r"^-s: must read KEY=VALUE"):
        Override.parse(text)


# A resolved scenario

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    [
        "1e5",
        "0o17",
        "0x1F",
        "1_000",
        "12:30",
        "on",
        "null",
        "~",
        "",
        " a",
        "a: b",
        "- a",
        "#",
        "'",
        '"',
        "\n",
        "\x85",
    ]
)
counts = st.integers(1, 1 << 20)
scenarios = st.fixed_dictionaries(
    {
        "name": texts,
        "seed": st.integers(0, (1 << 63) - 1),
        "trace": st.one_of(
            st.builds(
                lambda requests, skew, persistence: {
                    "synth": {"requests": requests, "skew": skew, "persistence": persistence}
                },
                counts,
                st.floats(0, 10),
                st.floats(0, 1, exclude_max=True),
            ),
            st.just({"file": "x.parquet"}),
        ),
        "workload": st.builds(
            lambda tokens, context, steps: {"tokens_per_gpu": tokens, "context": context, "steps": steps},
            st.integers(1, 65536),
            counts,
            counts,
        ),
        "placement": st.sampled_from(
            ["linear", {"solver": "greedy", "slots": 12, "fit_fraction": 0.1}, {"file": "p.json"}]
        ),
        "routing": st.builds(
            lambda factor, scope: {"policy": "drop", "capacity_factor": factor, "scope": scope},
            st.floats(1e-300, 1e300),
            st.sampled_from(["source", "global"]),
        )
        | st.just({"policy": "none"}),
        "dispatch": st.fixed_dictionaries(
            {
                "mode": st.sampled_from(["per_expert", "per_gpu", "per_node"]),
                "dtype": st.sampled_from(["fp8", "bf16"]),
            }
        ),
        "parallelism": st.sampled_from([{"ep": 4}, {"ep": 2}, {"ep": 4, "tp": 2}]),
        "cluster": st.sampled_from(
            [tiny_scenario()["cluster"], "h800-1x4", {"base": "h100-2x2", "nic": "cx6"}]
        ),
    }
)


@settings(max_examples=examples(50))  # PyYAML takes 10 ms for each
@given(changes=scenarios)
def test_what_resolves_loads_to_itself(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    path = write_scenario(folder, tiny_scenario(), "first.yaml")
    first = load_scenario(str(path), [Override((key,), value) for key, value in changes.items()])
    assert first.name == changes["name"]
    assert parse_yaml(first.to_yaml(), None).value == first.resolved()
    (folder / "second.yaml").write_text(first.to_yaml(), encoding="utf-8")
    second = load_scenario(str(folder / "second.yaml"))
    assert second == first
    assert second.to_yaml() == first.to_yaml()
    assert json.loads(json.dumps(first.resolved(), allow_nan=False)) == first.resolved()


def test_a_generator_of_a_name_is_its_fields() -> None:
    named = load_scenario("demo", [Override(("trace",), {"synth": "deepseek-r1"})]).trace.synth
    assert named is not None
    more = {"synth": {"base": "deepseek-r1", "requests": 7}}
    assert load_scenario("demo", [Override(("trace",), more)]).trace.synth == named.model_copy(
        update={"requests": 7}
    )
    inside = [Override(("trace",), {"synth": "deepseek-r1"}), Override(("trace", "synth", "requests"), 7)]
    assert load_scenario("demo", inside).trace.synth == named.model_copy(update={"requests": 7})
    assert (named.skew, named.candidates) == (1.2, 16)
