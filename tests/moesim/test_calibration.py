"""Calibrations of a machine that a simulation stands in for, so that its profile is known."""

from __future__ import annotations

import json
from functools import reduce
from pathlib import Path

import numpy as np
import pytest
import yaml

from moesim.analysis.validation import compare
from moesim.calibration.assembly import assemble
from moesim.calibration.calibrate import Calibrating, Calibration, calibrate, fit_machine
from moesim.calibration.design import LOADS, Load, Settings, calibrated_model, deployment, model_named
from moesim.calibration.files import write_profile
from moesim.calibration.machine import Machine
from moesim.calibration.observed import Observed, standard_error
from moesim.deployment.deployment import Deployment
from moesim.errors import CalibrationError, SpecError
from moesim.simulation.run import run
from moesim.spec.profile import Profile, load_profile
from moesim.spec.uncertainty import covering, figures
from moesim.spec.yaml_source import Source
from tests.moesim.calibrated_machine import FLOPS, LINK, TRUTH, as_truth, machine, measure
from tests.tolerance import rounding
from traces.timeline import read_timeline

SETTINGS = Settings(ranks=2)
Made = tuple[Calibration, Profile, list[Deployment]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A calibration in which every span is up to 2 % shorter."""
    folder = tmp_path_factory.mktemp("calibration")
    deployments = list(measure(SETTINGS, folder, noise=0.01))
    done = fit_machine(SETTINGS, deployments, folder / "measured")
    profile = assemble(done, SETTINGS, name="mine", command="moesim calibrate", date="2026-01-01")
    return done, profile, deployments


def uncovered(profile: Profile) -> list[str]:
    """Figures that say nothing of how far they may be off; nothing is off by a factor."""
    plain = profile.model_dump()
    values = {
        figure: reduce(lambda at, key: at[key], figure.split("."), plain) for figure in figures(profile)
    }
    return [name for name, value in values.items() if value and covering(name, profile.uncertainty) is None]


def test_every_figure_says_how_far_it_may_be_off(made: Made) -> None:
    done, profile, _ = made
    assert uncovered(profile) == []
    # 1.4826 times the median error of what the fit did not see.
    experts, transfers = (done.quality[what].left_out[0] for what in ("experts", "transfers"))
    assert profile.uncertainty["grouped_gemm"] == pytest.approx(1.4826 * experts, rel=1e-4)
    assert profile.uncertainty["dispatch"] == pytest.approx(1.4826 * transfers, rel=1e-4)
    assert len(profile.draws(10)) == 10


def test_the_fits_find_the_profile_that_made_the_timelines(made: Made) -> None:
    _, profile, _ = made
    gpu = profile.machine.gpu if profile.machine else pytest.fail("no machine")
    roof = profile.grouped_gemm
    assert roof.compute * gpu.flops["fp32"] == pytest.approx(0.8 * FLOPS, rel=0.03)
    assert roof.memory * gpu.memory_bandwidth == pytest.approx(0.7 * 8e9, rel=0.03)
    assert profile.loop
    few, many = profile.tiles
    assert (few.rows, many.rows) == (1, 16)
    assert few.efficiency == pytest.approx(0.2, rel=0.05)
    assert many.start == pytest.approx(12.0, rel=0.1)
    assert gpu.nvlink.bandwidth == pytest.approx(LINK, rel=0.03)
    for mode, links in TRUTH.dispatch.items():
        found = profile.dispatch[mode]
        assert found.fixed == pytest.approx(links.fixed, rel=0.1)
        assert found.counts == pytest.approx(links.counts, rel=0.25)
    assert profile.kernels["router"] == pytest.approx(40, rel=0.1)


def test_it_predicts_a_load_that_it_has_not_seen(made: Made) -> None:
    _, profile, deployments = made
    model, cluster = deployments[0].scenario.model, profile.machine
    assert cluster is not None
    unseen = deployment(Load("per_gpu", 100, 0.7), model, machine(2))
    real = run(as_truth(unseen)).timeline
    predicted = run(as_truth(unseen, profile, cluster)).timeline
    found = compare(real, predicted)
    for phase in ("router", "dispatch", "experts", "combine"):
        assert np.nanmax(np.abs(found.error(phase))) < 0.05, phase


def test_the_quality_says_how_far_off_unseen_loads_are(made: Made) -> None:
    done, profile, _ = made
    assert not done.doubts
    for what, quality in done.quality.items():
        assert quality.fitted[0] < 0.02, what
        assert quality.left_out[0] < 0.03
        assert 0.001 < quality.noise < 0.02
    assert profile.residuals == {what: round(each.left_out[0], 4) for what, each in done.quality.items()}


def test_intervals_hold_what_is_true(made: Made) -> None:
    done, _, _ = made
    lines = {line.name: line for line in done.quantities("fp32")}
    for name, truth in (
        # Spans are shorter by 1 % on average.
        ("experts: arithmetic", 0.8 * FLOPS / 0.99),
        ("experts: memory", 0.7 * 8e9 / 0.99),
        ("transfers: link, one way", LINK / 0.99),
        ("per_gpu: fixed", 5e-4 * 0.99),
    ):
        line = lines[name]
        assert line.interval is not None
        assert 0 < line.interval < 0.2
        # Of 95 % intervals a few miss; none by as much again.
        assert abs(line.value / truth - 1) < 2 * line.interval, name
    assert lines["launch"].interval is None


def test_a_profile_reads_back_from_its_file(made: Made, tmp_path: Path) -> None:
    _, profile, _ = made
    write_profile(profile, tmp_path / "mine.yaml")
    assert load_profile(str(tmp_path / "mine.yaml"), Source(None, None, {}), ()) == profile


def test_noise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deployments = measure(SETTINGS, tmp_path, noise=0.3)
    done = fit_machine(SETTINGS, deployments, tmp_path / "measured")
    monkeypatch.setattr(Calibrating, "measure", lambda self: None)
    monkeypatch.setattr(Calibrating, "fit", lambda self: done)
    with pytest.raises(CalibrationError, match=r"too noisy: what experts take is uncertain by 1\d%") as error:
        calibrate(SETTINGS)
    assert error.value.exit_code == 1


def test_a_rank_on_its_own_sends_nothing(tmp_path: Path) -> None:
    alone = Settings(ranks=1)
    done = fit_machine(alone, measure(alone, tmp_path), tmp_path / "measured")
    profile = assemble(done, alone, name="mine", command="moesim calibrate", date="2026-01-01")
    assert done.transfers is None
    assert "transfers" not in profile.residuals
    assert "single rank" in profile.sources["dispatch"]
    assert uncovered(profile) == []
    assert profile.machine is not None
    assert profile.machine.gpus == 1


def test_what_was_observed_is_what_was_simulated(tmp_path: Path) -> None:
    """Without noise medians are the simulated spans, and entries are when ranks were ready."""
    chosen = measure(SETTINGS, tmp_path, repeats=2)[4]
    observed = Observed.of(chosen, read_timeline(tmp_path / "measured" / f"{chosen.scenario.name}.parquet"))
    assert max(error.max() for error in observed.error.values()) == pytest.approx(0, abs=rounding(10**6))
    for phase in ("dispatch", "combine"):
        assert observed.entered[phase].max(axis=1) == pytest.approx(0, abs=rounding(1000))
    kernels = as_truth(chosen).pricing.kernels(TRUTH)
    experts_CG = kernels.experts(observed.work.tokens_LS, chosen.placement.slot_gpu_S, 2)
    np.testing.assert_allclose(
        observed.seconds["experts"], experts_CG, rtol=rounding(10**6), atol=rounding(1000)
    )
    entered_C = np.abs(observed.entered["combine"]).max(axis=1)
    assert (entered_C >= 0.5 * np.ptp(experts_CG, axis=1)).all()


def test_the_standard_error_of_a_median_by_hand() -> None:
    """Deviations from 11 are 1, 0, 1, 89: their median is 1."""
    error = standard_error(np.array([[10.0], [11.0], [11.0], [100.0]]))
    assert error[0] == pytest.approx(1.2533 * 1.4826 * 0.5 / 2 / 11)


def test_the_loads_reach_from_single_tokens_to_many_and_from_even_to_skewed() -> None:
    model = calibrated_model(None, "fp32", 2, 4 << 30)
    active, rows = [], []
    for load in LOADS:
        plan = deployment(load, model, machine(2))
        ids = plan.replayed.ids_TLK
        assert len(model.moe_layers) == ids.shape[1] == 4
        counts = np.bincount(ids[:, 0].ravel(), minlength=32) / len(ids) * 2 * load.tokens
        active.append((counts > 0.5).sum())
        rows.append(counts.max())
    assert min(active) <= 8
    assert max(active) == 32
    assert min(rows) < 2
    assert max(rows) > 256


@pytest.mark.parametrize(("name", "ranks"), [("deepseek-v3", 4), ("mixtral-8x7b", 3), (None, 5)])
def test_any_models_experts_are_cut_to_the_memory(name: str | None, ranks: int) -> None:
    memory = 8 << 30
    model = calibrated_model(name, "bf16", ranks, memory)
    assert model.experts.count % ranks == 0
    assert model.moe_layers == tuple(range(model.layers))
    assert model.layers * model.experts.count // ranks * model.kind_bytes(model.kinds[0]) <= memory // 2
    assert (model.expert_dtype, model.activation_dtype) == ("bf16", "bf16")


def test_experts_of_several_kinds_are_refused(tmp_path: Path) -> None:
    """One profile holds for experts of one shape."""
    fields = model_named("mixtral-8x7b").model_dump(mode="json")
    fields["experts"]["kinds"] = [{"name": "narrow", "width": 8, "experts": [0]}]
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(fields))
    with pytest.raises(SpecError, match=r"^--model: has experts of several kinds \(default, narrow\)"):
        calibrated_model(str(file), "bf16", 2, 8 << 30)


def test_experts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SpecError, match=r"^--model: has experts of 0\.2 GiB, of which too few fit"):
        calibrated_model("deepseek-v3", "fp32", 1, 1 << 30)


def peaks(*found: object) -> str:
    """A description of a machine whose ranks reached ``found``."""
    names = ("flops", "bandwidth", "launch_s", "exchange_s")
    ranks = [dict.fromkeys(names, each) for each in found]
    told = {"kind": "cpu", "device": "x", "memory": 1, "sms": 1, "torch": "2", "peaks": ranks}
    return json.dumps({"format": "moesim.machine/1", **told})


def test_the_peaks_of_a_machine_are_medians(tmp_path: Path) -> None:
    (tmp_path / "machine.json").write_text(peaks(1, 2.5, 4))
    assert Machine.read(tmp_path / "machine.json").flops == 2.5


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", '{"format": "moesim.machine/2"}', "\xff"),
        *(peaks(), peaks([]), peaks(-1), peaks(True), peaks("1"), peaks(1).replace("1,", "1e999,")),
    ],
)
def test_a_broken_description_of_the_machine_is_one_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "machine.json").write_text(text, encoding="latin-1")
    with pytest.raises(CalibrationError, match=r"machine\.json: "):
        Machine.read(tmp_path / "machine.json")


@pytest.mark.parametrize(
    ("kind", "device", "preset"),
    [
        ("cuda", "NVIDIA H100 80GB HBM3", "h100"),
        ("cuda", "NVIDIA A100-SXM4-80GB", "a100"),
        ("cuda", "NVIDIA H200", "h200"),
        ("cuda", "NVIDIA H100 PCIe", None),
        ("cuda", "NVIDIA H100 NVL", None),
        ("cuda", "NVIDIA GeForce RTX 4090", None),
        ("cpu", "Intel(R) Xeon(R) CPU E5", None),
    ],
)
def test_a_data_sheet_serves_where_the_board_is_known(kind: str, device: str, preset: str | None) -> None:
    found = Machine(kind, device, 24 << 30, 128, "2", 1e12, 1e11, 1e-6, 1e-5)
    assert found.preset() == preset
    gpu = found.gpu("bf16")
    assert found.cluster(gpu, 2).gpus == 2
    if preset is None:
        assert gpu.flops == {"bf16": 1e12}
        assert gpu.name.startswith(device)


def test_equal_measurements_make_equal_profiles(made: Made, tmp_path: Path) -> None:
    _, profile, _ = made
    deployments = measure(SETTINGS, tmp_path, noise=0.01)
    again = fit_machine(SETTINGS, deployments, tmp_path / "measured")
    same = assemble(again, SETTINGS, name="mine", command="moesim calibrate", date="2026-01-01")
    assert json.dumps(same.model_dump(mode="json")) == json.dumps(profile.model_dump(mode="json"))
