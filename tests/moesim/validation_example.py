"""A validation, made up but consistent, from which the tests build its page and tables."""

from __future__ import annotations

from typing import Any

import numpy as np

from moesim.analysis.scenario_facts import TraceFacts
from moesim.analysis.validation import compare
from moesim.analysis.validation_file import ValidationResult
from tests.moesim.moe_timelines import moe_timeline
from traces.timeline import Timeline


def example_validation(
    layers: int = 6, ranks: int = 2, steps: int = 2, repeats: int = 6, seed: int = 1
) -> tuple[dict[str, Any], Timeline, Timeline]:
    """validation.json and both timelines: loads are log-normal, the simulation is a few per cent off."""
    rng = np.random.default_rng(seed)
    shape = (1, steps, layers, ranks)
    real = {
        "router": np.full(shape, 2e-4),
        "dispatch": 8e-4 * rng.lognormal(0, 0.2, shape),
        "experts": 2e-3 + 1e-2 * rng.lognormal(0, 0.4, shape),
        "combine": 9e-4 * rng.lognormal(0, 0.2, shape),
    }
    noise = {"router": 0.05, "dispatch": 0.3, "experts": 0.01, "combine": 0.3}
    measured = {
        phase: seconds * rng.lognormal(0, noise[phase], (repeats, *shape[1:]))
        for phase, seconds in real.items()
    }
    simulated = {phase: seconds * rng.lognormal(0.01, 0.04, shape) for phase, seconds in real.items()}
    true_layers = tuple(range(layers))
    timelines = (
        moe_timeline(measured, "measured", true_layers),
        moe_timeline(simulated, "simulated", true_layers),
    )
    found = compare(*timelines)
    result = ValidationResult(
        format="moesim.validation/1",
        scenario={
            "name": "example",
            "model": {"name": "example-moe"},
            "cluster": {"gpu": {"name": "CPU"}, "nodes": 1, "gpus_per_node": ranks},
            "parallelism": {"ep": ranks, "tp": 1},
            "workload": {"phase": "decode", "tokens_per_gpu": 8, "steps": steps},
            "placement": {"solver": "linear"},
            "routing": {"policy": "none"},
            "dispatch": {"mode": "per_gpu"},
        },
        device="cpu",
        verdict="ok" if found.steady else "noisy",
        **found.summary(),
        counts_equal=True,
        simulated_phases=[],
        notes=["2 ranks share 1 core."],
        trace=TraceFacts.model_validate(
            {
                "name": "synthetic",
                "origin": "generated",
                "tokens": 4096,
                "requests": 64,
                "skew": 2.9,
                "generated": True,
            }
        ),
        provenance={
            "moesim": "0.1.0",
            "profile": "example",
            "command": "moesim validate example --ranks 2",
        },
    )
    return result.plain(), *timelines
