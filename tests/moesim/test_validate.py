"""``moesim validate``: launches until medians hold, what it says, what it writes, what it refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from executor import __main__ as executor
from moesim.calibration.design import Settings
from moesim.deployment.deployment import Deployment, deploy
from moesim.errors import ExecutionError
from moesim.live.execute import USUAL, Execution, RunOptions
from moesim.live.on_network import on_simulated_network
from moesim.live.repeats import join_repeats
from moesim.live.scenario import executable
from moesim.simulation.run import run
from moesim.spec.profile import Profile, load_profile
from moesim.spec.scenario import load_scenario
from moesim.spec.yaml_source import Source
from moesim.studies import validate as validation
from moesim.studies.validate import MOST_LAUNCHES, REPEATS, measured_machine
from tests.moesim.command import files, moesim, refused
from tests.moesim.validation_scenario import write_profile, write_small
from tests.tolerance import rounding
from traces.timeline import PHASES, Timeline, read_timeline, write_timeline, write_work

KERNELS = [PHASES.index(phase) for phase in ("router", "shared_expert", "experts")]
ASKED = ["validate", "small.yaml", "--ranks", "2", "--profile", "p.yaml"]


@dataclasses.dataclass
class StandIn:
    """Measures what is simulated, but for experts ``slower`` and a spread between repeats and launches."""

    slower: float = 1.0
    noise: float = 0.0
    counts: bool = True
    asked: list[RunOptions] = dataclasses.field(default_factory=list)

    def __call__(self, deployment: Deployment, options: RunOptions, folder: Path) -> Execution:
        rng = np.random.default_rng(len(self.asked))
        self.asked.append(options)
        simulated = run(deployment)
        kernels = simulated.timeline.select(np.isin(simulated.timeline.phase_N, KERNELS))
        seconds_N = kernels.end_s_N - kernels.start_s_N
        slower_N = np.where(kernels.phase_N == PHASES.index("experts"), self.slower, 1.0)
        repeats = []
        for repeat in range(options.repeats):
            factor_N = slower_N * np.exp(self.noise * rng.standard_normal(len(kernels)))
            taken = dataclasses.replace(
                kernels,
                repeat_N=np.full_like(kernels.repeat_N, repeat),
                end_s_N=kernels.start_s_N + seconds_N * factor_N,
            )
            repeats.append(taken if options.serial else on_simulated_network(deployment, taken))
        work = simulated.work()
        if not self.counts:
            work = dataclasses.replace(work, count_N=work.count_N + 1)
        said = {"device": "cpu", "backend": "loop", "threads": 1, "torch": "2", "repeats": options.repeats}
        return Execution(join_repeats(repeats), work if options.count else None, said)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    write_profile(tmp_path)
    write_small(tmp_path)
    made = StandIn()
    monkeypatch.setattr(validation, "execute", made)
    return made


def result(*arguments: str) -> dict[str, Any]:
    done = moesim(*ASKED, "--json", *arguments)
    assert done.code == 0, done
    assert done.out.count("\n") == 1
    found: dict[str, Any] = json.loads(done.out)
    return found


def test_one_launch_is_enough_where_medians_hold(stand_in: StandIn) -> None:
    stand_in.slower = 1.25
    found = result()
    assert found.keys() >= {
        "ranks",
        "device",
        "verdict",
        "error",
        "per_rank",
        "straggler_ratio",
        "rank_order_tau",
        "counts_equal",
    }
    assert found["error"].keys() >= {"step", "layer", "experts", "dispatch", "combine"}
    assert found["straggler_ratio"].keys() == {"measured", "simulated"}
    assert (found["format"], found["ranks"], found["device"]) == ("moesim.validation/1", 2, "cpu")
    assert (found["verdict"], found["counts_equal"], found["rank_order_tau"]) == ("ok", True, 1.0)
    assert found["error"]["experts"] == pytest.approx({"median": 0.2, "p95": 0.2, "bias": -0.2})
    assert found["error"]["router"]["median"] == pytest.approx(0, abs=rounding(10**6))
    assert [options.count for options in stand_in.asked] == [True]
    assert found["provenance"]["launches"] == 1
    assert found["scenario"]["workload"]["part"] == "moe"
    assert found["scenario"]["cluster"]["name"] == "measured"


def test_it_launches_again_until_it_gives_up(stand_in: StandIn) -> None:
    stand_in.noise = 0.5
    found = result()
    assert found["verdict"] == "noisy"
    assert [options.count for options in stand_in.asked] == [True] + [False] * (MOST_LAUNCHES - 1)
    assert found["repeats"] == sum(options.repeats for options in stand_in.asked)


def test_more_launches_make_medians_hold(stand_in: StandIn) -> None:
    stand_in.noise = 0.1
    found = result()
    assert found["verdict"] == "ok"
    assert 1 < len(stand_in.asked) < MOST_LAUNCHES


def test_counts_that_differ_are_said(stand_in: StandIn) -> None:
    stand_in.counts = False
    assert result()["counts_equal"] is False


def test_ranks_in_turns_are_put_on_the_simulated_network(stand_in: StandIn) -> None:
    stand_in.slower = 1.25
    found = result("--serial")
    assert [(options.serial, options.count) for options in stand_in.asked] == [(True, False)]
    assert found["counts_equal"] is None
    assert found["simulated_phases"] == ["dispatch", "combine"]
    assert found["error"]["experts"]["bias"] == pytest.approx(-0.2)
    assert 0 < found["error"]["layer"]["median"] < 0.2
    # In turns, each of the ranks has the memory that two of them share.
    shared = result()["scenario"]["cluster"]["gpu"]["memory"]
    assert found["scenario"]["cluster"]["gpu"]["memory"] == 2 * shared


@pytest.mark.parametrize("serial", [False, True])
def test_what_another_machine_ran_is_compared_here(stand_in: StandIn, tmp_path: Path, serial: bool) -> None:
    """The same answer as of a run here, told by the files of the executor alone."""
    stand_in.slower = 0.8
    given = ["--serial"] if serial else []
    expected = result(*given)
    profile = load_profile("p.yaml", Source(None, None, {}), ())
    options = RunOptions(repeats=REPEATS, serial=serial, count=not serial)
    here = measured_machine(profile, options)
    deployment = deploy(executable("small.yaml", [], 2, here).scenario)
    done = StandIn(slower=0.8)(deployment, options, tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    (out / "run.json").write_text(json.dumps({"format": "moesim.run/1", "serial": serial, **done.run}))
    write_timeline(done.timeline, out / "timeline.parquet")
    if done.work is not None:
        write_work(done.work, out / "work.parquet")
    stand_in.asked.clear()
    found = result("--measured", "out")
    assert not stand_in.asked
    for value in (expected, found):
        del value["provenance"]["command"]
    assert found == expected
    no_profile = refused("validate", "small.yaml", "--ranks", "2", "--measured", "out")
    assert "needs --profile" in no_profile
    other = moesim(*ASKED, "--measured", "out", "-s", "seed=5")
    assert (other.code, other.out) == (2, "")
    assert "moesim: tiny: is not a run of this scenario's plan" in other.err
    (out / "run.json").write_text('{"format": "moesim.run/1", "device": "cpu"}')
    assert "out/run.json: backend: lacks a field" in refused(*ASKED, "--measured", "out")


@pytest.mark.parametrize(("options", "processes"), [([], 2), (["--serial"], 1)])
def test_without_a_profile_it_calibrates_around_each_launch(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, options: list[str], processes: int
) -> None:
    asked: list[Settings] = []
    launches: list[int] = []

    class Calibrating:
        def __init__(self, settings: Settings, _: Path) -> None:
            asked.append(settings)

        def measure(self) -> None:
            launches.append(len(stand_in.asked))

        def fit(self) -> SimpleNamespace:
            return SimpleNamespace(doubts=["nothing repeats"])

    def profile_of(found: SimpleNamespace, settings: Settings, command: str) -> Profile:
        assert (settings, command.split()[:2]) == (asked[0], ["moesim", "validate"])
        return load_profile("p.yaml", Source(None, None, {}), ())

    monkeypatch.setattr(validation, "Calibrating", Calibrating)
    monkeypatch.setattr(validation, "profile_of", profile_of)
    done = moesim(*ASKED[:4], "--backend", "grouped_mm", "--json", *options)
    assert done.code == 0
    found = json.loads(done.out)
    assert found["scenario"]["profile"]["name"] == "measured"
    # A calibration in doubt ends nothing: its errors cannot be told from noise.
    assert (found["verdict"], found["notes"][-1]) == ("noisy", "Of the calibration: nothing repeats.")
    assert asked == [Settings("cpu", processes, "grouped_mm", "fp32", None, seconds=20.0)]
    assert launches == list(range(len(stand_in.asked) + 1))


@pytest.mark.parametrize("device", USUAL)
def test_what_is_calibrated_is_the_back_end_that_runs(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    asked: list[Settings] = []

    def calibrating(settings: Settings, _: Path) -> None:
        asked.append(settings)
        raise ExecutionError("enough")

    monkeypatch.setattr(validation, "Calibrating", calibrating)
    with pytest.raises(ExecutionError, match="enough"):
        validation.calibrated_around(
            deploy(load_scenario("small.yaml")), RunOptions(device), "moesim validate"
        )
    assert [settings.backend for settings in asked] == [executor.USUAL[device]]


def test_what_it_writes(stand_in: StandIn, tmp_path: Path) -> None:
    done = moesim(*ASKED, "-o", "out")
    assert done.code == 0
    assert "report: out/report.html" in done.err
    assert max(len(line) for line in done.out.splitlines()) <= 80
    written = files(tmp_path / "out")
    assert written.keys() >= {
        "scenario.yaml",
        "validation.json",
        "measured.parquet",
        "simulated.parquet",
        "plan/plan.json",
        "profile.yaml",
        "report.html",
    }
    measured = read_timeline(tmp_path / "out" / "measured.parquet")
    assert len(np.unique(measured.repeat_N)) == sum(options.repeats for options in stand_in.asked)
    # The files are enough for the page, for the simulation, and for another validation.
    page = written["report.html"]
    assert moesim("report", "out").code == 0
    assert files(tmp_path / "out")["report.html"] == page
    again = run_of("out/scenario.yaml")
    np.testing.assert_array_equal(again.end_s_N, read_timeline("out/simulated.parquet").end_s_N)
    assert yaml.safe_load((tmp_path / "out" / "profile.yaml").read_text())["name"] == "measured"
    assert moesim("validate", "out/scenario.yaml", *ASKED[2:4], "--profile", "out/profile.yaml").code == 0
    assert moesim(*ASKED, "-o", "out").code == 0


def run_of(file: str) -> Timeline:
    from moesim.deployment.deployment import deploy

    return run(deploy(load_scenario(file))).timeline


def test_another_number_of_ranks_than_was_measured_is_noted(stand_in: StandIn) -> None:
    found = json.loads(moesim("validate", "small.yaml", "--ranks", "4", *ASKED[4:], "--json").out)
    assert found["ranks"] == 4
    assert any("measured with 2 ranks at once, this run has 4" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "generic"], "does not describe the machine it was measured on"),
        (["--profile", "nope.yaml"], "nope.yaml: "),
        (["-s", "model.expert_dtype=fp64"], "model.expert_dtype"),
        (["-o", "small.yaml"], "small.yaml: is not a folder"),
    ],
)
def test_bad_input_is_refused_in_one_line(stand_in: StandIn, arguments: list[str], message: str) -> None:
    assert message in refused(*ASKED, *arguments)
    assert not stand_in.asked


def test_experts_that_do_not_fit_are_refused(stand_in: StandIn) -> None:
    machine = yaml.safe_load(Path("p.yaml").read_text())["machine"]
    machine["gpu"]["memory"] = "100 KB"
    write_profile(Path(), "little.yaml", machine=machine)
    done = moesim(*ASKED[:-1], "little.yaml")
    assert (done.code, done.out) == (2, "")
    assert "more than" in done.err.splitlines()[-1]
    assert not stand_in.asked


@pytest.mark.executor
def test_a_real_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    write_profile(tmp_path)
    write_small(tmp_path, placement={"solver": "greedy", "slots": 10})
    monkeypatch.setattr(validation, "MOST_LAUNCHES", 1)
    found = result()
    assert found["counts_equal"] is True
    assert found["repeats"] == validation.REPEATS
    for quantity in ("router", "experts", "layer"):
        assert 0 < found["seconds"][quantity]["measured"] < 1
        assert found["error"][quantity]["median"] > 0


def test_a_profile_of_other_experts_is_said(stand_in: StandIn, tmp_path: Path) -> None:
    def note(source: str) -> list[str]:
        sources = {"grouped_gemm": f"fitted to 27 loads of experts like those of {source}, back end loop"}
        write_profile(tmp_path, sources=sources)
        return [
            line for line in result()["notes"] if line.startswith("The profile was measured with experts")
        ]

    (line,) = note("cpu-ep2")
    assert "like those of cpu-moe (hidden 512, width 1024, gated), tiny has others (hidden " in line
    assert note("nowhere/config.json") == []
    own = load_scenario("small.yaml").model
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own.model_dump(mode="json")), encoding="utf-8")
    assert note("own.yaml") == []
