"""The clocks of a layer: on the host as it runs, on a GPU by events, which are imitated here."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch

from executor.layer import spans as module
from executor.layer.spans import COLUMNS, CudaSpans, HostSpans, Spans, Where, clock_on
from traces.timeline import PHASES

pytestmark = pytest.mark.executor


def told(table: Any) -> list[dict[str, int]]:
    return [dict(zip(COLUMNS, row, strict=True)) for row in table.tolist()]


def two_phases(spans: Spans, repeat: int = 0, layer: int = 7) -> None:
    where = Where(repeat, 2, 1, layer)
    with spans.phase("router", where) as span:
        span.count(assignments=0, unique_tokens=4, bytes=0)
    with spans.phase("dispatch", where) as span:
        span.count(assignments=3, unique_tokens=2, bytes=16)


def test_the_host_notes_each_phase_and_tells_of_it() -> None:
    entered: list[tuple[object, ...]] = []
    spans = HostSpans(lambda *where: entered.append(where))
    before = time.perf_counter_ns()
    two_phases(spans)
    after = time.perf_counter_ns()
    router, dispatch = told(spans.table())
    assert entered == [("router", 0, 2, 7), ("dispatch", 0, 2, 7)]
    assert [router[name] for name in ("repeat", "step", "micro_batch", "layer")] == [0, 2, 1, 7]
    assert [PHASES[span["phase"]] for span in (router, dispatch)] == ["router", "dispatch"]
    assert [dispatch[name] for name in ("assignments", "unique_tokens", "bytes")] == [3, 2, 16]
    times = [span[name] for span in (router, dispatch) for name in ("start_ns", "end_ns")]
    assert times == sorted(times)
    assert before <= times[0]
    assert times[-1] <= after


def test_neither_a_warm_up_nor_a_phase_that_failed_is_kept() -> None:
    spans = HostSpans(lambda *where: None)
    two_phases(spans, repeat=-1)
    with pytest.raises(ZeroDivisionError), spans.phase("experts", Where()):
        raise ZeroDivisionError
    assert spans.table().shape == (0, len(COLUMNS))


class _Event:
    """A CUDA event on a GPU whose clock starts at an odd moment and counts milliseconds: 1, 2, 3, …"""

    now = 0

    def record(self) -> None:
        _Event.now += 1
        self.at = _Event.now

    def elapsed_time(self, later: _Event) -> float:
        return float(later.at - self.at)


@pytest.fixture
def gpu() -> Iterator[None]:
    synchronize = mock.patch.object(torch.cuda, "synchronize")
    with mock.patch.object(module, "_event", _Event), synchronize:
        yield


@pytest.mark.usefixtures("gpu")
def test_events_are_brought_onto_the_hosts_clock() -> None:
    spans = CudaSpans(lambda *where: None, torch.device("cpu"))
    with mock.patch.object(time, "perf_counter_ns", side_effect=[5_000_000, 90_000_000]):
        two_phases(spans)
        two_phases(spans, layer=8)
        two_phases(spans, repeat=1)
    starts = [
        (span["repeat"], span["layer"], span["start_ns"], span["end_ns"]) for span in told(spans.table())
    ]
    assert starts == [
        (0, 7, 6_000_000, 7_000_000),
        (0, 7, 8_000_000, 9_000_000),
        (0, 8, 10_000_000, 11_000_000),
        (0, 8, 12_000_000, 13_000_000),
        (1, 7, 91_000_000, 92_000_000),
        (1, 7, 93_000_000, 94_000_000),
    ]


def test_the_clock_belongs_to_the_device() -> None:
    assert isinstance(clock_on(torch.device("cpu"), lambda *where: None), HostSpans)


@pytest.mark.gpu
def test_events_agree_with_the_host() -> None:
    """A product of matrices that keeps a GPU busy for a while, timed by both clocks."""
    device = torch.device("cuda", 0)
    spans = clock_on(device, lambda *where: None)
    assert isinstance(spans, CudaSpans)
    x = torch.randn(8192, 8192, device=device)
    x @ x
    torch.cuda.synchronize(device)
    before = time.perf_counter_ns()
    with spans.phase("experts", Where()):
        for _ in range(20):
            x @ x
    torch.cuda.synchronize(device)
    after = time.perf_counter_ns()
    (span,) = told(spans.table())
    assert before - 200_000 <= span["start_ns"] < span["end_ns"] <= after + 200_000
    assert span["end_ns"] - span["start_ns"] > 0.5 * (after - before)
