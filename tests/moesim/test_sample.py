"""The built-in sample: what it holds, and who replays it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from moesim.analysis.result import trace_facts
from moesim.deployment.deployment import deploy
from moesim.deployment.reading import load_trace
from moesim.spec.generator_file import read_generator, shaped
from moesim.spec.override import Override
from moesim.spec.scenario import Scenario, load_scenario
from tests.moesim.command import moesim
from tests.traces.random_traces import random_trace
from traces.generator import generate
from traces.routing import RoutingTrace
from traces.sample import SAMPLE_GENERATOR, SAMPLE_TRACE
from traces.statistics import expert_loads
from traces.trace_file import read_trace
from traces.trace_writer import write_trace


@pytest.fixture(scope="module")
def sample() -> RoutingTrace:
    return read_trace(SAMPLE_TRACE)


def scenario(model: str) -> Scenario:
    """A small step on one node."""
    fields = {
        "model": model,
        "cluster": "h100-1x8",
        "parallelism": {"ep": 8},
        "workload": {"tokens_per_gpu": 4, "context": 16, "steps": 1},
        "trace": {"sample": True},
    }
    return load_scenario("demo", [Override((key,), value) for key, value in fields.items()])


def test_it_is_a_valid_trace_of_both_domains_with_candidates(sample: RoutingTrace) -> None:
    sample.validate()
    assert SAMPLE_TRACE.stat().st_size <= 6_000_000
    assert sample.categories == ("code", "prose")
    assert sample.category_T is not None
    assert np.bincount(sample.category_T).tolist() == [sample.tokens // 2] * 2
    assert sample.candidate_ids_TLC is not None
    assert sample.candidate_ids_TLC.shape[2] == 12
    assert "tiny_moe" in sample.meta.origin
    assert "PSF License" in sample.meta.licence


def test_its_model_replays_it_as_it_was_recorded(sample: RoutingTrace) -> None:
    deployment = deploy(scenario("tiny-moe"))
    assert deployment.trace.digest() == sample.digest()
    facts = trace_facts(deployment)
    assert (facts.name, facts.generated) == ("the built-in sample", False)


def test_other_models_replay_more_of_its_kind() -> None:
    deployment = deploy(scenario("gpt-oss-20b"))
    made = deployment.trace
    assert (len(made.meta.layers), made.meta.experts, made.meta.top_k) == (24, 32, 4)
    wanted = generate(shaped(read_generator(SAMPLE_GENERATOR), deployment.scenario.model), 64, 64, 0)
    assert made.digest() == wanted.digest()
    assert made.candidate_ids_TLC is not None
    facts = trace_facts(deployment)
    assert facts.generated
    assert facts.name == "like the built-in sample, in the shape of gpt-oss-20b"
    assert "tiny_moe" in facts.origin


def test_its_generator_was_fitted_to_it(sample: RoutingTrace) -> None:
    generator = read_generator(SAMPLE_GENERATOR)
    assert generator.meta.origin.endswith(sample.meta.origin)
    assert generator.categories == sample.categories
    made, loads = generate(generator, 64, 128), expert_loads(sample)
    share_LE, sample_LE = (
        load_LE / load_LE.sum(axis=1, keepdims=True) for load_LE in (expert_loads(made), loads)
    )
    assert np.abs(share_LE - sample_LE).sum(axis=1).max() < 0.1


def test_the_generated_trace_is_made_once_in_a_process() -> None:
    assert load_trace(scenario("gpt-oss-20b")) is load_trace(scenario("gpt-oss-20b"))


def test_commands_know_it_by_its_name(here: Path) -> None:
    found = json.loads(moesim("trace", "info", "sample", "--json").out)
    assert found["meta"]["model"] == "tiny-moe"
    (row,) = json.loads(moesim("presets", "traces", "--json").out)["traces"]
    assert (row["name"], row["file"]) == ("sample", str(SAMPLE_TRACE))
    placed = moesim("place", "sample", "--gpus", 8, "--solver", "greedy", "-o", "p.json")
    assert placed.code == 0
    # A file of that name comes first.
    write_trace(random_trace(), "sample")
    assert json.loads(moesim("trace", "info", "sample", "--json").out)["meta"]["model"] == "tiny"
