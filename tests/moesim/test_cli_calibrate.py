"""``moesim calibrate``: its table, its file, and what it refuses before it measures."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from moesim.calibration import calibrate as calibration
from moesim.calibration import files
from moesim.calibration.calibrate import Calibration
from moesim.calibration.design import Settings, read_settings
from moesim.spec.profile import load_profile
from moesim.spec.yaml_source import Source
from tests.moesim.calibrated_machine import measure
from tests.moesim.command import moesim, refused


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> list[Settings]:
    """A machine that is simulated instead of measured; the settings that it was asked for."""
    asked: list[Settings] = []

    def calibrate(settings: Settings) -> Calibration:
        asked.append(settings)
        folder = tmp_path_factory.mktemp("measured")
        return calibration.fit_machine(settings, measure(settings, folder, repeats=2), folder / "measured")

    monkeypatch.setattr(files, "calibrate", calibrate)
    return asked


def test_a_profile_drives_a_scenario_that_names_no_cluster(here: Path, measured: list[Settings]) -> None:
    done = moesim("calibrate", "-o", "mine.yaml", "--seconds", "7")
    assert done.code == 0
    assert measured == [Settings(seconds=7.0)]
    for part in ("experts: arithmetic", "transfers: link, one way", "48.0 GFLOP/s", "loads left out"):
        assert part in done.out
    assert done.err.endswith("profile: mine.yaml\n")
    (here / "run.yaml").write_text(
        "name: here\nprofile: mine.yaml\nparallelism: {ep: 2}\n"
        "model: {base: mixtral-8x7b, hidden: 64, layers: 2, activation_dtype: fp32, weight_dtype: fp32,\n"
        "  expert_dtype: fp32, experts: {width: 32}}\n"
        "trace: {synth: {skew: 1}}\nworkload: {tokens_per_gpu: 4, context: 8, steps: 1, part: moe}\n"
        "dispatch: {dtype: fp32, combine_dtype: fp32}\n"
    )
    ran = moesim("run", "run.yaml", "--json")
    assert ran.code == 0, ran.err
    cluster = json.loads(ran.out)["scenario"]["cluster"]
    assert (cluster["gpus_per_node"], cluster["gpu"]["name"]) == (2, "Test core")
    assert "was measured on Test core, the cluster has H800" in refused(
        "run", "s.yaml", "-s", "profile=mine.yaml", "-s", "cluster=h800-1x4"
    )


def test_json_is_the_profile_and_how_sure_it_is(here: Path, measured: list[Settings]) -> None:
    found = json.loads(moesim("calibrate", "--ranks", "1", "--json").out)
    assert found["format"] == "moesim.calibration/1"
    assert found["profile"]["name"] == "calibrated"
    assert set(found["quality"]) == {"experts", "router"}
    assert measured[0].ranks == 1
    assert [line for line in found["quantities"] if line["name"] == "experts: arithmetic"]


def test_what_another_machine_measured_is_fitted_here(here: Path) -> None:
    said = moesim("calibrate", "--plan-only", "-o", "c", "--ranks", "1", "--seconds", "9")
    expected = (
        "torchrun --standalone --nproc-per-node 1 -m executor.measuring.microbench c/spec.json -o OUT\n"
    )
    assert (said.code, said.out) == (0, expected)
    settings = read_settings(here / "c" / "spec.json")
    # The memory is that of the machine that planned, so that the same experts are meant elsewhere.
    assert settings.memory is not None
    assert settings == Settings(ranks=1, seconds=9.0, memory=settings.memory)
    for name in ("one", "two"):
        (here / name).mkdir()
        measure(settings, here / name, repeats=2)
        shutil.copy(here / "c" / "spec.json", here / name / "measured")
    folders = ["--measured", "one/measured", "--measured", "two/measured"]
    done = moesim("calibrate", *folders, "-o", "there.yaml")
    assert done.code == 0, done.err
    profile = load_profile("there.yaml", Source(None, None, {}), ())
    assert profile.machine is not None
    assert (profile.name, profile.machine.gpu.name) == ("there", "Test core")
    assert "--seconds 9" in profile.origin
    other = json.loads((here / "c" / "spec.json").read_text()) | {"seconds": 8.0}
    (here / "two" / "measured" / "spec.json").write_text(json.dumps(other))
    assert "two/measured/spec.json: must be of the same settings as one/measured" in refused(
        "calibrate", *folders
    )


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"format": "moesim.plan/1"}, "spec.json: format: is not a moesim microbench"),
        ({"ranks": "2"}, "spec.json: is not what `moesim calibrate --plan-only` wrote"),
        ({"ranks": 1 << 40}, "spec.json: ranks: must be from 1 to 64"),
        (None, "spec.json: there is no such file"),
    ],
)
def test_what_is_no_calibration_is_refused(here: Path, changes: dict[str, object] | None, rule: str) -> None:
    (here / "c").mkdir()
    if changes is not None:
        value = {"format": "moesim.microbench/1", **dataclasses.asdict(Settings(memory=1 << 30)), **changes}
        (here / "c" / "spec.json").write_text(json.dumps(value))
    assert "has been planned already" in refused("calibrate", "--plan-only", "--measured", "c")
    assert rule in refused("calibrate", "--measured", "c")


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (["-o", "folder"], "folder: is a folder, a file was expected"),
        (["-o", "mine.txt"], "mine.txt: must end in .yaml"),
        (["-o", "nowhere/mine.yaml"], "nowhere: there is no such folder"),
        (["--model", "deepseek-v9"], "--model: no such model preset"),
    ],
)
def test_what_is_refused_at_once(here: Path, options: list[str], rule: str) -> None:
    (here / "folder").mkdir()
    assert rule in refused("calibrate", *options)


def test_more_ranks_than_cores_are_remarked_upon(here: Path, measured: list[Settings]) -> None:
    assert "64 ranks share" in moesim("calibrate", "--ranks", "64", "--model", "deepseek-v9").err


def test_without_torch_it_names_the_extra(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'moesim[executor]'" in refused("calibrate")
