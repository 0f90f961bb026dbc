"""The Perfetto export, read back as the viewer does: lanes, nesting, and both ends of every arrow."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from tests.traces.example_timelines import timeline_of, timelines
from traces.base.errors import OutputError
from traces.perfetto import write_perfetto
from traces.timeline import PHASES, STREAMS, Timeline

DISPATCH, EXPERTS, COMBINE = (PHASES.index(name) for name in ("dispatch", "experts", "combine"))


@dataclass
class Slice:
    """A complete event, in nanoseconds."""

    start: int
    end: int
    name: str
    args: dict[str, int]


@dataclass
class Viewer:
    """What a viewer makes of the file: names, the slices of each thread, arrows between slices."""

    names: dict[tuple[str, int, int], Any] = field(default_factory=dict)
    lanes: dict[tuple[int, int], list[Slice]] = field(default_factory=lambda: defaultdict(list))
    arrows: list[tuple[tuple[int, Slice], tuple[int, Slice]]] = field(default_factory=list)

    @classmethod
    def load(cls, path: Path) -> Viewer:
        """Times are doubles in microseconds, rounded to nanoseconds; ties keep the order of the file."""
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        viewer = cls()
        left: dict[int, tuple[int, Slice]] = {}
        for event in sorted(events, key=lambda event: event.get("ts", -1.0)):
            lane = event["pid"], event["tid"]
            if event["ph"] == "M":
                viewer.names[event["name"], *lane] = event["args"]
            elif event["ph"] == "X":
                start, length = round(event["ts"] * 1000), round(event["dur"] * 1000)
                viewer.lanes[lane].append(Slice(start, start + length, event["name"], event["args"]))
            else:
                at = round(event["ts"] * 1000)
                (around,) = [s for s in viewer.lanes[lane] if s.start <= at < s.end]
                if event["ph"] == "s":
                    assert event["id"] not in left
                    left[event["id"]] = lane[0], around
                else:
                    assert (event["ph"], event["bp"]) == ("f", "e")
                    viewer.arrows.append((left.pop(event["id"]), (lane[0], around)))
        assert not left, "an arrow without its second end"
        return viewer


def exported(timeline: Timeline, folder: Path) -> Viewer:
    write_perfetto(timeline, folder / "timeline.json.gz")
    return Viewer.load(folder / "timeline.json.gz")


def expected_arrows(timeline: Timeline) -> int:
    """Counted the slow way: a dispatch whose next exchange of its key is a combine, both over 1 ns."""
    origin = timeline.start_s_N.min() if len(timeline) else 0.0
    groups: dict[tuple[int, ...], list[tuple[int, int, int]]] = defaultdict(list)
    for row in range(len(timeline)):
        start = round(float(timeline.start_s_N[row] - origin) * 1e9)
        end = round(float(timeline.end_s_N[row] - origin) * 1e9)
        phase, layer = int(timeline.phase_N[row]), int(timeline.layer_N[row])
        if phase in (DISPATCH, COMBINE) and end > start and layer >= 0:
            columns = (timeline.repeat_N, timeline.rank_N, timeline.step_N, timeline.micro_batch_N)
            key = (*(int(column[row]) for column in columns), layer)
            groups[key].append((start, phase, (start + end) // 2))
    count = 0
    for spans in groups.values():
        spans.sort(key=lambda span: span[0])
        for before, after in pairwise(spans):
            count += (before[1], after[1]) == (DISPATCH, COMBINE) and before[2] <= after[2]
    return count


@given(timelines())
def test_lanes_never_overlap_and_arrows_have_both_ends(
    tmp_path_factory: pytest.TempPathFactory, timeline: Timeline
) -> None:
    viewer = exported(timeline, tmp_path_factory.mktemp("p"))
    assert sum(map(len, viewer.lanes.values())) == len(timeline)
    for slices in viewer.lanes.values():
        for before, after in pairwise(slices):
            assert before.end <= after.start
    for (left, dispatch), (entered, combine) in viewer.arrows:
        assert (dispatch.name, combine.name) == ("dispatch", "combine")
        assert left == entered
        assert all(dispatch.args[key] == combine.args[key] for key in ("step", "micro_batch", "layer"))
    # Equal starts on two streams leave the order open, and with it which arrows there are.
    starts = list(zip(timeline.rank_N.tolist(), timeline.start_s_N.tolist(), strict=True))
    if len(set(starts)) == len(starts):
        assert len(viewer.arrows) == expected_arrows(timeline)


def one_layer() -> Timeline:
    """Two GPUs: dispatch, experts and combine of layer 3, then a transfer that belongs to no layer."""
    rows = []
    for rank in range(2):
        rows += [
            (0, 4, 0, 3, rank, 1, DISPATCH, 10.0, 10.000002, 8, 5, 4096),
            (0, 4, 0, 3, rank, 0, EXPERTS, 10.000002, 10.0000055, 8, 5, 0),
            (0, 4, 0, 3, rank, 1, COMBINE, 10.0000055, 10.000006, 8, 5, 8192),
            (0, 4, 0, -1, rank, 1, DISPATCH, 10.000006, 10.000007, 0, 0, 0),
        ]
    return timeline_of(rows, "by hand")


def test_a_layer_by_hand(tmp_path: Path) -> None:
    viewer = exported(one_layer(), tmp_path)
    assert viewer.names["process_name", 2, 0] == {"name": "GPU 1"}
    assert viewer.names["thread_name", 2, 2] == {"name": STREAMS[1]}
    spans = [(s.name, s.start, s.end) for s in viewer.lanes[1, 2]]
    assert spans == [("dispatch", 0, 2000), ("combine", 5500, 6000), ("dispatch", 6000, 7000)]
    assert viewer.lanes[1, 1][0].args == {
        **{"step": 4, "micro_batch": 0, "layer": 3},
        **{"assignments": 8, "unique_tokens": 5, "bytes": 0},
    }
    assert [(left, entered) for (left, _), (entered, _) in viewer.arrows] == [(1, 1), (2, 2)]


def test_repeats_are_processes_of_their_own(tmp_path: Path) -> None:
    once = one_layer()
    twice = timeline_of([(repeat, 0, 0, 3, 1, 0, EXPERTS, 0.0, 1.0, 1, 1, 0) for repeat in range(2)])
    assert {name for name, _, _ in exported(once, tmp_path).names} > {"process_name", "thread_name"}
    viewer = exported(twice, tmp_path)
    named = [args["name"] for (kind, _, _), args in viewer.names.items() if kind == "process_name"]
    assert named == ["GPU 1, repeat 0", "GPU 1, repeat 1"]
    assert len(viewer.lanes) == 2


def test_a_long_run_keeps_its_nanoseconds(tmp_path: Path) -> None:
    """An hour in, spans of 1 ns still touch and do not overlap."""
    hour = np.arange(5) * 1e-9 + 3600.0
    rows = [(0, 0, 0, -1, 0, 0, 7, 0.0, 1e-6, 0, 0, 0)]
    rows += [(0, 0, 0, -1, 0, 0, 7, float(a), float(b), 0, 0, 0) for a, b in pairwise(hour)]
    slices = exported(timeline_of(rows), tmp_path).lanes[1, 1]
    assert all(before.end <= after.start for before, after in pairwise(slices))
    assert slices[-1].end > 3_600_000_000_000


def test_many_chunks_hold_every_span(tmp_path: Path) -> None:
    count = 70_000
    ends = np.arange(1, count + 1) * 1e-6
    one = timeline_of([(0, 0, 0, 1, 0, 0, EXPERTS, 0.0, 1e-6, 3, 2, 0)]).select(np.zeros(count, int))
    many = Timeline(**{**vars(one), "start_s_N": ends - 1e-6, "end_s_N": ends})
    assert len(exported(many, tmp_path).lanes[1, 1]) == count


def test_equal_timelines_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_perfetto(one_layer(), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        write_perfetto(one_layer(), tmp_path / "absent" / "t.json.gz")
