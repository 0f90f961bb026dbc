"""Validations read back, and their page made anew: whatever passes the check can be shown."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from moesim.analysis.validation_file import ValidationResult
from moesim.errors import MoesimError
from moesim.report import validation_page as html
from moesim.report import validation_table
from moesim.report.folder import rebuild_report
from tests.moesim.report_example import on_plain
from tests.moesim.test_report_result_file import mutants
from tests.moesim.validation_example import example_validation
from traces.timeline import write_timeline

validation_page = on_plain(html.validation_page)
validation_tables = on_plain(validation_table.validation_tables)


def test_a_report_is_made_anew_from_the_other_files(tmp_path: Path) -> None:
    result, measured, simulated = example_validation()
    (tmp_path / "validation.json").write_text(json.dumps(result), encoding="utf-8")
    write_timeline(measured, tmp_path / "measured.parquet")
    write_timeline(simulated, tmp_path / "simulated.parquet")
    rebuild_report(tmp_path)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert page == validation_page(result, measured, simulated)
    write_timeline(simulated.select(np.arange(3)), tmp_path / "simulated.parquet")
    with pytest.raises(MoesimError, match="must have one span of"):
        rebuild_report(tmp_path)


def test_whatever_is_read_can_be_shown(tmp_path: Path) -> None:
    result, measured, simulated = example_validation(layers=1, steps=1, repeats=2)
    path = tmp_path / "validation.json"
    shown = refused = 0
    # Every eleventh: all places, and in turn all kinds of junk.
    for mutant in itertools.islice(mutants(result), 0, None, 11):
        path.write_text(json.dumps(mutant), encoding="utf-8")
        try:
            read = ValidationResult.read(path)
        except MoesimError as error:
            assert str(error).startswith(str(path))  # noqa: PT017 - either outcome is right
            refused += 1
            continue
        validation_page(read, measured, simulated)
        validation_tables(read)
        shown += 1
    assert refused > 50
    assert shown > 12
