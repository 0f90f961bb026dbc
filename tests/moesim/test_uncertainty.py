"""Draws within the uncertainties of a profile, and the intervals that come of them."""

from __future__ import annotations

import json
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.analysis.result import simulate_scenario
from moesim.analysis.result_file import Result
from moesim.errors import SpecError
from moesim.report.comparison_answer import whatif_answer
from moesim.spec.presets import preset_names, preset_source
from moesim.spec.profile import Profile, load_profile
from moesim.spec.scenario import Scenario, load_scenario
from moesim.spec.uncertainty import covering, draws, figures, normal_D
from moesim.spec.yaml_source import Source
from moesim.studies.points import Point
from moesim.studies.whatif import compare
from tests.moesim.command import moesim, refused
from tests.moesim.tiny import tiny_scenario, write_scenario
from tests.tolerance import rounding

UNCERTAIN = {
    "gemm": 0.05,
    "grouped_gemm": 0.1,
    "grouped_gemm.memory": 0.2,
    "launch": 0.3,
    "dispatch.per_gpu": 0.1,
}


def profile_fields(**uncertainty: float) -> dict[str, Any]:
    fields: dict[str, Any] = preset_source("profiles", "generic").value
    fields.pop("uncertainty", None)
    return fields | {"uncertainty": uncertainty or UNCERTAIN}


def profile(**uncertainty: float) -> Profile:
    return load_profile(profile_fields(**uncertainty), Source(None, None, {}), ())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("uncertainty")


def scenario(folder: Path, **changes: Any) -> Scenario:
    return load_scenario(str(write_scenario(folder, tiny_scenario(profile=profile_fields(), **changes))))


@given(key=st.text(min_size=1), count=st.integers(2, 200))
def test_each_stratum_has_one_draw(key: str, count: int) -> None:
    from statistics import NormalDist

    stratum_D = [int(NormalDist().cdf(score) * count) for score in normal_D(key, count)]
    assert sorted(stratum_D) == list(range(count))
    np.testing.assert_array_equal(normal_D(key, count), normal_D(key, count))


def test_a_family_is_drawn_together_and_a_figure_of_its_own_apart() -> None:
    whole = profile()
    for drawn in draws(whole, whole.uncertainty, 20):
        # Half the rate takes twice as long; a share stays below the whole.
        longer = whole.gemm.compute / drawn.gemm.compute
        assert drawn.gemm.memory == pytest.approx(min(1.0, whole.gemm.memory / longer), rel=rounding(100))
        assert max(drawn.gemm.memory, drawn.dispatch["per_gpu"].nic) <= 1.0
        assert drawn.tiles == whole.tiles
        assert drawn.memory == whole.memory
        assert drawn.attention == whole.attention
        assert drawn.launch > 0
    both = [(each.grouped_gemm.compute, each.grouped_gemm.memory) for each in whole.draws(20)]
    assert len({round(compute * memory, 12) for compute, memory in both}) == 20
    spread = np.std(np.log([each.launch for each in whole.draws(400)]))
    assert spread == pytest.approx(0.3, rel=0.02)


def test_the_longest_key_counts() -> None:
    assert covering("grouped_gemm.memory", UNCERTAIN) == "grouped_gemm.memory"
    assert covering("grouped_gemm.compute", UNCERTAIN) == "grouped_gemm"
    assert covering("dispatch.per_gpu.nic", UNCERTAIN) == "dispatch.per_gpu"
    assert covering("dispatch.per_gpu_too.nic", UNCERTAIN) is None
    assert {"launch", "gemm.compute", "dispatch.per_node.nvlink"} <= set(figures(profile()))
    assert not {"memory", "gemm.overlap", "tiles"} & set(figures(profile()))


@pytest.mark.parametrize("name", preset_names("profiles"))
def test_every_figure_of_a_preset_says_how_far_it_may_be_off(name: str) -> None:
    preset = load_profile(name, Source(None, None, {}), ())
    plain = preset.model_dump()
    for figure in figures(preset):
        value: Any = reduce(lambda inside, key: inside[key], figure.split("."), plain)
        assert not value or covering(figure, preset.uncertainty) is not None, figure


def test_an_uncertainty_of_nothing_is_refused() -> None:
    with pytest.raises(SpecError, match=r"uncertainty\.gem: names no figure of the profile"):
        profile(gem=0.1)
    with pytest.raises(SpecError, match=r"uncertainty\.launch"):
        profile(launch=0.0)


def test_intervals_hold_what_was_asked_and_every_draw_adds_up(folder: Path) -> None:
    asked = scenario(folder)
    _, found = simulate_scenario(asked, 20)
    drawn = found.intervals
    assert drawn is not None
    assert len(drawn.drawn_step_s) == drawn.samples == 20
    assert drawn.step_time_s[0] < found.metrics.step_time_s.mean < drawn.step_time_s[1]
    # One of the draws, simulated by itself: the profile is all that differs.
    own = asked.model_copy(update={"profile": asked.profile.draws(20)[7]})
    assert simulate_scenario(own)[1].metrics.step_time_s.mean == pytest.approx(
        drawn.drawn_step_s[7], rel=rounding(10**6)
    )
    # Nothing else of the result knows of draws.
    plain = simulate_scenario(asked)[1].plain()
    assert {key: value for key, value in found.plain().items() if key not in ("intervals", "provenance")} == {
        key: value for key, value in plain.items() if key != "provenance"
    }
    assert Result.model_validate_json(json.dumps(found.plain())) == found


def test_points_share_their_draws(folder: Path) -> None:
    """The scenario beside itself: faster in none of the draws, and a speedup of exactly one."""
    base = scenario(folder)
    comparison = compare(base, [Point({"seed": 0}, base)], samples=20)
    assert comparison.outcomes[0].speedup_interval == [1.0, 1.0]
    assert comparison.faster == [[0.0, 0.0], [0.0, 0.0]]
    slower = scenario(folder, parallelism={"ep": 2}, workload=tiny_scenario()["workload"])
    comparison = compare(base, [Point({"parallelism.ep": 2}, slower)], samples=20)
    assert comparison.faster is not None
    assert comparison.faster[0][1] + comparison.faster[1][0] == 1.0


def test_what_the_draws_do_not_tell_apart_is_said(folder: Path) -> None:
    base = scenario(folder)
    other = Point({"placement": "greedy"}, scenario(folder, placement="greedy"))
    comparison = compare(base, [other], samples=20)
    close = comparison.model_copy(update={"faster": [[0.0, 0.4], [0.6, 0.0]]})
    doubt = "It cannot be told from the scenario itself: it is faster in 60 % of 20 draws"
    assert doubt in whatif_answer(close)
    told = comparison.model_copy(update={"faster": [[0.0, 0.0], [1.0, 0.0]]})
    assert "cannot be told" not in whatif_answer(told)


@pytest.mark.usefixtures("here")
def test_a_profile_without_uncertainties_runs_and_refuses_draws(folder: Path) -> None:
    fields = profile_fields()
    del fields["uncertainty"]
    path = write_scenario(folder, tiny_scenario(profile=fields), "certain.yaml")
    assert moesim("run", path).code == 0
    assert "does not say how far its figures may be off" in refused("run", path, "--samples", 20)
    assert "--samples" in refused("whatif", path, "--vary", "seed=[1]", "--samples", 20)
    assert "--samples: must be 0, or 10 to 1000 (got 3)" in refused("run", path, "--samples", 3)


def test_tables_show_the_intervals(folder: Path) -> None:
    path = write_scenario(folder, tiny_scenario(profile=profile_fields()), "uncertain.yaml")
    assert "9 of 10 draws" in moesim("run", path, "--samples", 10).out
    assert "9 of 10" in moesim("whatif", path, "--vary", "placement=[greedy]", "--samples", 10).out
