"""The GPU benchmark as far as it goes without a GPU: its cases, its rivals on a CPU, its refusal."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("triton")

import torch

from benchmarks.gpu import measure as module
from benchmarks.gpu import report
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.cases import LOADS, SHAPES, Case, Shape, cases, draw
from benchmarks.gpu.measure import Row, WrongResultError, batch, check
from benchmarks.gpu.rivals import LAYERS, Layer, Rival, Weights, reference_rows
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
    assert [case.load for case in cases(SHAPES["deepseek-v3"], [32])] == ["balanced", "gpt-oss"]
    assert [case.tokens for case in found[:8]] == [32, 128, 512, 2048, 8192, 2048, 8192, 32768]


@pytest.mark.parametrize(
    ("name", "shape"), [("torch", TINY), ("torch", replace(TINY, width=48)), ("transformers", TINY)]
)
def test_rivals_compute_the_same(name: str, shape: Shape) -> None:
    if name == "transformers":
        pytest.importorskip("transformers")
    case = Case(shape, "gpt-oss", "decode", 40)
    weights, inputs = Weights.random(shape, device="cpu"), batch(case, "cpu")
    layer = LAYERS[name].make(weights)
    check(name, layer, inputs, weights)
    with pytest.raises(WrongResultError, match=f"{name} is wrong by"):
        check(name, lambda *given: layer(*given) * 1.03, inputs, weights)
    with pytest.raises(WrongResultError, match="nan"):
        check(name, lambda *given: layer(*given) * float("nan"), inputs, weights)


def test_liger_tunes_itself_for_each_case(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = [SimpleNamespace(cache={"a batch": "its tiles"}) for _ in range(2)]
    taken = SimpleNamespace(
        _fused_up_proj_swiglu_kernel=kernels[0],
        _fused_down_proj_kernel=kernels[1],
        LigerFusedMoEFunction=SimpleNamespace(apply=lambda *given: given),
    )
    monkeypatch.setitem(sys.modules, "liger_kernel", ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.ops", SimpleNamespace(fused_moe=taken))
    weights, inputs = Weights.random(TINY, device="cpu"), batch(Case(TINY, "balanced", "decode", 8), "cpu")
    layer = LAYERS["liger"].make(weights)
    assert [kernel.cache for kernel in kernels] == [{}, {}]
    x_TH, up_ENH, down_EHF, ids_TK, weight_TK = layer(*inputs)
    assert (x_TH is inputs[0], up_ENH is weights.up_ENH, down_EHF is weights.down_EHF) == (True,) * 3
    assert (ids_TK.dtype, weight_TK.dtype) == (torch.int32, torch.bfloat16)


def test_a_roof_is_bytes_or_flops() -> None:
    """8 experts of 3 · 32 · 16 weights, each chosen; 4 tokens of 2 choices."""
    roof = Roof.of(Case(TINY, "balanced", "decode", 400))
    assert roof.flops == 2 * 800 * 1536
    assert roof.bytes_ == (8 * 1536 + 2 * 400 * 32) * 2
    assert roof.bound(Peaks(1e12, 1e9)) == "memory"
    assert roof.reached(2 * roof.bytes_ / 1e9, Peaks(1e12, 1e9)) == pytest.approx(0.5)
    assert roof.bound(Peaks(1e9, 1e12)) == "compute"


MACHINE = {"device": "a GPU", "torch": "2", "triton": "3", "gemm_flops": 8e14, "copy_bandwidth": 3e12}
ROWS = [
    Row(
        Case(TINY, "balanced", "decode", 8),
        "memory",
        0.5,
        {"ours": 1e-5, "torch": 2e-5, "transformers": 4e-5},
        {"liger": "not installed"},
        6e-6,
    ),
    Row(
        Case(TINY, "balanced", "prefill", 8),
        "compute",
        0.7,
        {"ours": 2e-5, "torch": 1e-5},
        {"liger": "not installed"},
        3e-5,
    ),
]


def test_the_report_says_what_was_reached_and_what_is_missing() -> None:
    assert report.summary(ROWS, MACHINE) == [
        "a GPU, torch 2, triton 3: GEMM 800 TFLOP/s, copy 3.00 TB/s",
        "against the best of the others: 1.000 × in the geometric mean; goal 1.00: reached",
        "  at worst 0.500 × (tiny, balanced, prefill, 8 tokens); goal 0.95: missed",
        "bound by compute: 70.0% of the GEMM peak in the geometric mean",
        "  at worst 70.0% (tiny, balanced, prefill, 8 tokens); goal 0.60: reached",
        "  with weights of eight bits 1.50 × the time",
        "bound by memory: 50.0% of the copy bandwidth in the geometric mean",
        "  at worst 50.0% (tiny, balanced, decode, 8 tokens); goal 0.80: missed",
        "  with weights of eight bits 0.60 × the time",
        "liger: not installed, in 2 of 2 cases",
    ]
    assert report.table(ROWS).row_count == 2
    value = json.loads(report.as_json(ROWS, MACHINE))
    assert [row["speedup"] for row in value["rows"]] == [2.0, 0.5]
    assert report.line(ROWS[0]) == (
        "tiny, balanced, decode, 8 tokens: 10 µs, 50% of what memory allows, 2.00 × as fast as the best other"
    )


def test_parts_of_a_run_are_shown_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / f"{place}.json" for place in range(3)]
    for file, row, machine in zip(
        files, [*ROWS, ROWS[0]], [MACHINE, MACHINE, MACHINE | {"torch": "1"}], strict=True
    ):
        file.write_text(report.as_json([row], machine))
    assert report.read_json(files[:2]) == (ROWS, MACHINE)
    assert main(["--join", *map(str, files[:2])]) == 0
    said = capsys.readouterr().out
    assert "against the best of the others: 1.000 × in the geometric mean; goal 1.00: reached" in said
    assert main(["--join", *map(str, files)]) == 2
    rule = f"must be of one machine, 2 as in {files[0]} (got '1')"
    assert capsys.readouterr().err == f"benchmarks.gpu: {files[2]}: machine.torch: {rule}\n"
    files[0].write_text("{}")
    assert main(["--join", str(files[0])]) == 2
    assert "is not a moesim gpu-benchmark" in capsys.readouterr().err


def test_a_case_is_measured_whoever_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, with the reference for our layer and a clock that counts."""

    def ours(weights: Weights) -> Layer:
        return lambda x_TH, ids_TK, weight_TK: reference_rows(x_TH, ids_TK, weight_TK, weights).bfloat16()

    def breaks(weights: Weights) -> Layer:
        raise RuntimeError("not here\nnor there")

    layers = {"ours": Rival(ours, graph=True), "torch": LAYERS["torch"], "liger": Rival(breaks, graph=False)}
    monkeypatch.setattr(module, "LAYERS", layers)
    monkeypatch.setattr(module, "RIVALS", ("torch", "liger"))
    monkeypatch.setattr(module, "batch", partial(batch, device="cpu"))
    graphs: list[bool] = []

    def clock(call: Callable[[], object], *, graph: bool) -> float:
        call()
        graphs.append(graph)
        return float(len(graphs))

    monkeypatch.setattr(module, "median_s", clock)
    weights = Weights.random(TINY, device="cpu")
    row = module.measure(Case(TINY, "balanced", "decode", 8), weights, weights.eight_bits(), PEAKS)
    assert (row.seconds, row.eight_bits_s) == ({"ours": 1.0, "torch": 3.0}, 2.0)
    assert row.missing == {"liger": "RuntimeError: not here"}
    assert row.speedup == 3.0
    assert graphs == [True, True, True]


def test_neighbours_differ_in_one_number_each() -> None:
    chosen = choose_tiles(512, 128, 2048, 768, gated=True, element_bytes=2)
    found = list(neighbours(chosen))
    assert chosen not in found
    assert len(set(found)) == len(found)
