"""What ``moesim presets`` lists is what the code knows."""

from __future__ import annotations

import pytest

from moesim.catalogue import catalogue
from moesim.errors import SpecError
from moesim.report.preset_table import preset_tables
from moesim.routing.catalogue import POLICIES, PRESETS
from moesim.spec.presets import load_model, preset_names
from moesim.spec.yaml_source import Source
from placement.solvers import SOLVERS

EVERYTHING = catalogue()


@pytest.mark.parametrize("kind", ["models", "gpus", "scenarios", "profiles"])
def test_every_preset_file_is_listed(kind: str) -> None:
    assert [row["name"] for row in EVERYTHING[kind]] == preset_names(kind)


def test_what_code_knows_by_name_is_listed() -> None:
    assert [row["name"] for row in EVERYTHING["routing"]] == [*POLICIES, *PRESETS]
    assert [row["name"] for row in EVERYTHING["solvers"]] == list(SOLVERS)
    assert "ports" in [row["name"] for row in EVERYTHING["networks"]]
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
    tables = preset_tables(EVERYTHING)
    assert [(table.title, table.row_count) for table in tables] == [
        (kind, len(rows)) for kind, rows in EVERYTHING.items()
    ]
