"""Tokens that no router wrote are left out and counted, or refused as such."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.traces.random_traces import random_trace
from traces.base.errors import TraceError
from traces.interop import IMPORTERS, load_any
from traces.interop.hints import Hints
from traces.trace_file import read_trace

KNOWN = Hints(model="tiny", experts=8, layers=(1, 3))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.booleans(), min_size=8, max_size=8), st.sampled_from([-1, 0, 7, 255]))
def test_what_nobody_wrote_is_left_out_and_counted(tmp_path: Path, gone: list[bool], fill: int) -> None:
    trace = random_trace(weights=None)
    ids_TLK = trace.ids_TLK.astype(np.int32)
    ids_TLK[gone] = fill
    for request in range(3):
        np.savez(tmp_path / f"{request}.npz", routed_experts=ids_TLK[trace.request_T == request])
    if all(gone):
        with pytest.raises(TraceError, match="holds no token that a router wrote"):
            load_any(tmp_path, KNOWN)
        return
    found = load_any(tmp_path, KNOWN)
    kept = ~np.array(gone)
    assert np.array_equal(found.ids_TLK, trace.ids_TLK[kept])
    assert np.array_equal(found.position_T, trace.position_T[kept])
    _, numbered = np.unique(trace.request_T[kept], return_inverse=True)
    assert np.array_equal(found.request_T, numbered)
    note = f"{sum(gone)} of 8 tokens left out: no router wrote them" if any(gone) else ""
    assert found.meta.origin == note


def test_a_first_request_that_nobody_wrote_tells_no_layers(tmp_path: Path) -> None:
    trace = random_trace(weights=None)
    np.save(tmp_path / "0.npy", np.zeros((3, 2, 2), np.uint8))
    np.save(tmp_path / "1.npy", trace.ids_TLK)
    recording = IMPORTERS["npy"].open(tmp_path, Hints(experts=8))
    recording.write(tmp_path / "t.parquet")
    assert recording.written.note == "3 of 11 tokens left out: no router wrote them"
    assert np.array_equal(read_trace(tmp_path / "t.parquet").ids_TLK, trace.ids_TLK)


def test_a_token_that_was_written_in_some_layers_is_refused_as_such(tmp_path: Path) -> None:
    ids_TLK = random_trace(weights=None).ids_TLK.copy()
    ids_TLK[5, 1] = 0
    np.save(tmp_path / "t.npy", ids_TLK)
    rule = r"layer 3, token 5: was not written by a router, .* \(got '0 in all 2 columns'\)"
    with pytest.raises(TraceError, match=rule):
        load_any(tmp_path / "t.npy", KNOWN)


def test_of_one_expert_per_token_only_a_negative_id_was_not_written(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", np.array([[[0]], [[-1]], [[3]]]))
    assert load_any(tmp_path / "t.npy", Hints(experts=8)).ids_TLK.ravel().tolist() == [0, 3]
