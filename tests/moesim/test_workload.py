"""The parts of a scenario that say what is asked: amounts, workload, trace, placement, parallelism."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import SpecError
from moesim.spec.amount import MOST, Amount
from moesim.spec.base import Strict, validate
from moesim.spec.workload import Parallelism, PlacementChoice, TraceSource, Workload

BASE = {"tokens_per_gpu": 4, "context": 8}

amounts = (
    st.integers(0, MOST)
    | st.lists(st.integers(0, MOST), min_size=1, max_size=5)
    | st.tuples(st.integers(0, MOST), st.integers(0, MOST)).map(lambda ends: {"uniform": sorted(ends)})
    | st.builds(
        lambda mean, sigma: {"lognormal": {"mean": mean, "sigma": sigma}},
        st.floats(0.1, MOST),
        st.floats(0, 5),
    )
)


def refused(cls: type[Strict], value: Any, rule: str) -> None:
    with pytest.raises(SpecError) as caught:
        validate(cls, value)
    assert rule in str(caught.value)


# Amounts


@given(written=amounts)
def test_an_amount_is_written_as_it_was_read(written: Any) -> None:
    amount = validate(Amount, written)
    assert amount.model_dump(mode="json") == written
    assert validate(Amount, amount.model_dump(mode="json")) == amount


@given(written=amounts, seed=st.integers(0, 99))
def test_what_ranks_get_lies_in_range_and_follows_from_the_seed(written: Any, seed: int) -> None:
    amount = validate(Amount, written)
    ranks = len(amount.ranks) if amount.ranks is not None else 7
    got, again = (amount.per_rank(ranks, np.random.default_rng(seed)) for _ in range(2))
    assert np.array_equal(got, again)
    assert got.shape == (ranks,)
    assert got.dtype == np.int64
    low, high = amount.uniform or (0, MOST)
    assert (low <= got).all()
    assert (got <= high).all()
    if isinstance(written, int | list):
        assert got.tolist() == (written if isinstance(written, list) else [written] * ranks)


def test_distributions_have_their_means() -> None:
    rng = np.random.default_rng(0)
    uniform = validate(Amount, {"uniform": [10, 20]}).draw(20_000, rng)
    assert (uniform.min(), uniform.max()) == (10, 20)
    assert uniform.mean() == pytest.approx(15, abs=0.1)
    lognormal = validate(Amount, {"lognormal": {"mean": 2000, "sigma": 1}}).draw(20_000, rng)
    assert lognormal.mean() == pytest.approx(2000, rel=0.05)
    assert np.log(lognormal).std() == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize(
    ("written", "rule"),
    [
        (-1, f"must be from 0 to {MOST} (got -1)"),
        (MOST + 1, f"must be from 0 to {MOST}"),
        (1.5, "must be a whole number, a list with one for each rank, or a distribution (got 1.5)"),
        (True, "must be a whole number"),
        ("4", "must be a whole number"),
        (None, "must be a whole number"),
        ([1, -1], "must be at least 0"),
        ([1, 2.5], "must be a whole number"),
        ({}, "must be given in exactly one way"),
        ({"uniform": [1, 2], "each": 3}, "must be given in exactly one way"),
        ({"uniform": [2, 1]}, "must ascend"),
        ({"uniform": [2]}, "is missing"),
        ({"lognormal": {"mean": 0, "sigma": 1}}, "must be greater than 0"),
        ({"lognormal": {"mean": 1, "sigma": 6}}, "must be at most 5"),
        ({"normal": 3}, "unknown key"),
    ],
)
def test_what_is_no_amount(written: Any, rule: str) -> None:
    refused(Amount, written, rule)


# Workloads


def test_a_workload_in_short() -> None:
    workload = validate(Workload, BASE)
    assert (workload.phase, workload.steps) == ("decode", 10)
    assert set(workload.amounts) == {"tokens_per_gpu", "context"}


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"tokens_per_gpu": 0}, "tokens_per_gpu: must be at least 1 on some rank"),
        ({"tokens_per_gpu": [0, 0]}, "tokens_per_gpu: must be at least 1 on some rank"),
        ({"phase": "mixed"}, "prefill_tokens_per_gpu: is missing: phase mixed needs it"),
        ({"prefill_tokens_per_gpu": 3}, "prefill_tokens_per_gpu: belongs to phase mixed"),
        ({"phase": "train"}, "phase: must be one of"),
        ({"steps": 0}, "steps: must be at least 1 (got 0)"),
        ({"steps": (1 << 20) + 1}, "steps: must be at most 1048576"),
        ({"steps": "3"}, "steps: must be a whole number"),
        ({"stepz": 3}, "stepz: unknown key; did you mean 'steps'?"),
    ],
)
def test_workloads_that_are_refused(changes: dict[str, Any], rule: str) -> None:
    refused(Workload, BASE | changes, rule)


# Trace, placement, parallelism


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"file": "x", "synth": {"skew": 1}},
        {"file": None},
        {"sample": False},
        {"sample": True, "file": "x"},
    ],
)
def test_a_trace_has_one_source(value: Any) -> None:
    refused(TraceSource, value, "must name one of file, sample and synth")


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        ({}, "must name either a solver or a file, and not both"),
        ({"solver": "greedy", "file": "p.json"}, "must name either a solver or a file, and not both"),
        ({"file": "p.json", "slots": 8}, "slots: belong to a solver; a file has its own (got 8)"),
        ({"file": "p.json", "hierarchical": True}, "hierarchical: belongs to a solver (got True)"),
        ({"solver": "greedy", "fit_fraction": 0}, "fit_fraction: must be greater than 0"),
        ({"solver": "greedy", "fit_fraction": 1}, "fit_fraction: must be less than 1"),
        ({"solver": "greedy", "slots": 0}, "slots: must be at least 1"),
    ],
)
def test_placements_that_are_refused(value: Any, rule: str) -> None:
    refused(PlacementChoice, value, rule)


def test_attention_groups_are_whole() -> None:
    assert validate(Parallelism, {"ep": 8, "tp": 4}).tp == 4
    refused(Parallelism, {"ep": 8, "tp": 3}, "tp: must divide ep, which is 8 (got 3)")
    refused(Parallelism, {"ep": 0}, "ep: must be at least 1 (got 0)")
