"""Fixtures shared by the tests of moesim."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.moesim.tiny import tiny_scenario, write_scenario
from tests.traces.random_traces import random_trace
from traces.trace_writer import write_trace


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory that holds s.yaml, the tiny scenario, and t.parquet, a trace for it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    write_scenario(tmp_path, tiny_scenario(), "s.yaml")
    write_trace(random_trace(layers=(1, 2), lengths=(12,) * 6), "t.parquet")
    return tmp_path
