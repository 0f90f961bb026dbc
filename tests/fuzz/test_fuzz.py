"""A few mutations for every reader, and that the harness finds what it looks for; `make fuzz` does many."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz import __main__ as command
from tests.fuzz import mutation
from tests.fuzz.containers import mutate
from tests.fuzz.mutation import run
from tests.fuzz.readers import READERS, Reader
from tests.fuzz.trees import to_json
from traces.base.errors import MoesimError

FEW = 12
NAMES = [
    pytest.param(name, marks=pytest.mark.executor) if name.startswith("sglang") else name for name in READERS
]


@pytest.mark.parametrize("name", NAMES)
def test_only_moesim_errors_come_of_mutations(tmp_path: Path, name: str) -> None:
    few = max(2, round(FEW * READERS[name].share))
    failures = [failure for number in range(few) if (failure := run(name, 0, number, tmp_path)) is not None]
    assert not failures, "\n".join(f"{each.command}\n{each.detail}" for each in failures)


def refuse(folder: Path) -> None:
    raise MoesimError("is refused")


def fail(folder: Path) -> None:
    raise KeyError(str(folder))


def allocate(folder: Path) -> None:
    bytearray(2**20)


def hold_up(folder: Path) -> None:
    try:
        time.sleep(30)
    except Exception as error:  # no reader may take the alarm for a fault
        raise MoesimError("is damaged") from error


OUTCOMES: dict[str, tuple[Callable[[Path], Any], str | None]] = {
    "read": (lambda folder: None, None),
    "refused": (refuse, None),
    "other error": (fail, "KeyError at "),
    "late": (hold_up, "more than 0.2 s, at "),
    "memory": (allocate, "memory: more than 2 GiB of memory"),
}


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, read: Callable[[Path], Any]) -> None:
    """A reader that reads its valid file, and answers its mutations with ``read``."""

    def reads(folder: Path) -> None:
        if folder.name == "case":
            read(folder)

    reader = Reader(lambda folder: (folder / "f.json").write_text('{"a": [1, 2], "b": "text"}'), reads)
    monkeypatch.setitem(READERS, name, reader)


@pytest.mark.parametrize("name", OUTCOMES)
def test_what_a_reader_does_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    read, kind = OUTCOMES[name]
    stand_in(monkeypatch, name, read)
    monkeypatch.setattr(mutation, "MOST_S", 0.2)
    if name == "memory":
        monkeypatch.setattr(mutation, "MOST_BYTES", -1)
    failure = run(name, 0, 3, tmp_path)
    assert (None if failure is None else failure.kind[: len(kind or "")]) == kind
    if failure is not None:
        assert failure.command == f'python -m tests.fuzz --reader "{name}" --seed 0 --only 3'


def test_a_mutation_is_the_same_on_every_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []
    stand_in(monkeypatch, "kept", lambda folder: seen.append((folder / "f.json").read_bytes()))
    for number in (0, 1, 2, 0, 1, 2):
        run("kept", 5, number, tmp_path)
    assert seen[:3] == seen[3:]
    assert len(set(seen)) == 3


def test_a_reader_that_ends_the_process_is_one_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "ends", lambda folder: os._exit(3))
    stand_in(monkeypatch, "fails", fail)
    failures = command.fuzz([("ends", 0), ("fails", 0), ("ends", 1), ("fails", 1)], 0, 2)
    assert sorted((failure.kind, failure.number) for failure in failures if failure.reader == "ends") == [
        ("ends: ends the process, exit code 3", 0),
        ("ends: ends the process, exit code 3", 1),
    ]
    assert sorted(failure.number for failure in failures if failure.reader == "fails") == [0, 1]


def test_cases_follow_the_shares() -> None:
    found = command.cases(["trace", "report"], 110)
    assert [name for name, _ in found].count("report") == 10
    assert sorted(number for name, number in found if name == "trace") == list(range(100))


def test_json_has_what_dictionaries_cannot_hold() -> None:
    assert to_json({"a": 1, "a\0twice": 2}) == b'{"a": 1, "a": 2}'
    assert to_json(["@deep@3"]) == b"[[[[]]]]"


def test_every_container_is_mutated(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    written = set()
    for number in range(50):
        path.write_text("a,b\n1,2\n")
        mutate(path, random.Random(number))
        written.add(path.read_bytes())
    assert len(written) > 20
