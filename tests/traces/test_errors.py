"""The message of an error, also after it came from a worker process."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from traces.base.errors import MoesimError, TraceError


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MoesimError("must be whole"), "must be whole"),
        (MoesimError("must be whole", field="a.b", got=None), "a.b: must be whole (got None)"),
        (TraceError("is empty", file="x.parquet"), "x.parquet: is empty"),
        (
            MoesimError("no", file="s.yaml", line=3, field="f", got="x" * 200),
            f"s.yaml:3: f: no (got '{'x' * 78}…)",
        ),
    ],
)
def test_messages_survive_pickling(error: MoesimError, message: str) -> None:
    assert str(error) == message
    assert str(pickle.loads(pickle.dumps(error))) == message


def test_whatever_names_hold_a_message_is_one_line() -> None:
    error = MoesimError("unknown key a\nb\x1b[31m", file="x\ny", field="\udcff", got="\n")
    assert str(error) == r"x\ny: \udcff: unknown key a\nb\x1b[31m (got '\n')"


def test_a_value_of_several_lines_is_shown_on_one() -> None:
    assert str(MoesimError("is wrong", got=np.zeros((2, 2)))) == "is wrong (got [[0. 0.] [0. 0.]])"
