"""The GPU benchmark as far as it goes without a GPU: its cases, its rivals on a CPU, its refusal."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("triton")

import torch

from benchmarks.gpu import report
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.cases import LOADS, SHAPES, Case, Shape, cases, draw
from benchmarks.gpu.measure import Row, WrongResultError, batch, check
from benchmarks.gpu.rivals import LAYERS, Weights
from benchmarks.gpu.roofline import Peaks, Roof
from benchmarks.gpu.tuning import neighbours
from executor.kernels.tiles import choose_tiles

pytestmark = pytest.mark.executor

TINY = Shape("tiny", 32, 16, 8, 2)
PEAKS = Peaks(flops=800e12, bandwidth=3e12)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_refuses_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "benchmarks.gpu: needs an NVIDIA GPU, and torch finds none\n")


@given(
    experts=st.integers(2, 64),
    top_k=st.integers(1, 8),
    skew=st.sampled_from([0.0, 1.8]),
    tokens=st.integers(1, 50),
)
def test_a_token_never_chooses_an_expert_twice(experts: int, top_k: int, skew: float, tokens: int) -> None:
    shape = Shape("any", 1, 1, experts, min(top_k, max(1, experts // 3)))
    ids_TK = draw(shape, skew, tokens)
    assert ids_TK.shape == (tokens, shape.top_k)
    assert ids_TK.min() >= 0
    assert ids_TK.max() < experts
    assert all(len(set(row)) == shape.top_k for row in ids_TK.tolist())


@pytest.mark.parametrize(("load", "most"), [("balanced", 1.0), ("gpt-oss", 2.72)])
def test_loads_are_as_named(load: str, most: float) -> None:
    load_E = np.bincount(draw(SHAPES["gpt-oss"], LOADS[load], 50_000).ravel(), minlength=32)
    assert load_E.max() / load_E.mean() == pytest.approx(most, rel=0.03)


def test_a_skew_that_tokens_cannot_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at most one .*\(got 3.0\)"):
        draw(Shape("two", 1, 1, 2, 1 + 1), 3.0, 5)


def test_cases_go_from_one_row_an_expert_to_long_prompts() -> None:
    found = list(cases(SHAPES["deepseek-v3"]))
    assert len(found) == 16
    assert [case.tokens for case in found[:8]] == [32, 128, 512, 2048, 8192, 2048, 8192, 32768]


@pytest.mark.parametrize("name", ["torch", "transformers"])
def test_rivals_compute_the_same(name: str) -> None:
    if name == "transformers":
        pytest.importorskip("transformers")
    case = Case(TINY, "gpt-oss", "decode", 40)
    weights, inputs = Weights.random(TINY, device="cpu"), batch(case, "cpu")
    layer = LAYERS[name].make(weights)
    check(name, layer, inputs, weights)
    with pytest.raises(WrongResultError, match=f"{name} is wrong by"):
        check(name, lambda *given: layer(*given) * 1.03, inputs, weights)
    with pytest.raises(WrongResultError, match="nan"):
        check(name, lambda *given: layer(*given) * float("nan"), inputs, weights)


def test_a_roof_is_bytes_or_flops() -> None:
    """8 experts of 3 · 32 · 16 weights, each chosen; 4 tokens of 2 choices."""
    roof = Roof.of(Case(TINY, "balanced", "decode", 400))
    assert roof.flops == 2 * 800 * 1536
    assert roof.bytes_ == (8 * 1536 + 2 * 400 * 32) * 2
    assert roof.bound(Peaks(1e12, 1e9)) == "memory"
    assert roof.reached(2 * roof.bytes_ / 1e9, Peaks(1e12, 1e9)) == pytest.approx(0.5)
    assert roof.bound(Peaks(1e9, 1e12)) == "compute"


def test_the_report_says_what_was_reached_and_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    case = Case(TINY, "balanced", "decode", 8)
    rows = [
        Row(
            case,
            "memory",
            0.5,
            {"ours": 1e-5, "torch": 2e-5, "transformers": 4e-5},
            {"liger": "not installed"},
        ),
        Row(case, "compute", 0.7, {"ours": 2e-5, "torch": 1e-5}, {"liger": "not installed"}),
    ]
    said = report.summary(rows, PEAKS)
    assert said[1:] == [
        "against the best of the others: 1.00 × in the geometric mean, 0.50 × at worst",
        "bound by compute: 70% of the GEMM peak in the geometric mean, 70% at worst",
        "bound by memory: 50% of the copy bandwidth in the geometric mean, 50% at worst",
        "liger: not installed",
    ]
    assert report.table(rows).row_count == 2
    value = json.loads(report.as_json(rows, PEAKS))
    assert [row["speedup"] for row in value["rows"]] == [2.0, 0.5]
    assert value["rows"][0]["case"]["shape"]["name"] == "tiny"


def test_neighbours_differ_in_one_number_each() -> None:
    chosen = choose_tiles(512, 128, 2048, 768, gated=True, element_bytes=2)
    found = list(neighbours(chosen))
    assert chosen not in found
    assert len(set(found)) == len(found)
