"""The executor runs where the simulator's own dependencies are not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.executor

ROOT = Path(__file__).parents[2]
MISSING = ("pydantic", "simpy", "pulp", "yaml", "typer", "networkx", "matplotlib", "joblib")


def test_every_module_imports_without_what_only_the_simulator_needs() -> None:
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((ROOT / "executor").rglob("*.py"))
        if path.name != "__main__.py"
    ]
    assert "executor.layer.moe_layer" in names
    code = f"import sys; sys.modules.update(dict.fromkeys({MISSING})); import {', '.join(names)}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
