"""Measured kernels on the simulated network, and launches put together."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.analysis.cube import Cube
from moesim.deployment.deployment import Deployment, deploy
from moesim.errors import TimelineError
from moesim.live.on_network import on_simulated_network
from moesim.live.repeats import join_repeats
from moesim.simulation.run import run
from moesim.spec.scenario import load_scenario
from tests.moesim.moe_timelines import moe_timeline, noisy_seconds
from tests.moesim.tiny import TINY, on_generic, tiny_scenario, write_scenario
from tests.tolerance import rounding
from traces.timeline import PHASES, Timeline

KERNELS = [PHASES.index(phase) for phase in ("router", "shared_expert", "experts")]


def deployed(folder: Path, **changes: Any) -> Deployment:
    fields = copy.deepcopy(tiny_scenario(**changes))
    fields["workload"]["part"] = "moe"
    fields["model"]["experts"] |= {"shared_width": 16}
    return deploy(load_scenario(str(write_scenario(folder, fields))))


def columns(timeline: Timeline) -> dict[str, np.ndarray]:
    return {name: values for name, values in vars(timeline).items() if name != "run"}


@pytest.mark.parametrize(
    ("mode", "overlap"), [("per_gpu", "none"), ("per_node", "none"), ("per_node", "two_batch")]
)
def test_kernels_that_took_what_was_simulated_change_nothing(tmp_path: Path, mode: str, overlap: str) -> None:
    cluster = TINY["cluster"] | {"gpu": TINY["cluster"]["gpu"] | {"sms": 100}}
    dispatch = {"mode": mode, "dtype": "bf16", "combine_dtype": "bf16"}
    profile = on_generic(transfers=None)  # kernels are measured with no transfer beside them
    deployment = deployed(tmp_path, dispatch=dispatch, overlap=overlap, cluster=cluster, profile=profile)
    simulated = run(deployment).timeline
    kernels = simulated.select(np.isin(simulated.phase_N, KERNELS))
    found = on_simulated_network(deployment, join_repeats([kernels, kernels]))
    found.validate()
    for repeat in (0, 1):
        part = found.select(found.repeat_N == repeat)
        for name, expected in columns(simulated).items():
            if name != "repeat_N":
                np.testing.assert_allclose(
                    columns(part)[name], expected, rtol=rounding(10**6), atol=rounding(8)
                )


def test_slow_experts_of_one_rank_delay_all_others(tmp_path: Path) -> None:
    deployment = deployed(tmp_path)
    simulated = run(deployment).timeline
    experts = simulated.select(simulated.phase_N == PHASES.index("experts"))
    late = (experts.rank_N == 2) & (experts.step_N == 1)
    slow = dataclasses.replace(experts, end_s_N=experts.end_s_N + np.where(late, 1.0, 0.0))
    found = on_simulated_network(deployment, slow)
    before, after = Cube.of(simulated), Cube.of(found)
    grown = after.seconds("experts") - before.seconds("experts")
    expected = np.zeros_like(grown)
    expected[1, :, 2] = 1.0
    np.testing.assert_allclose(grown, expected, rtol=0, atol=rounding(1000))
    # What is not measured stays as it was, and the others wait.
    np.testing.assert_allclose(after.seconds("router"), before.seconds("router"), rtol=rounding(10**6))
    waits = after.seconds("wait")[1] - before.seconds("wait")[1]
    assert (waits[:, [0, 1, 3]] > 0.9).all()


def test_kernels_of_another_run_are_refused(tmp_path: Path) -> None:
    deployment = deployed(tmp_path)
    timeline = run(deployment).timeline
    kernels = timeline.select(np.isin(timeline.phase_N, KERNELS))
    with pytest.raises(TimelineError, match=r"tiny: must be of 2 steps, layers \(1, 2\) and 4 ranks"):
        on_simulated_network(deployment, kernels.select(kernels.rank_N < 3))
    with pytest.raises(TimelineError, match="must have one span of router for each of 2 steps"):
        on_simulated_network(deployment, kernels.select(np.arange(len(kernels)) > 0))


def test_launches_become_repeats_of_one_run() -> None:
    shape = (2, 1, 3, 2)
    first, second = (moe_timeline(noisy_seconds(np.random.default_rng(seed), shape)) for seed in (1, 2))
    joined = join_repeats([first, second, first])
    joined.validate()
    assert np.unique(joined.repeat_N).tolist() == [0, 1, 2, 3, 4, 5]
    for part, repeats in ((first, (0, 1)), (second, (2, 3)), (first, (4, 5))):
        for number, repeat in enumerate(repeats):
            expected, found = part.select(part.repeat_N == number), joined.select(joined.repeat_N == repeat)
            for name, values in columns(expected).items():
                if name != "repeat_N":
                    np.testing.assert_array_equal(columns(found)[name], values)
