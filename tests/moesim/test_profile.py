"""Profiles: presets, files, inline fields, and what their schema refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from moesim.errors import SpecError
from moesim.spec.override import Override
from moesim.spec.presets import preset_names
from moesim.spec.profile import DATA_SHEET, Profile, load_profile
from moesim.spec.scenario import load_scenario
from moesim.spec.yaml_source import Source, read_yaml
from tests.moesim.tiny import tiny_scenario, write_scenario

NOWHERE = Source(None, None, {})
GENERIC = load_profile("generic", NOWHERE, ())


def fields(**changes: Any) -> dict[str, Any]:
    return GENERIC.model_dump(mode="json") | changes


@pytest.mark.parametrize("name", preset_names("profiles"))
def test_presets_say_where_their_figures_come_from(name: str) -> None:
    profile = load_profile(name, NOWHERE, ())
    assert profile.name == name
    assert profile.origin
    assert profile.date
    for figure in ("gemm", "grouped_gemm", "attention", "tiles", "launch", "kernels", "step", "memory"):
        assert any(key.split(".")[0] == figure and text for key, text in profile.sources.items()), figure


def test_without_a_profile_the_generic_one_serves() -> None:
    assert load_profile(None, NOWHERE, ("profile",)) == GENERIC


def test_a_profile_is_read_from_beside_the_file_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(fields(name="mine", launch="3 us")))
    (tmp_path / "s.yaml").write_text("profile: mine.yaml\n")
    found = load_profile("mine.yaml", read_yaml(tmp_path / "s.yaml"), ("profile",))
    assert found.name == "mine"
    assert found.launch == pytest.approx(3e-6)


def test_inputs_narrower_than_the_weights_are_refused() -> None:
    with pytest.raises(SpecError, match=r"inputs\.fp8: must not be narrower than the weights"):
        load_profile(fields(inputs={"mxfp4": "fp8", "fp8": "nvfp4"}), NOWHERE, ())


def test_what_is_dumped_loads_to_itself() -> None:
    for profile in (GENERIC, DATA_SHEET):
        assert load_profile(profile.model_dump(mode="json"), NOWHERE, ()) == profile


def test_the_data_sheet_has_no_cost_but_the_peak() -> None:
    assert (DATA_SHEET.launch, DATA_SHEET.step, DATA_SHEET.memory) == (0, 0, 1)
    for roof in (DATA_SHEET.gemm, DATA_SHEET.grouped_gemm, DATA_SHEET.attention):
        assert (roof.compute, roof.memory, roof.overlap) == (1, 1, 1)
    assert not any(DATA_SHEET.kernels.values())


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"nvlink": 0}, "nvlink: must be at least 1e-06"),
        ({"nic": 1.1}, "nic: must be at most 1"),
        ({"gemm": {"compute": 0.5}}, "gemm.memory: is missing"),
        ({"gemm": {"compute": 0.5, "memory": 0.5, "overlap": 2}}, "gemm.overlap: must be at most 1"),
        ({"tiles": []}, "tiles: must have at least 1 entries"),
        ({"tiles": [{"rows": 0, "efficiency": 1}]}, "tiles[0].rows: must be at least 1 (got 0)"),
        ({"launch": "2 GB"}, "launch: 'GB' is not a unit of a time"),
        ({"launch": -1}, "launch: must be at least 0 (got -1)"),
        ({"kernels": {"lunch": 1}}, "kernels.lunch: must be one of"),
        ({"kernels": {"router": -1}}, "kernels.router: must be at least 0 (got -1)"),
        ({"residuals": {"experts": float("nan")}}, "residuals.experts: must be finite"),
        ({"memori": 1}, "memori: unknown key; did you mean 'memory'?"),
    ],
)
def test_what_breaks_the_schema(changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_profile(fields(**changes), NOWHERE, ())
    assert rule in str(caught.value)


def test_a_fault_in_a_file_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(fields(nic=2), sort_keys=False))
    text = (tmp_path / "p.yaml").read_text().splitlines()
    line = next(number for number, content in enumerate(text, 1) if content.startswith("nic:"))
    with pytest.raises(SpecError, match=rf"p\.yaml:{line}: nic: must be at most 1"):
        load_profile(str(tmp_path / "p.yaml"), NOWHERE, ())


@pytest.mark.parametrize("value", ["nope", "nope.json", "", 3, [], True])
def test_what_is_no_profile(value: Any) -> None:
    with pytest.raises(SpecError, match=r"^profile: must be "):
        load_profile(value, NOWHERE, ("profile",))


def test_every_profile_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        GENERIC.launch = 0.0  # type: ignore[misc]
    assert isinstance(GENERIC, Profile)


def measured(gpu: str = "tiny") -> dict[str, Any]:
    """A profile that describes the machine it was measured on."""
    machine = tiny_scenario()["cluster"] | {"nodes": 1, "gpus_per_node": 4}
    return fields(name="mine", gpu=gpu, fitted_gpus=[], machine=machine)


def test_a_scenario_without_a_cluster_runs_on_the_machine_of_its_profile(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(measured()))
    for cluster in ({}, {"cluster": None}):
        mapping = tiny_scenario(profile="mine.yaml", cluster=None) | cluster
        path = str(write_scenario(tmp_path, mapping))
        plain = load_scenario(path)
        assert plain.cluster == plain.profile.machine
        assert load_scenario(str(write_scenario(tmp_path, plain.resolved(), "again.yaml"))) == plain
        wider = load_scenario(path, [Override.parse("cluster.gpus_per_node=8")])
        assert (wider.cluster.gpus, wider.cluster.gpu) == (8, plain.cluster.gpu)
    named = load_scenario(path, [Override.parse("cluster=h800-1x4"), Override.parse("profile=generic")])
    assert named.cluster.name == "h800-1x4"


def test_a_scenario_without_cluster_and_machine_is_refused(tmp_path: Path) -> None:
    path = str(write_scenario(tmp_path, tiny_scenario(cluster=None)))
    with pytest.raises(SpecError, match="cluster: is missing, and the profile generic does not describe"):
        load_scenario(path)


def test_a_profile_is_of_the_gpu_of_its_machine(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"gpu: must be that of machine\.gpu, tiny \(got 'H800'\)"):
        load_profile(measured("H800"), NOWHERE, ())
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(measured()))
    path = str(write_scenario(tmp_path, tiny_scenario(profile="mine.yaml", cluster="h800-1x4")))
    with pytest.raises(SpecError, match="was measured on tiny, the cluster has H800"):
        load_scenario(path)
