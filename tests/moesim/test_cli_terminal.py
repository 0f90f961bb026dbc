"""Terminals of any encoding, pipes that close, disks that fill, and Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.moesim.command import files, moesim
from tests.moesim.tiny import tiny_scenario, write_scenario

pytestmark = pytest.mark.usefixtures("here")

ROOT = Path(__file__).parents[2]


def process(arguments: list[str], **options: Any) -> subprocess.Popen[bytes]:
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from moesim.commands.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, str(ROOT), *arguments],
        stdout=options.pop("stdout", subprocess.PIPE),
        stderr=subprocess.PIPE,
        **options,
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_encoding_of_the_terminal(encoding: str) -> None:
    done = process(["run", "s.yaml"], env=os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"})
    out, err = done.communicate()
    assert (done.returncode, err) == (0, b"")
    assert "4 × tiny".encode(encoding, "replace") in out


def test_json_is_ascii_whatever_the_names() -> None:
    write_scenario(Path(), tiny_scenario(name="ζ"), "bad.yaml")
    out = moesim("run", "bad.yaml", "--json").out
    assert out.isascii()
    assert json.loads(out)["scenario"]["name"] == "ζ"


def test_a_reader_that_stops_reading() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); sys.argv[1:] = ['presets']\n"
        "from moesim.commands.cli import main; main()"
    )
    shell = f'"{sys.executable}" -c "$CODE" "{ROOT}" | head -1'
    done = subprocess.run(
        ["bash", "-c", shell], env=os.environ | {"CODE": code}, capture_output=True, text=True
    )
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("arguments", [["run", "s.yaml"], ["run", "s.yaml", "--json"], ["--help"]])
def test_a_full_disk_behind_stdout(arguments: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = process(arguments, stdout=full)
    assert done.stderr is not None
    err = done.stderr.read().decode()
    done.communicate()
    assert done.returncode == 1
    assert err == "moesim: the output cannot be written: No space left on device\n"


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_ctrl_c_leaves_finished_points_and_nothing_else(here: Path, jobs: str) -> None:
    points = ", ".join(str(seed) for seed in range(1, 100))
    arguments = ["whatif", "s.yaml", "-s", "workload.steps=50", "--vary", f"seed=[{points}]"]
    running = process([*arguments, "--jobs", jobs, "-o", "out"], start_new_session=True)
    deadline = time.monotonic() + 60
    while len(list(here.glob("out/points/*.json"))) < 2:
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert out == b""
    assert b"Traceback" not in err
    left = files(here / "out")
    assert 2 <= len(left) - 1 < 100
    for name, content in left.items():
        if name != "points":
            assert name.startswith("points/")
            assert name.endswith(".json")
            assert json.loads(content or b"")["format"] == "moesim.result/1"
