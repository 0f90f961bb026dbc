"""The message of an error, also after it came from a worker process."""

from __future__ import annotations

import pickle

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
