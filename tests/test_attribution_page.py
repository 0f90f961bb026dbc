"""docs/attribution.md follows a run by hand, and its table is what the commands above it print."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/attribution.md").read_text(encoding="utf-8")

COPY_US = 1e6 * 4096 * 2 / (0.636 * 450e9)
"""One way of a copy over NVLink, at what `per_gpu` reaches on H100."""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    """Microseconds of each point, from the page's own commands."""
    block = re.search(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    assert block is not None
    folder = tmp_path_factory.mktemp("by_hand")
    (folder / "by-hand.yaml").write_text((ROOT / "examples/by-hand.yaml").read_text("utf-8"), "utf-8")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        ["bash", "-e", "-c", block[1]],
        cwd=folder,
        env=os.environ | {"PATH": path, "PYTHONUTF8": "1"},
        capture_output=True,
        check=True,
    )
    points = json.loads((folder / "points.json").read_text("utf-8"))["points"]
    return [
        {"step": 1e6 * point["metrics"]["step_time_s"]["mean"]}
        | {name: 1e6 * point["attribution"][f"{name}_s"] for name in ("homes", "experts", "traffic")}
        for point in points
    ]


def test_the_table_is_what_the_commands_print(rows: list[dict[str, float]]) -> None:
    shown = re.findall(r"^\| (?:even|hot) \| \d+, \d+ \| (.*) \|$", PAGE, re.MULTILINE)
    assert [line.split(" | ") for line in shown] == [
        [f"{value + 0.0:.1f}" for value in row.values()] for row in rows
    ]


def test_the_terms_are_those_by_hand_and_the_what_if_agrees(rows: list[dict[str, float]]) -> None:
    """Copies beyond even ones at the busier port go out and come back."""
    even, homes, hot, both = rows
    assert homes["homes"] == pytest.approx(2 * 32 * COPY_US)
    assert hot["traffic"] == pytest.approx(2 * 32 * COPY_US)
    assert both["homes"] == pytest.approx(-2 * 24 * COPY_US)
    assert both["traffic"] == pytest.approx(2 * 24 * COPY_US)
    for row in (homes, hot):
        imbalance = row["homes"] + row["experts"] + row["traffic"]
        assert row["step"] - even["step"] == pytest.approx(imbalance)
