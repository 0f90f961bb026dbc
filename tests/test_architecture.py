"""The house: what may import what, and what importing a floor may load."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What each floor may import of ours, itself apart.
MAY_IMPORT = {
    "traces": (),
    "placement": ("traces",),
    "moesim": ("traces", "placement"),
    "executor": ("traces", "moesim.routing", "moesim.errors"),
}
# moesim/errors.py, which the executor may import, hangs the errors of all floors into one tree.
OURS = (*MAY_IMPORT, "tests", "benchmarks", "experiments")
HEAVY = {"numba", "pyarrow", "pydantic", "rich", "simpy", "joblib", "torch", "triton"}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(source: str, within: tuple[str, ...] = ()) -> Iterator[str]:
    """Every module that ``source`` names in an import, also inside functions; relative ones made absolute."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = within[: len(within) - node.level + 1] if node.level else ()
            name = ".".join([*base, *([node.module] if node.module else [])])
            # "from moesim import routing" imports moesim.routing.
            yield from (f"{name}.{alias.name}" for alias in node.names)


def upward(package: str, source: str, within: tuple[str, ...] = ()) -> list[str]:
    """Imports that the floor of ``package`` may not have."""
    allowed = (package, *MAY_IMPORT[package])
    return [
        name
        for name in imported(source, within)
        if name.partition(".")[0] in OURS and not any(f"{name}.".startswith(f"{each}.") for each in allowed)
    ]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_downward(package: str) -> None:
    paths = modules(package)
    assert paths
    faults = {
        str(path.relative_to(ROOT)): found
        for path in paths
        if (found := upward(package, path.read_text("utf-8"), path.relative_to(ROOT).parent.parts))
    }
    assert not faults


@pytest.mark.parametrize(
    ("package", "source", "found"),
    [
        ("traces", "import placement.solvers", ["placement.solvers"]),
        ("traces", "def f():\n    from moesim import units", ["moesim.units"]),
        ("placement", "from traces.files import write_text", []),
        ("moesim", "if True:\n    import executor", ["executor"]),
        ("moesim", "from .. import executor", []),
        ("executor", "from moesim.routing.drop import Drop", []),
        ("executor", "from moesim import routing", []),
        ("executor", "import moesim", ["moesim"]),
        ("executor", "from moesim.spec.model import Model", ["moesim.spec.model.Model"]),
        ("traces", "import numpy, moesimulator, tests.conftest", ["tests.conftest"]),
    ],
)
def test_the_check_finds_what_points_upward(package: str, source: str, found: list[str]) -> None:
    assert upward(package, source, (package, "spec")) == found


def test_relative_imports_are_made_absolute() -> None:
    assert list(imported("from ..hardware import gpu", ("moesim", "spec"))) == ["moesim.hardware.gpu"]
    assert list(imported("from . import model", ("moesim", "spec"))) == ["moesim.spec.model"]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_are_this_projects(package: str) -> None:
    # `traces` and `executor` are also names of unrelated distributions.
    assert Path(importlib.import_module(package).__file__ or "").resolve() == ROOT / package / "__init__.py"


def loaded(code: str) -> set[str]:
    """Top-level modules in memory after ``code``, in an interpreter of its own."""
    show = "import sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{show}"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


def test_the_lower_floors_load_no_torch() -> None:
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for package in ("traces", "placement", "moesim")
        for path in modules(package)
    ]
    after = loaded("import " + ", ".join(names))
    assert {"traces", "placement", "moesim", "numba"} <= after
    assert not after & {"torch", "triton", "distributed", "matplotlib"}


def test_packages_themselves_import_nothing_heavy() -> None:
    packages = [
        ".".join(path.relative_to(ROOT).parent.parts)
        for package in MAY_IMPORT
        for path in modules(package)
        # The registry of importers is the package itself; it loads when a foreign file is read.
        if path.name == "__init__.py" and path.parent != ROOT / "traces" / "interop"
    ]
    assert not loaded("import " + ", ".join(packages)) & (HEAVY | {"numpy"})
