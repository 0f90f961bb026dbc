"""The wheel: built, installed into an environment without the checkout, and used from there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", folder, ROOT], check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel; its dependencies are lent by the environment of the tests."""
    folder = tmp_path_factory.mktemp("env")
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    # A path file inside a lent folder is not read, so the checkout, installed editable there, stays out.
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site)]
    subprocess.run([*install, str(wheel)], check=True)
    return folder / "bin/python"


def run(python: Path, *arguments: str, cwd: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "HOME")}
    done = subprocess.run(
        [python, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_the_wheel_holds_the_four_packages_and_their_data(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "executor",
        "moesim",
        "placement",
        "traces",
    }
    for data in (*(ROOT / "moesim/presets").rglob("*.yaml"), *(ROOT / "traces/data").iterdir()):
        assert str(data.relative_to(ROOT)) in names
    assert not [name for name in names if "__pycache__" in name or name.startswith("tests")]


def test_it_runs_from_the_wheel_alone(python: Path, tmp_path: Path) -> None:
    for package in ("traces", "placement", "moesim", "executor"):
        file = run(python, "-c", f"import {package}; print({package}.__file__, end='')", cwd=tmp_path)
        assert Path(file).is_relative_to(python.parents[1])
    call = "import sys; from moesim.commands.cli import main; sys.argv[0] = 'moesim'; main()"
    models = json.loads(run(python, "-c", call, "presets", "models", "--json", cwd=tmp_path))
    assert "deepseek-v3" in {row["name"] for row in models["models"]}
    settings = ["-s", "model=gpt-oss-20b", "-s", "cluster=h100-1x8", "-s", "parallelism.ep=8"]
    workload = ["-s", "workload.steps=1", "-s", "workload.tokens_per_gpu=4"]
    result = json.loads(
        run(python, "-c", call, "run", "demo", *settings, *workload, "-o", "out", "--json", cwd=tmp_path)
    )
    assert result["format"] == "moesim.result/1"
    assert (tmp_path / "out/report.html").stat().st_size > 10_000
