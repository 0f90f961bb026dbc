"""``moesim trace window``: a part of a trace is the same tokens and layers, in a file of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.moesim.command import moesim, refused
from tests.traces.random_traces import random_trace, same
from traces.trace_file import read_trace
from traces.trace_writer import write_trace

pytestmark = pytest.mark.usefixtures("here")

TRACE = random_trace(layers=(1, 2, 5), lengths=(4, 1, 3), categories=("a", "b"), candidates=4)


@pytest.fixture(autouse=True)
def _recorded(here: Path) -> None:
    write_trace(TRACE, "t.parquet")


def window(*arguments: object) -> None:
    done = moesim("trace", "window", "t.parquet", *arguments, "-o", "part.parquet")
    assert done.code == 0, done.err
    assert done.out.startswith("part.parquet: ")


def test_without_options_it_is_the_whole() -> None:
    window()
    assert same(read_trace("part.parquet"), TRACE)


@pytest.mark.parametrize(("text", "tokens"), [("1:2", [4]), ("1:", [4, 5, 6, 7]), (":2", [0, 1, 2, 3, 4])])
def test_requests_are_whole(text: str, tokens: list[int]) -> None:
    window("--requests", text)
    part = read_trace("part.parquet")
    assert np.array_equal(part.ids_TLK, TRACE.ids_TLK[tokens])
    assert part.position_T.tolist() == TRACE.position_T[tokens].tolist()


def test_tokens_of_some_layers() -> None:
    window("--tokens", "2:6", "--layers", "5,1")
    part = read_trace("part.parquet")
    assert part.meta.layers == (1, 5)
    assert np.array_equal(part.ids_TLK, TRACE.ids_TLK[2:6][:, [0, 2]])
    assert part.weights_TLK is not None
    assert TRACE.weights_TLK is not None
    assert np.array_equal(part.weights_TLK, TRACE.weights_TLK[2:6][:, [0, 2]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tokens", "5"), "--tokens: must be a range such as 0:1000 (got '5')"),
        (("--tokens", ":"), "--tokens: must be a range such as 0:1000 (got ':')"),
        (("--tokens", "-3:"), "--tokens: must be a range such as 0:1000 (got '-3:')"),
        (("--tokens", "5:5"), "t.parquet: tokens: must be a range within 0:8 (got '5:5')"),
        (("--tokens", "5:9"), "t.parquet: tokens: must be a range within 0:8 (got '5:9')"),
        (("--requests", "0:0"), "t.parquet: requests: must be a range within 0:3 (got '0:0')"),
        (("--requests", "3:"), "t.parquet: requests: must be a range within 0:3 (got '3:3')"),
        (("--requests", "0:1", "--tokens", "0:1"), "--tokens: takes the place of --requests"),
        (("--layers", "1,x"), "--layers: must be layers such as 3,4,5 (got '1,x')"),
        (("--layers", "3"), "t.parquet: layers: has MoE layers 1, 2, 5 only (got 3)"),
        (("-o", "t.parquet"), "t.parquet: is what this command reads"),
    ],
)
def test_what_is_not_there_is_refused(arguments: tuple[object, ...], message: str) -> None:
    assert refused("trace", "window", "t.parquet", "-o", "x.parquet", *arguments).startswith(message)


def test_a_trace_is_not_converted() -> None:
    said = refused("trace", "convert", "t.parquet", "-o", "x.parquet")
    assert said.startswith("t.parquet: is a trace already")
