"""The door: what is no regular file is refused at once, and nothing opens a file without it."""

from __future__ import annotations

import ast
import os
import signal
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from executor.measuring.spec import Spec
from executor.plan.plan_file import read_plan
from moesim.analysis.result_file import Comparison, Result
from moesim.calibration.design import read_settings
from moesim.calibration.machine import Machine
from moesim.live.execute import read_execution
from moesim.report.folder import rebuild_report
from moesim.spec.generator_file import read_generator
from moesim.spec.hf_config import read_hf_config
from moesim.spec.yaml_source import read_yaml
from moesim.studies.record import record_texts
from placement.files.native import read_placement
from placement.files.reading import load_placement
from placement.files.target import Target
from tests.moesim.report_example import example_run
from tests.traces.random_traces import random_trace
from traces.base import door
from traces.base.errors import MoesimError, TraceError
from traces.base.files import write_text
from traces.base.input_file import read_json, read_text
from traces.interop import IMPORTERS, LOAD_IMPORTERS, check_whole, importer, load_any, open_source
from traces.interop.hints import Hints
from traces.interop.recording import Recording
from traces.load_table import LoadTable
from traces.load_table_file import read_load_table, write_load_table
from traces.timeline import read_timeline, read_work, write_timeline
from traces.trace_file import TraceFile
from traces.trace_writer import write_trace

ROOT = Path(__file__).parents[1]
PACKAGES = ("traces", "placement", "moesim", "executor")

# What opens a path, by the name of the call; `open` of a path is told by its first argument, a mode.
OPENERS = {
    *("read_text", "read_bytes", "fromfile", "memmap", "open_memmap", "loadtxt", "genfromtxt"),
    *(
        "ParquetFile",
        "read_table",
        "read_csv",
        "read_json",
        "safe_open",
        "OSFile",
        "ZipFile",
        "GzipFile",
        "load_file",
    ),
}
# Who may call them: with what the door has opened or checked, or on files that no user names.
ALLOWED = {
    ("traces/base/door.py", "open"): "the door itself",
    ("traces/base/memory.py", "read_text"): "of the system",
    ("traces/base/parquet.py", "ParquetFile"): "of an open file",
    ("traces/base/parquet.py", "OSFile"): "after require_file, and to write",
    ("traces/interop/count_csv.py", "read_csv"): "of an open file",
    ("traces/interop/rows.py", "read_csv"): "of an open file",
    ("traces/interop/rows.py", "read_json"): "of an open file",
    ("traces/interop/npy.py", "memmap"): "of an open file",
    ("traces/interop/archive.py", "ZipFile"): "of an open file",
    ("traces/interop/torch_file.py", "load"): "of an open file",
    ("traces/interop/trtllm.py", "safe_open"): "after require_file",
    ("traces/perfetto.py", "GzipFile"): "writes",
    ("traces/perfetto.py", "open"): "writes",
    ("moesim/spec/presets.py", "read_text"): "of the package",
    ("moesim/report/page.py", "read_text"): "of the package",
    ("moesim/live/launch.py", "open"): "its own log",
    ("executor/plan/plan_file.py", "open_memmap"): "after require_file",
    ("executor/measuring/bench.py", "read_text"): "of the system",
    ("executor/ranks/memory.py", "read_text"): "of the system",
    ("executor/ranks/progress.py", "open"): "its own, made by it",
    ("executor/ranks/progress.py", "read_text"): "of the system",
}


def openers(source: str) -> Iterator[str]:
    """The calls in ``source`` that open a file."""
    tree = ast.parse(source)
    ours = {f"input_file.{name}" for name in OPENERS}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
            ours |= {alias.asname or alias.name for alias in node.names}
        if isinstance(node, ast.FunctionDef):
            ours.add(node.name)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        last = name.rpartition(".")[2]
        mode = node.args[0] if node.args else None
        plain = mode is None or (isinstance(mode, ast.Constant) and isinstance(mode.value, str))
        if (
            name in ("open", "os.open", "io.open", "gzip.open", "np.load", "torch.load")
            or (last == "open" and plain and name != last)
            or (last in OPENERS and name not in ours)
        ):
            yield last


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("open(path)", ["open"]),
        ("path.open('rb')", ["open"]),
        ("path.open()", ["open"]),
        ("importer.open(path, hints)", []),
        ("json.loads(path.read_bytes())", ["read_bytes"]),
        ("from traces.base.door import read_bytes\nread_bytes(path)", []),
        ("np.load(path)", ["load"]),
        ("pq.ParquetFile(path)", ["ParquetFile"]),
        ("torch.load(path)", ["load"]),
    ],
)
def test_the_check_finds_what_opens(source: str, found: list[str]) -> None:
    assert list(openers(source)) == found


def test_nothing_opens_a_file_without_the_door() -> None:
    found = {
        (str(path.relative_to(ROOT)), name)
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for name in openers(path.read_text("utf-8"))
    }
    assert found == ALLOWED.keys()


Read = Callable[[Path], Any]
TARGET = Target(experts=4, gpus=2, layers=(0,))


def opened(name: str, path: Path) -> None:
    recording = importer(name).open(path, Hints(experts=4))
    if isinstance(recording, Recording):
        recording.read()


FILES: dict[str, Read] = {
    "trace": TraceFile,
    "any trace": load_any,
    "any source": open_source,
    "recording": check_whole,
    "load table": read_load_table,
    "timeline": read_timeline,
    "work": read_work,
    "text": lambda path: read_text(path, "a text", TraceError),
    "JSON": lambda path: read_json(path, "an object", TraceError),
    "placement": read_placement,
    "placement of any form": lambda path: load_placement(path, TARGET),
    "YAML": read_yaml,
    "generator": read_generator,
    "config.json": read_hf_config,
    "result": Result.read,
    "comparison": Comparison.read,
    "settings": read_settings,
    "spec of the executor": Spec.read,
    "machine": Machine.read,
    **{
        name: partial(opened, name) for name in (*IMPORTERS, *LOAD_IMPORTERS) if not name.startswith("trtllm")
    },
}
"""Every reader of one file."""

RECORD = {"config.json": "{}"}
FOLDERS: dict[str, tuple[str, dict[str, str], Read]] = {
    "plan": ("plan.json", {}, read_plan),
    "execution": ("run.json", {}, read_execution),
    "result of a report": ("result.json", {}, rebuild_report),
    "comparison of a report": ("whatif.json", {}, rebuild_report),
    "validation of a report": ("validation.json", {}, rebuild_report),
    "execution of a report": ("execution.json", {}, rebuild_report),
    "npz-requests": ("a.npz", {}, lambda path: importer("npz-requests").open(path, Hints(experts=4))),
    "npy": ("a.npy", {}, lambda path: importer("npy").open(path, Hints(experts=4))),
    "sglang": ("a.pt", {}, lambda path: importer("sglang-per-pass").open(path, Hints())),
    "count-csv": ("a.csv", {}, lambda path: importer("count-csv").open(path, Hints(experts=4))),
    "trtllm": (
        "meta_info.json",
        {"rank0.safetensors": ""},
        lambda path: importer("trtllm").open(path, Hints()),
    ),
    "rank of trtllm": (
        "rank0.safetensors",
        {"meta_info.json": '{"num_experts": 4, "num_experts_per_token": 1}'},
        lambda path: importer("trtllm").open(path, Hints()),
    ),
    "model to record": ("weights", RECORD, lambda path: record_texts(path, [], path / "x.parquet")),
}
"""Readers of folders: the file that is no regular one, others beside it, and what reads them."""


@pytest.fixture(autouse=True)
def _in_time() -> Iterator[None]:
    """Whatever waits for a pipe is ended."""

    def late(*_: object) -> None:
        raise AssertionError("waits for ever")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", FILES)
def test_a_pipe_is_refused_at_once(tmp_path: Path, name: str) -> None:
    path = tmp_path / "routing.parquet"
    os.mkfifo(path)
    with pytest.raises(MoesimError, match=r"routing\.parquet: is not a regular file \(named pipe\)"):
        FILES[name](path)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_pipe_in_a_folder_is_refused_at_once(tmp_path: Path, name: str) -> None:
    file, others, read = FOLDERS[name]
    os.mkfifo(tmp_path / file)
    for other, content in others.items():
        (tmp_path / other).write_text(content)
    with pytest.raises(MoesimError, match=rf"{file}: is not a regular file \(named pipe\)"):
        read(tmp_path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


MAKES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "named pipe": (os.mkfifo, r"is not a regular file \(named pipe\)"),
    "socket": (make_socket, r"is not a regular file \(socket\)"),
    "device": (lambda path: path.symlink_to("/dev/zero"), r"is not a regular file \(character device\)"),
    "folder": (Path.mkdir, "is a folder, a load table was expected"),
    "nothing": (lambda path: None, "there is no such file"),
    "dangling link": (lambda path: path.symlink_to("nowhere"), "there is no such file"),
    "loop": (lambda path: path.symlink_to(path), "cannot be read: Too many levels"),
    "empty": (Path.touch, "is empty"),
    "large": (
        lambda path: path.write_bytes(bytes(5000)),
        r"is larger than 4 KiB, too large for a load table \(got 5000\)",
    ),
}


@pytest.mark.parametrize("name", MAKES)
def test_what_is_no_file_to_read_has_one_clear_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    make, message = MAKES[name]
    monkeypatch.chdir(tmp_path)
    make(Path("f"))
    for read in (door.open_file, door.require_file, door.read_bytes):
        with pytest.raises(TraceError, match=rf"^f: {message}"):
            read("f", "a load table", TraceError, most=4096)


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 300])
def test_names_that_no_file_has(name: str) -> None:
    assert not door.is_folder(Path(name))
    assert not door.is_regular(Path(name))
    assert door.first_bytes(Path(name), 4) == b""
    with pytest.raises(TraceError, match=r"is not a file name|File name too long"):
        door.open_file(name, "a trace", TraceError)


def test_a_pipe_of_the_shell_is_refused_with_the_way_out() -> None:
    reading, writing = os.pipe()
    try:
        with pytest.raises(
            TraceError, match=r"is not a regular file \(pipe\): save its content to a file first"
        ):
            door.open_file(f"/dev/fd/{reading}", "a trace", TraceError)
    finally:
        os.close(reading)
        os.close(writing)


def test_a_file_that_becomes_a_pipe_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "f")
    monkeypatch.setattr(door, "require_file", lambda *_, **__: 1)
    with pytest.raises(TraceError, match="is not a regular file"):
        door.open_file(tmp_path / "f", "a trace", TraceError)


def test_memory_is_asked_for_before_a_byte_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    path.write_bytes(bytes(1000))
    monkeypatch.setattr("traces.base.memory.physical_memory", lambda: 20_000)
    door.open_file(path, "a trace", TraceError, times=10).close()
    with pytest.raises(TraceError, match="a trace of 1000 bytes needs"):
        door.open_file(path, "a trace", TraceError, times=10.1)


def test_names_that_are_not_utf8_are_written_and_read(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    folder.mkdir()
    write_text(folder / "a.json", f'{{"a": "{folder.name}"}}')
    assert read_json(folder / "a.json", "an object", TraceError) == {"a": folder.name}
    trace = random_trace()
    write_trace(trace, folder / "t.parquet")
    assert load_any(folder / "t.parquet").digest() == trace.digest()
    table = LoadTable("m", 2, (0,), np.ones((1, 1, 2), np.int64))
    for name in ("l.parquet", "l.json"):
        write_load_table(table, folder / name)
        assert read_load_table(folder / name).header == table.header
    _, timeline, _ = example_run(layers=1, gpus=2, steps=1)
    write_timeline(timeline, folder / "timeline.parquet")
    assert len(read_timeline(folder / "timeline.parquet")) == len(timeline)
    (folder / "t.csv").write_text("token,layer,experts\n0,0,1\n")
    np.savez(folder / "t.npz", routed_experts=trace.ids_TLK)
    for name in ("t.csv", "t.npz"):
        assert load_any(folder / name, Hints(experts=16)).tokens
    ranks = folder / "ranks"
    ranks.mkdir()
    save_file({"0_0": np.ones(4, np.int64)}, ranks / "rank0.safetensors")
    (ranks / "meta_info.json").write_text('{"num_experts": 4, "num_experts_per_token": 1}')
    assert isinstance(open_source(ranks), LoadTable)
