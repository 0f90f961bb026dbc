"""Placement files: the identity for what is written, one clear error for everything else."""

from __future__ import annotations

import json
import os
import random
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from placement.files import native as placement_file
from placement.files.native import read_placement, write_placement
from placement.files.text import MAX_BYTES
from placement.problem.errors import PlacementError
from placement.problem.placement import Placement
from tests.placement.mutation import mutated_bytes
from tests.placement.random_placements import placements
from traces.base.errors import MoesimError, OutputError

EXAMPLE = """\
{"format": "moesim.placement/1",
 "origin": "by hand",
 "experts": 4,
 "gpus": 2,
 "layers": [3,5],
 "slot_gpu": [0,0,0,1,1,1],
 "slot_expert": [
  [0,1,2,1,3,-1],
  [3,2,1,0,1,-1]]}
"""
PLACEMENT = Placement(
    np.array([[0, 1, 2, 1, 3, -1], [3, 2, 1, 0, 1, -1]]),
    np.array([0, 0, 0, 1, 1, 1]),
    4,
    2,
    (3, 5),
    "by hand",
)


def test_the_written_file_is_this(tmp_path: Path) -> None:
    write_placement(PLACEMENT, tmp_path / "p.json")
    assert (tmp_path / "p.json").read_text() == EXAMPLE
    assert read_placement(tmp_path / "p.json") == PLACEMENT


@given(placements())
def test_reading_what_was_written_is_the_identity(placement: Placement) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "p.json"
        write_placement(placement, path)
        assert read_placement(path) == placement


def test_the_format_page_shows_a_valid_file(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "placement-format.md").read_text()
    (tmp_path / "p.json").write_text(page.split("```json\n")[1].split("```")[0])
    assert read_placement(tmp_path / "p.json") == PLACEMENT


def edited(**changes: Any) -> str:
    return json.dumps(json.loads(EXAMPLE) | changes)


def without(name: str) -> str:
    return json.dumps({key: value for key, value in json.loads(EXAMPLE).items() if key != name})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ": is empty"),
        (EXAMPLE[:-3], ":9: is not JSON: Expecting ',' delimiter"),
        ("[" * 100_000, ": is not a placement: nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", ": is not JSON: a number is too long"),
        ("[1]", ": must be a JSON object, not a list"),
        ("null", ": must be a JSON object, not null"),
        (edited(experts=float("nan")), ": is not a JSON number (got 'NaN')"),
        (EXAMPLE.replace('"gpus": 2', '"gpus": 2, "gpus": 2'), ": 'gpus': the key stands twice"),
        ("{}", ": format: is not a moesim placement: expected format moesim.placement/1 (got None)"),
        (
            edited(format="moesim.placement/2"),
            ": format: needs a newer moesim: this one reads moesim.placement/1 (got 'moesim.placement/2')",
        ),
        (
            edited(slots=6),
            ": 'slots': unknown key; known: format, origin, experts, gpus, layers, slot_gpu, slot_expert",
        ),
        (without("layers"), ": layers: is missing"),
        (edited(experts=4.0), ": experts: must be an integer, not a number"),
        (edited(gpus=True), ": gpus: must be an integer, not a boolean"),
        (edited(origin=None), ": origin: must be text, not null"),
        (edited(slot_gpu={}), ": slot_gpu: must be a list, not an object"),
        (edited(slot_gpu=[0, 0, 0, 1, 1, True]), ": slot_gpu[5]: must be an integer, not a boolean"),
        (edited(slot_gpu=[0, 0, 0, 1, 1, 2**31]), ": slot_gpu[5]: is out of range (got 2147483648)"),
        (edited(slot_gpu=[0, 0, 0, 1, 1, 2]), ": slot_gpu[5]: must be a GPU from 0 to 1 (got 2)"),
        (
            edited(slot_expert=[[0, 1, 2, 1, 3, -1], 7]),
            ": slot_expert[1]: must be a list of slots, not an integer",
        ),
        (edited(slot_expert=[[0, 1], [0]]), ": slot_expert[1]: must have 2 slots as the first (got 1)"),
        (edited(slot_expert=[[0, "1"]]), ": slot_expert[0][1]: must be an integer, not text"),
        (
            edited(slot_expert=[]),
            ": slot_expert: must be integers of shape [layers, slots], not empty (got 'int32 (0,)')",
        ),
        (
            edited(layers=[3, "5"]),
            ": layers[1]: layer indices must be integers from 0 to 65535, ascending (got '5')",
        ),
        (edited(experts=5), ": slot_expert: layer 3: expert 4 is in no slot"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name_and_the_rule(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(PlacementError) as caught:
        read_placement(path)
    assert str(caught.value) == f"{path}{message}"


def as_folder(path: Path) -> None:
    path.mkdir()


def as_pipe(path: Path) -> None:
    os.mkfifo(path)


def as_bytes(path: Path) -> None:
    path.write_bytes(b'{"origin": "\xff"}')


def as_hole(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (as_folder, "is a folder, a placement file was expected"),
        (as_pipe, "is not a regular file (named pipe)"),
        (as_bytes, "is not UTF-8 text: byte 12"),
        (as_hole, "is larger than 32 MiB, too large for a placement file (got 33554433)"),
        (lambda path: None, "there is no such file"),
    ],
)
def test_what_is_no_readable_file_is_refused(tmp_path: Path, make: Callable[[Path], None], rule: str) -> None:
    make(tmp_path / "p.json")
    with pytest.raises(PlacementError) as caught:
        read_placement(tmp_path / "p.json")
    assert str(caught.value) == f"{tmp_path / 'p.json'}: {rule}"


def test_nothing_is_written_that_could_not_be_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement_file, "MAX_BYTES", len(EXAMPLE) - 1)
    with pytest.raises(PlacementError, match="would take more than"):
        write_placement(PLACEMENT, tmp_path / "p.json")
    monkeypatch.undo()
    with pytest.raises(OutputError):
        write_placement(PLACEMENT, tmp_path / "missing" / "p.json")
    assert list(tmp_path.iterdir()) == []


NUMBERS = [True, -1, 0, 1, 5, 2**31, 10**30, 1.5, float("inf")]
VALUES: list[Any] = [*NUMBERS, None, "", "3", "\ud800", [], [[]], [[0]], [-1], {}, {"a": 1}]


def mutated_fields(chance: random.Random) -> bytes:
    """The example with one field, row or entry replaced by a value of some other kind."""
    content = json.loads(EXAMPLE)
    key = chance.choice(list(content))
    holder: Any = content
    while isinstance(holder[key], list) and holder[key] and chance.random() < 0.7:
        holder = holder[key]
        key = chance.randrange(len(holder))
    holder[key] = chance.choice(VALUES)
    return json.dumps(content).encode()


@pytest.mark.parametrize("mutate", [partial(mutated_bytes, EXAMPLE), mutated_fields], ids=["bytes", "fields"])
def test_only_our_errors_come_out_of_mutated_files(
    tmp_path: Path, mutate: Callable[[random.Random], bytes]
) -> None:
    chance = random.Random(20)
    path = tmp_path / "p.json"
    refusals = []
    for _ in range(1500):
        path.write_bytes(mutate(chance))
        try:
            read_placement(path).replica_table()
        except MoesimError as error:
            refusals.append(str(error))
    assert 750 < len(refusals) < 1500
    assert all(refusal.startswith(f"{path}:") and refusal.isprintable() for refusal in refusals)
