"""What ``moesim presets`` lists is what the code knows."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from moesim.errors import SpecError
from moesim.report.preset_table import preset_tables
from moesim.spec.presets import load_model, preset_names
from moesim.spec.yaml_source import Source
from moesim.studies.presets import catalogue

EVERYTHING = catalogue()
DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("kind", ["models", "gpus", "scenarios", "profiles"])
def test_every_preset_file_is_listed(kind: str) -> None:
    assert [row["name"] for row in EVERYTHING[kind]] == preset_names(kind)


@pytest.mark.parametrize(
    ("kind", "page"),
    [("routing", "policies"), ("replicas", "policies"), ("networks", "hardware")],
)
def test_what_is_listed_is_explained(kind: str, page: str) -> None:
    text = (DOCS / f"{page}.md").read_text("utf-8")
    assert not [row["name"] for row in EVERYTHING[kind] if f"`{row['name']}`" not in text]


def test_every_gpu_has_clusters() -> None:
    assert [row["name"] for row in EVERYTHING["clusters"]][: len(EVERYTHING["gpus"])] == [
        f"{row['name']}-NxM" for row in EVERYTHING["gpus"]
    ]


@pytest.mark.parametrize("kind", EVERYTHING)
def test_rows_of_a_kind_have_the_same_columns_and_no_gaps(kind: str) -> None:
    rows = EVERYTHING[kind]
    assert rows
    assert len({tuple(row) for row in rows}) == 1
    assert all(value != "" and value is not None for row in rows for value in row.values())
    assert catalogue(kind) == {kind: rows}


def test_a_models_row_says_what_its_file_says() -> None:
    (row,) = (row for row in EVERYTHING["models"] if row["name"] == "deepseek-v3")
    model = load_model("deepseek-v3", Source(None, None, {}))
    assert row["MoE layers"] == "58 of 61"
    assert row["experts"] == "256 top-8"
    assert row["total"] == f"{model.total_params / 1e9:.1f} B"
    assert row["source"] == model.source


def test_an_unknown_kind_lists_the_known_ones() -> None:
    with pytest.raises(
        SpecError, match=r"presets: no such kind; did you mean 'models'\? known: models, gpus"
    ):
        catalogue("model")


def test_tables_have_a_row_for_each() -> None:
    found = {table.title: len(table.rows) for table in preset_tables(EVERYTHING)}
    for kind, rows in EVERYTHING.items():
        assert found[kind] == len(rows)
        assert (f"{kind}: source" in found) == ("source" in rows[0])


def test_tables_are_read_at_80_columns() -> None:
    out = io.StringIO()
    console = Console(file=out, width=80)
    console.print(*preset_tables({"models": EVERYTHING["models"], "routing": EVERYTHING["routing"]}))
    text = out.getvalue()
    assert "huggingface.co/deepseek-ai/DeepSeek-V3" in text
    for words in ("capacity_factor", "renormalise=false", "candidates", "instead=candidates"):
        assert words in text


def test_policies_say_their_parameters_needs_and_sources() -> None:
    rows = {row["name"]: row for row in EVERYTHING["routing"]}
    assert rows["top_k"] == {
        "name": "top_k",
        "is": "Each token visits its k best experts.",
        "parameters": "k, renormalise=false",
        "needs": "weights",
        "source": "arXiv 2505.03531",
    }
    assert rows["limited"]["is"].startswith("Each token visits experts of its 'most' best units only")
    assert rows["reroute"]["needs"] == "candidates, weights"
    assert "capacity_factor=1.25" in rows["switch"]["parameters"]
    assert "order=position" in rows["switch"]["parameters"]
    assert rows["switch"]["needs"] == "nothing"
    assert "2101.03961" in rows["switch"]["source"]
    assert "``" not in str(EVERYTHING)
    chosen = {row["name"]: row["decided by"] for row in EVERYTHING["replicas"]}
    assert chosen["nearest"] == "each home rank alone"
    assert chosen["least_loaded"] == "all ranks together"


def test_every_policy_has_a_source_but_those_without_a_paper() -> None:
    without = [row["name"] for row in EVERYTHING["routing"] if row["source"] == "none"]
    assert without == ["none", "uniform_random"]
