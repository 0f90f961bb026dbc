"""A step of a scenario beside this file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from moesim.deployment.deployment import Deployment, deploy
from moesim.simulation.run import run
from moesim.spec.override import Override
from moesim.spec.scenario import load_scenario

GPUS_PER_NODE = 8


def deployed(name: str, tokens: int | None = None, **fields: Any) -> Deployment:
    """The scenario of this name with these fields.

    Args:
        tokens: tokens a GPU.
        fields: whole fields of the scenario.
    """
    overrides = [Override((key,), value) for key, value in fields.items()]
    if tokens is not None:
        overrides.append(Override(("workload", "tokens_per_gpu"), tokens))
    return deploy(load_scenario(str(Path(__file__).with_name(f"{name}.yaml")), overrides))


def tokens_per_s(name: str, tokens: int | None = None, **fields: Any) -> float:
    """Tokens a second and node."""
    deployment = deployed(name, tokens, **fields)
    seconds: list[float] = []
    done = run(deployment, lambda _, clock: seconds.append(clock.end_s - clock.start_s))
    nodes = deployment.scenario.parallelism.ep / GPUS_PER_NODE
    return done.tokens / float(np.sum(seconds)) / nodes
