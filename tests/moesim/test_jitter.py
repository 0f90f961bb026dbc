"""Durations that spread: drawn as a profile says, on the clock, in a run, and as calibrated."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.analysis.cube import Cube
from moesim.analysis.result import simulate_deployment
from moesim.calibration.jitter import fit_jitter, jitter_of
from moesim.calibration.observed import Observed
from moesim.deployment.batch import Seeds
from moesim.deployment.deployment import Deployment, deploy
from moesim.errors import SpecError
from moesim.hardware.network import Ports
from moesim.live.simulated import REPEATS, simulated_repeats
from moesim.simulation.conditions import Conditions
from moesim.simulation.jitter import jittered, ratios
from moesim.simulation.operations import Operation
from moesim.simulation.run import run as simulate_scenario
from moesim.spec.base import validate
from moesim.spec.profile import Jitter, load_profile
from moesim.spec.scenario import load_scenario
from moesim.spec.yaml_source import Source
from tests.examples import examples
from tests.moesim.programs import LAYERS, SLOW, collective, compute, run
from tests.moesim.tiny import on_generic, tiny_scenario, write_scenario
from tests.tolerance import rounding

WIDE = Jitter(ratios=(0.5, 0.8, 1.0, 1.5, 3.0), together=0.4)


def stretched(operation: Operation, *factors: float) -> Operation:
    return dataclasses.replace(operation, stretch_G=np.array(factors))


def deployed(folder: Path, jitter: dict[str, Any], **changes: Any) -> Deployment:
    profile = on_generic(jitter=jitter)
    return deploy(load_scenario(str(write_scenario(folder, tiny_scenario(profile=profile, **changes)))))


def test_the_clock_by_hand() -> None:
    """Kernels with their launches take twice as long on rank 1; its transfer from when both have entered.

    Both enter at 4 s: rank 1 needed 2 · (1 + 1). The exchange takes 4 s, and 0.5 s of overhead: rank 0 leaves
    at 4 + 4.5 · 1, rank 1 at 4 + 4.5 · 3.
    """
    clock = run(
        [
            stretched(compute("router", 0, 1.0, 1.0, overhead=1.0), 1.0, 2.0),
            stretched(collective("dispatch", 0, [[0.0, 4.0], [4.0, 0.0]], overhead=0.5), 1.0, 3.0),
        ]
    )
    assert clock.end_OG[0].tolist() == [2.0, 4.0]
    assert clock.start_OG[1].tolist() == [4.0, 4.0]
    assert clock.end_OG[1].tolist() == [8.5, 17.5]


def test_who_is_late_in_a_stretched_collective_takes_nothing_of_the_next_one_earlier() -> None:
    """Rank 0 leaves the first at 4 s, rank 1 at 12 s; rank 0 has 4 s of bytes for it, which end at 16 s."""
    clock = run(
        [
            stretched(collective("dispatch", 0, [[0.0, 4.0], [4.0, 0.0]]), 1.0, 3.0),
            collective("combine", 0, [[0.0, 4.0], [0.0, 0.0]]),
        ]
    )
    assert clock.entered_OG[1].tolist() == [4.0, 12.0]
    assert clock.end_OG[1].tolist() == [16.0, 16.0]


def test_a_kernel_that_is_slow_in_its_midst_is_stretched_too() -> None:
    """2 s of work, 4 s of it after a change at 3 s; all of it three times as long: 2 + (1 - 2 / 6) · 12."""
    operation = dataclasses.replace(compute("experts", 0, 2.0), later_EG=(np.array([4.0]),))
    conditions = Conditions([Ports(SLOW)] * 2, (3.0,))
    assert conditions.seconds(operation, 0, 1.0) == pytest.approx(2.0)
    assert conditions.seconds(stretched(operation, 3.0), 0, 1.0) == pytest.approx(2 + (1 - 2 / 6) * 12)


def test_what_does_not_jitter_keeps_its_time() -> None:
    drawn = jittered(LAYERS, {"experts": WIDE}, 2, np.random.default_rng(0))
    for before, after in zip(LAYERS, drawn, strict=True):
        assert (after is before) == (before.phase != "experts")
    # What another phase draws is its own.
    more = jittered(LAYERS, {"experts": WIDE, "router": WIDE}, 2, np.random.default_rng(0))
    for one, other in zip(drawn, more, strict=True):
        if one.phase == "experts":
            np.testing.assert_array_equal(one.stretch_G, other.stretch_G)


@given(
    quantiles=st.lists(st.floats(0.1, 9.0), min_size=2, max_size=6).map(sorted),
    together=st.floats(0, 1),
    seed=st.integers(0, 99),
)
@settings(max_examples=examples(8))
def test_draws_have_the_quantiles(quantiles: list[float], together: float, seed: int) -> None:
    """Of many draws as many lie below each quantile as should."""
    jitter = Jitter(ratios=tuple(quantiles), together=together)
    drawn_NG = np.array([ratios(jitter, each) for each in np.random.default_rng(seed).normal(size=(2000, 2))])
    assert quantiles[0] <= drawn_NG.min() <= drawn_NG.max() <= quantiles[-1]
    for place in (0.3, 0.5, 0.7):
        expected = np.interp(place, (np.arange(len(quantiles)) + 0.5) / len(quantiles), quantiles)
        below = (drawn_NG <= expected * (1 + 1e-9)).mean()
        assert below >= place - 0.05
        assert (drawn_NG < expected * (1 - 1e-9)).mean() <= place + 0.05


def test_a_calibration_finds_the_jitter_that_was_drawn() -> None:
    """Lognormal durations around medians of any size, and scores that correlate by 0.3."""
    rng = np.random.default_rng(3)
    score = np.sqrt(0.3) * rng.normal(size=(400, 30, 1)) + np.sqrt(0.7) * rng.normal(size=(400, 30, 2))
    seconds_RCG = 10 ** rng.uniform(-4, -1, (30, 2)) * np.exp(0.2 * score)
    plan = SimpleNamespace(
        tokens_CG=np.ones((30, 2)),
        work=SimpleNamespace(served_LG=np.ones((30, 2))),
        repeats=dict.fromkeys(("router", "experts", "dispatch", "combine"), seconds_RCG),
        seconds=dict.fromkeys(("router", "experts", "dispatch", "combine"), np.median(seconds_RCG, axis=0)),
    )
    found = fit_jitter([cast(Observed, plan)])
    assert set(found) == {"router", "experts", "dispatch", "combine"}
    places = (np.arange(20) + 0.5) / 20
    expected = np.exp(0.2 * scipy.stats.norm.ppf(places))
    np.testing.assert_allclose(found["experts"].ratios, expected, rtol=0.02)
    assert found["experts"].together == pytest.approx(0.3, abs=0.03)
    # Ranks without rows compute nothing, which says nothing of how their experts' times spread.
    plan.work.served_LG[:29, 1] = 0
    assert found["experts"] != fit_jitter([cast(Observed, plan)])["experts"]
    plan.tokens_CG = np.ones((30, 1))
    assert set(fit_jitter([cast(Observed, plan)])) == {"router", "experts"}


@pytest.mark.parametrize("together", [0.0, 0.4, 0.9])
def test_what_is_drawn_is_found_again(together: float) -> None:
    places = (np.arange(20) + 0.5) / 20
    jitter = Jitter(ratios=tuple(np.exp(0.3 * scipy.stats.norm.ppf(places))), together=together)
    normal_NG = np.random.default_rng(1).normal(size=(5000, 4))
    found = jitter_of(np.array([ratios(jitter, each_G) for each_G in normal_NG]))
    assert found.together == pytest.approx(together, abs=0.03)
    np.testing.assert_allclose(found.ratios, jitter.ratios, rtol=0.05)


def test_ranks_that_never_differ_have_no_correlation() -> None:
    assert jitter_of(np.ones((5, 2))) == Jitter(ratios=(1.0,) * 20, together=0.0)
    opposite = np.array([[0.9, 1.1], [1.1, 0.9]])
    assert jitter_of(opposite).together == 0.0


@pytest.mark.parametrize(
    ("jitter", "rule"),
    [
        ({"ratios": [1.0, 0.9], "together": 0}, "ratios: must ascend"),
        ({"ratios": [0.0, 1.0], "together": 0}, "ratios"),
        ({"ratios": [1.0], "together": 0}, "ratios"),
        ({"ratios": [1.0, 2.0], "together": 1.5}, "together"),
        ({"ratios": [1.0, 2.0]}, "together"),
        ({"ratios": [1.0, 2.0], "together": 0, "from_s": 1}, "from_s"),
    ],
)
def test_broken_jitter_is_refused(jitter: dict[str, Any], rule: str) -> None:
    profile = on_generic(jitter={"experts": jitter})
    with pytest.raises(SpecError, match=rule):
        load_profile(profile, Source(None, None, {}), ())
    with pytest.raises(SpecError, match="jitter"):
        load_profile(profile | {"jitter": {"thinking": WIDE.model_dump()}}, Source(None, None, {}), ())


def test_a_run_draws_it_seeded_and_blames_the_hardware(tmp_path: Path) -> None:
    jitter = {"experts": WIDE.model_dump(mode="json"), "combine": WIDE.model_dump(mode="json")}
    deployments = [deployed(tmp_path, each) for each in (jitter, {})]
    with_it, without = (simulate_scenario(each) for each in deployments)
    again = simulate_scenario(deployed(tmp_path, jitter))
    np.testing.assert_array_equal(with_it.timeline.end_s_N, again.timeline.end_s_N)
    other = simulate_scenario(deployed(tmp_path, jitter, seed=1))
    assert other.timeline.end_s_N.max() != with_it.timeline.end_s_N.max()
    # The same work, in the same time but for what jitters.
    cubes = [Cube.of(each.timeline) for each in (with_it, without)]
    stretch, slack = cubes[0].seconds("experts") / cubes[1].seconds("experts"), rounding(10**4)
    assert 0.5 * (1 - slack) <= stretch.min() < stretch.max() <= 3.0 * (1 + slack)
    np.testing.assert_allclose(cubes[0].seconds("router"), cubes[1].seconds("router"))
    terms = [simulate_deployment(each)[1].attribution.plain() for each in deployments]
    assert terms[0]["hardware_s"] > 0 == terms[1]["hardware_s"]
    assert {**terms[0], "hardware_s": 0} == pytest.approx({**terms[1], "hardware_s": 0})


def test_repeats_of_a_validation_differ_by_jitter_alone(tmp_path: Path) -> None:
    part = {"workload": tiny_scenario()["workload"] | {"part": "moe"}}
    jitter = {phase: WIDE.model_dump(mode="json") for phase in ("experts", "dispatch")}
    deployment = deployed(tmp_path, jitter, **part)
    found = simulated_repeats(deployment)
    assert np.unique(found.repeat_N).tolist() == list(range(REPEATS))
    first = found.select(found.repeat_N == 0)
    np.testing.assert_array_equal(first.end_s_N, simulate_scenario(deployment).timeline.end_s_N)
    steady = deployed(tmp_path, {}, **part)
    once = simulated_repeats(steady)
    np.testing.assert_array_equal(once.end_s_N, simulate_scenario(steady).timeline.end_s_N)
    seconds_RWLG = [
        Cube.of(found.select(found.repeat_N == repeat)).seconds("experts") for repeat in range(REPEATS)
    ]
    # Medians are those of the costs, within what a hundred draws leave open.
    relative = np.median(seconds_RWLG, axis=0) / Cube.of(once).seconds("experts")
    assert np.abs(np.median(relative) - 1) < 0.1


def test_jitter_has_randomness_of_its_own() -> None:
    """Another purpose must not move what the others draw."""
    seeds, before = Seeds.of(7), np.random.SeedSequence(7).spawn(5)
    for name, each in zip(("decode", "prefill", "tokens", "contexts", "jitter"), before, strict=True):
        assert getattr(seeds, name).random() == np.random.default_rng(each).random()


def test_a_jitter_reads_back_from_a_profile() -> None:
    assert validate(Jitter, WIDE.model_dump(mode="json")) == WIDE
