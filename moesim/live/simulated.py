"""A simulated run, repeated like a real one: what its profile says of jitter is drawn anew each time."""

from __future__ import annotations

from collections.abc import Iterator

from moesim.deployment.batch import Seeds
from moesim.deployment.deployment import Deployment
from moesim.live.repeats import join_repeats
from moesim.simulation.conditions import Conditions
from moesim.simulation.jitter import jittered
from moesim.simulation.loop import simulate
from moesim.simulation.price import priced
from moesim.simulation.program import Program
from moesim.simulation.recording import Recording
from traces.timeline import Timeline

REPEATS = 100
"""Whose medians are uncertain by an eighth of what single durations spread."""


def simulated_repeats(deployment: Deployment) -> Timeline:
    """Repeats of all steps, of which each may take another time; one where the profile knows no jitter.

    The first is what ``moesim.simulation.run`` simulates.
    """
    repeats = REPEATS if deployment.scenario.profile.jitter else 1
    drawn = draw_repeats(deployment)
    return join_repeats([play(deployment, next(drawn), deployment.scenario.name) for _ in range(repeats)])


def draw_repeats(deployment: Deployment) -> Iterator[list[Program]]:
    """The programs of all steps, again and again, stretched as the profile's jitter draws."""
    scenario = deployment.scenario
    jitter, ranks, rng = scenario.profile.jitter, scenario.parallelism.ep, Seeds.of(scenario.seed).durations
    programs = [step.settled for step in priced(deployment)]
    while True:
        yield [program.change(lambda each: jittered(each, jitter, ranks, rng)) for program in programs]


def play(deployment: Deployment, programs: list[Program], run: str) -> Timeline:
    """The timeline of these steps, one after the other, on healthy hardware."""
    scenario = deployment.scenario
    conditions = Conditions([deployment.pricing.network(scenario.profile)])
    recording = Recording(run, scenario.model.moe_layers)
    for step, clock in enumerate(simulate(programs, scenario.parallelism.ep, conditions)):
        recording.add_step(step, clock, programs[step].operations)
    return recording.timeline()
