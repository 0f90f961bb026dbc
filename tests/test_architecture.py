"""The house: what may import what, and what importing a floor may load."""

from __future__ import annotations

import ast
import importlib
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import networkx
import pytest

ROOT = Path(__file__).parents[1]

# What each floor may import of ours, itself apart.
MAY_IMPORT = {
    "traces": (),
    "placement": ("traces",),
    "moesim": ("traces", "placement"),
    "executor": ("traces", "moesim.routing", "moesim.dispatch"),
}
# The rooms of each floor, lowest first: a room imports those before it. "." is the floor's own files.
ROOMS = {
    "traces": ("base", ".", "interop"),
    "placement": ("problem", "judging", "solvers", "files"),
    "moesim": (
        *("routing", "dispatch", ".", "spec", "hardware", "deployment", "simulation", "analysis"),
        *("live", "calibration", "studies", "report", "commands"),
    ),
    "executor": ("plan", "ranks", "kernels", "experts", "dispatch", "layer", "measuring", "."),
}
# Pure functions on arrays, which the executor shares: of ours they import the lowest floor alone.
SHARED = ("routing", "dispatch")
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
        ("traces", "import placement.solvers.solvers", ["placement.solvers.solvers"]),
        ("traces", "def f():\n    from moesim import units", ["moesim.units"]),
        ("placement", "from traces.base.files import write_text", []),
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


def module_imports(package: str) -> dict[str, set[str]]:
    """Every file of a floor, as a module, and the files of the same floor that it imports."""
    paths = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in modules(package)}
    names = {name.removesuffix(".__init__"): name for name in paths}
    found: dict[str, set[str]] = {}
    for name, path in paths.items():
        within = path.relative_to(ROOT).parent.parts
        # "from a.b import c" names a.b.c; the module is that, or a.b where c is something in it.
        wanted = imported(path.read_text("utf-8"), within)
        hits = {names.get(each) or names.get(each.rpartition(".")[0]) for each in wanted}
        found[name] = {each for each in hits if each is not None and each != name}
    return found


def room_of(module: str) -> str:
    """The folder of a floor that a module lies in; "." for the floor's own files."""
    parts = module.split(".")
    return parts[1] if len(parts) > 2 else "."


@pytest.mark.parametrize("package", ROOMS)
def test_rooms_import_only_those_before_them(package: str) -> None:
    order = ROOMS[package]
    imports = module_imports(package)
    assert {room_of(module) for module in imports} == {*order, "."}
    faults = [
        (module, other)
        for module, others in imports.items()
        for other in others
        if not other.endswith("__init__") or room_of(other) != "."
        if order_of(order, other) > order_of(order, module)
    ]
    assert not faults


def order_of(order: tuple[str, ...], module: str) -> int:
    """Where the room of a module stands; a floor without files of its own has them first."""
    room = room_of(module)
    return order.index(room) if room in order else -1


@pytest.mark.parametrize("package", ROOMS)
def test_no_file_imports_itself_by_way_of_others(package: str) -> None:
    graph: networkx.DiGraph[str] = networkx.DiGraph()
    graph.add_edges_from((one, other) for one, others in module_imports(package).items() for other in others)
    with_cycles = [sorted(cycle) for cycle in networkx.strongly_connected_components(graph) if len(cycle) > 1]
    assert not with_cycles


def test_shared_rooms_import_nothing_above_the_lowest_floor() -> None:
    faults = [
        (str(path.relative_to(ROOT)), name)
        for room in SHARED
        for path in (ROOT / "moesim" / room).glob("*.py")
        for name in imported(path.read_text("utf-8"), ("moesim", room))
        if name.partition(".")[0] in OURS
        and not name.startswith(("traces.", *(f"moesim.{each}." for each in SHARED)))
    ]
    assert not faults


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


def test_the_picture_is_what_the_imports_say() -> None:
    """After a change of them: python docs/draw_architecture.py."""
    drawn = runpy.run_path(str(ROOT / "docs" / "draw_architecture.py"))["svg"]()
    assert (ROOT / "docs" / "architecture.svg").read_text("utf-8") == drawn
