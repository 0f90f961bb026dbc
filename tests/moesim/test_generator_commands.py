"""Fitting, generating and describing from the command line, and a scenario that replays a generator."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

import traces.fitting
from moesim.errors import MoesimError
from moesim.report.trace_page import trace_page
from moesim.spec.generator_file import read_generator, shaped, write_generator
from moesim.spec.presets import load_model
from moesim.spec.scenario import load_scenario
from moesim.spec.yaml_source import Source
from tests.moesim.command import moesim, refused
from tests.moesim.tiny import tiny_scenario
from tests.traces.random_traces import random_trace
from traces.full_statistics import full_statistics
from traces.generator import generate
from traces.trace_file import read_trace
from traces.trace_writer import write_trace

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture(autouse=True)
def _recorded(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``t.parquet``, and fits that take no time."""
    monkeypatch.setattr(traces.fitting, "_DRAWS", 1 << 14)
    write_trace(
        random_trace(layers=(1, 2), lengths=(40,) * 6, categories=("a", "é: b"), candidates=4), "t.parquet"
    )
    write_trace(random_trace(lengths=(1,)), "one.parquet")


def fit() -> None:
    assert moesim("trace", "fit", "t.parquet", "-o", "gen.yaml").code == 0


def test_what_is_written_is_read_again() -> None:
    fit()
    found = read_generator("gen.yaml")
    write_generator(found, "again.yaml")
    assert Path("again.yaml").read_bytes() == Path("gen.yaml").read_bytes()
    assert generate(found, 3, 9).digest() == generate(read_generator("again.yaml"), 3, 9).digest()
    assert found.categories == ("a", "é: b")
    assert found.meta.candidates == 4


def test_fitting_again_gives_the_same_bytes() -> None:
    fit()
    first = Path("gen.yaml").read_bytes()
    fit()
    assert Path("gen.yaml").read_bytes() == first


def test_synth_takes_any_shape() -> None:
    fit()
    done = moesim("trace", "synth", "gen.yaml", "--requests", 3, "--tokens", 5, "-o", "same.parquet")
    assert "15 tokens of 3 requests, 2 layers, 8 experts, top-2" in done.out
    assert read_trace("same.parquet").meta.layers == (1, 2)
    shape = ("--layers", 5, "--experts", 32, "--top-k", 3)
    assert moesim("trace", "synth", "gen.yaml", *shape, "--seed", 1, "-o", "big.parquet").code == 0
    meta = read_trace("big.parquet").meta
    assert (len(meta.layers), meta.experts, meta.top_k, meta.candidates) == (5, 32, 3, 5)
    recorded = read_trace("t.parquet").meta.model
    assert read_trace("same.parquet").meta.model == recorded
    assert meta.model == f"like {recorded}, 5 × 32 top-3"
    assert meta.origin.endswith("; in the shape of 5 × 32 top-3")
    options = ("--requests", 2, "--tokens", 4)
    assert (
        moesim("trace", "synth", "gen.yaml", "--model", "deepseek-v3", *options, "-o", "v3.parquet").code == 0
    )
    groups_TLK = read_trace("v3.parquet").ids_TLK // 32
    assert max(len(set(row)) for row in groups_TLK.reshape(-1, 8).tolist()) <= 4


def test_a_scenario_replays_a_generator(here: Path) -> None:
    fit()
    folder = here / "folder"
    folder.mkdir()
    Path("gen.yaml").rename(folder / "gen.yaml")
    for synth in ("gen.yaml", {"file": "gen.yaml", "requests": 5, "tokens_per_request": 9}):
        (folder / "s.yaml").write_text(yaml.safe_dump({**tiny_scenario(), "trace": {"synth": synth}}))
        done = moesim("run", folder / "s.yaml", "--json")
        assert done.code == 0, done.err
        result = json.loads(done.out)
        assert result["trace"]["generated"]
        assert result["trace"]["origin"].endswith("in the shape of tiny")
        scenario = load_scenario(str(folder / "s.yaml"))
        assert scenario.trace.synth is not None
        assert scenario.trace.synth.file == str(folder / "gen.yaml")
        (folder / "resolved.yaml").write_text(scenario.to_yaml())
        assert load_scenario(str(folder / "resolved.yaml")) == scenario


def test_the_shape_of_a_model_is_taken_over() -> None:
    fit()
    model = load_model("qwen3-30b-a3b", Source(None, None, {}))
    meta = shaped(read_generator("gen.yaml"), model).meta
    assert (meta.layers, meta.experts, meta.top_k) == (
        model.moe_layers,
        model.experts.count,
        model.experts.top_k,
    )


def test_one_of_each() -> None:
    done = moesim("trace", "info", "one.parquet", "--full")
    assert done.code == 0, done.err
    assert "1 token of 1 request, " in done.out


def test_a_long_name_is_not_cut(here: Path) -> None:
    name = "a-category-whose-name-is-longer-than-any-terminal-is-wide-" * 2
    write_trace(random_trace(lengths=(40,) * 2, categories=(name,)), "long.parquet")
    shown = moesim("trace", "info", "long.parquet", "--full").out
    table = shown[shown.index("Categories") :]
    assert name in "".join(line.split("│")[1].strip() for line in table.splitlines() if "│" in line)


def test_full_info_and_its_page() -> None:
    done = moesim("trace", "info", "t.parquet", "--full", "--ep", 4, "-o", "page.html")
    assert done.code == 0, done.err
    for words in ("240 tokens of 6 requests", "Drift", "Categories", "Layers"):
        assert words in done.out
    page = Path("page.html").read_text("utf-8")
    assert page == trace_page(full_statistics(read_trace("t.parquet"), ep=4))
    assert page.startswith("<!doctype html>")
    assert "http" not in page.replace("http-equiv", "")
    found = json.loads(moesim("trace", "info", "t.parquet", "--full", "--json").out)
    assert np.array(found["full"]["load"]).shape == (2, 8)
    assert len(found["full"]["parts"]) == 8


@pytest.mark.parametrize(
    ("experts", "top_k", "lengths"), [(1, 1, (1,)), (8, 1, (1, 1)), (200, 4, (30, 10)), (300, 2, (3,))]
)
def test_a_page_of_any_trace(experts: int, top_k: int, lengths: tuple[int, ...]) -> None:
    trace = random_trace(experts=experts, top_k=top_k, lengths=lengths, weights=None)
    page = trace_page(full_statistics(trace))
    assert "nan" not in page
    assert "<svg" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("info", "t.parquet", "-o", "x.html"), "-o: belongs to --full (got 'x.html')"),
        (("info", "t.parquet", "--full", "-o", "t.parquet"), "t.parquet: is what this command reads"),
        (("fit", "none.parquet", "-o", "x.yaml"), "none.parquet: there is no such file"),
        (("fit", "one.parquet", "-o", "x.yaml"), "one.parquet: tokens: is too short to be fitted"),
        (("synth", "gen.yaml", "-o", "none/x.parquet"), "none: there is no such folder"),
        (("synth", "gen.yaml", "--top-k", 9, "-o", "x.parquet"), "top_k: must be between 1 and 8 (got 9)"),
        (
            ("synth", "gen.yaml", "--model", "deepseek-v3", "--layers", 3, "-o", "x.parquet"),
            "--model: has a shape: name it, or --layers, --experts and --top-k (got 'deepseek-v3')",
        ),
    ],
)
def test_what_commands_refuse(arguments: tuple[object, ...], message: str) -> None:
    fit()
    assert refused("trace", *arguments).startswith(message)


def test_loads_alone_have_nothing_more_to_tell() -> None:
    Path("l.json").write_text('{"logical_count": [[1, 2], [3, 4]]}')
    assert "l.json: --full: holds loads and no tokens" in refused("trace", "info", "l.json", "--full")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("format: moesim.generator/1", "format: moesim.generator/2"),
            "gen.yaml: format: needs a newer moesim",
        ),
        (
            ("format: moesim.generator/1", "format: moesim.trace/1"),
            "gen.yaml: format: is not a moesim generator",
        ),
        (("experts: 8", "experts: 9"), "gen.yaml:{line}: topics[0][0]: must hold 9 numbers (got 8)"),
        (("stay: ", "stay: 7"), "gen.yaml: stay: must be between 0 and 1"),
        (("scores: logits", "scores: none"), "gen.yaml:{line}: scores: must be one of"),
        (
            ("categories:\n- a\n", "categories:\n- c\n"),
            "gen.yaml:{line}.category: is not one of categories",
        ),
        (("top_groups: 1", "top_groups: 2"), "gen.yaml: top_groups: must be between 1 and 1 (got 2)"),
        (
            ("top_groups: 1", "top_group: 1"),
            "gen.yaml:{line}: top_group: unknown key; did you mean 'top_groups'?",
        ),
    ],
)
def test_a_damaged_generator_is_refused(change: tuple[str, str], message: str) -> None:
    fit()
    text = Path("gen.yaml").read_text("utf-8")
    assert change[0] in text
    Path("gen.yaml").write_text(text.replace(*change, 1), "utf-8")
    with pytest.raises(MoesimError) as caught:
        read_generator("gen.yaml")
    before, _, after = message.partition("{line}")
    assert str(caught.value).startswith(before)
    assert after in str(caught.value)


@pytest.mark.parametrize("row", ["1 2 x", "1e9 0 0", "9" * 400])
def test_rows_hold_whole_numbers(row: str) -> None:
    fit()
    found = yaml.safe_load(Path("gen.yaml").read_text("utf-8"))
    rest = found["topics"][0][0].split()[len(row.split()) :]
    found["topics"][0][0] = " ".join([row, *rest])
    Path("gen.yaml").write_text(yaml.safe_dump(found), "utf-8")
    with pytest.raises(MoesimError, match=r"gen\.yaml"):
        generate(read_generator("gen.yaml"), 1, 1)


def test_a_generator_beside_a_skew_is_refused() -> None:
    fit()
    Path("s.yaml").write_text(yaml.safe_dump(tiny_scenario()))
    synth = "trace={synth: {file: gen.yaml, skew: 1}}"
    assert "does not belong beside a fitted generator" in refused("run", "s.yaml", "-s", synth)
    assert "trace.synth.skew: is missing" in refused("run", "s.yaml", "-s", "trace={synth: {requests: 4}}")
