"""From the spans of ranks to a timeline: waits found span by span, times by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from executor.layer.spans import COLUMNS
from executor.measuring.recording import timeline
from moesim.deployment.deployment import deploy
from moesim.simulation.run import run
from moesim.spec.scenario import load_scenario
from tests.examples import examples
from tests.moesim.tiny import TINY, tiny_scenario, write_scenario
from traces.timeline import PHASES, STREAMS, Timeline

pytestmark = pytest.mark.executor

NANOSECOND_S = 1e-9

LAYER = ("router", "dispatch", "experts", "combine")
SECOND = 10**9
START = COLUMNS.index("start_ns")


def table(*rows: tuple[int, int, int, str, int, int]) -> NDArray[np.int64]:
    """Rows of (repeat, step, layer, phase, start, end), in seconds; 3 assignments, 2 tokens, 8 bytes each."""
    return np.array(
        [
            (repeat, step, 0, layer, PHASES.index(phase), start * SECOND, end * SECOND, 3, 2, 8)
            for repeat, step, layer, phase, start, end in rows
        ],
        np.int64,
    )


def told(found: Timeline) -> list[tuple[object, ...]]:
    """(rank, stream, phase, layer, start, end, bytes) of each span."""
    return [
        (
            int(found.rank_N[i]),
            STREAMS[found.stream_N[i]],
            PHASES[found.phase_N[i]],
            int(found.layer_N[i]),
            float(found.start_s_N[i]),
            float(found.end_s_N[i]),
            int(found.bytes_N[i]),
        )
        for i in range(len(found))
    ]


def test_a_layer_of_two_ranks_by_hand() -> None:
    fast = table((0, 0, 4, "router", 10, 11), (0, 0, 4, "dispatch", 11, 16), (0, 0, 4, "experts", 16, 17))
    slow = table((0, 0, 4, "router", 10, 14), (0, 0, 4, "dispatch", 14, 15), (0, 0, 4, "experts", 15, 20))
    assert told(timeline("run", [fast, slow])) == [
        (0, "compute", "router", 4, 0.0, 1.0, 8),
        (0, "communication", "wait", 4, 1.0, 4.0, 0),
        (0, "communication", "dispatch", 4, 4.0, 6.0, 8),
        (0, "compute", "experts", 4, 6.0, 7.0, 8),
        (0, "communication", "wait", -1, 7.0, 10.0, 0),
        (1, "compute", "router", 4, 0.0, 4.0, 8),
        (1, "communication", "dispatch", 4, 4.0, 5.0, 8),
        (1, "compute", "experts", 4, 5.0, 10.0, 8),
    ]


def test_nobody_waits_where_ranks_ran_in_turns() -> None:
    first = table((0, 0, 4, "router", 0, 1), (0, 0, 4, "experts", 1, 2))
    second = table((0, 0, 4, "router", 5, 6), (0, 0, 4, "experts", 6, 9))
    assert [span[2:6] for span in told(timeline("run", [first, second], together=False))] == [
        ("router", 4, 0.0, 1.0),
        ("experts", 4, 1.0, 2.0),
        ("router", 4, 5.0, 6.0),
        ("experts", 4, 6.0, 9.0),
    ]


def test_clocks_that_are_not_quite_aligned_break_no_span() -> None:
    """A rank that seems to leave a collective before another has entered it: its span has no length."""
    early = table((0, 0, 0, "dispatch", 0, 4), (0, 0, 0, "experts", 4, 5))
    late = table((0, 0, 0, "dispatch", 5, 6), (0, 0, 0, "experts", 6, 7))
    found = timeline("run", [early, late])
    found.validate()
    assert told(found)[:2] == [
        (0, "communication", "wait", 0, 0.0, 4.0, 0),
        (0, "communication", "dispatch", 0, 4.0, 4.0, 8),
    ]


@pytest.mark.parametrize("overlap", ["none", "two_batch", ["shared_expert", "two_batch"]])
def test_a_simulation_as_its_ranks_would_measure_it(overlap: object, tmp_path: Path) -> None:
    """Told when each rank entered and left, the recording finds the simulation's waits, and no others."""
    gpu = TINY["cluster"]["gpu"] | {"sms": 100}
    experts = TINY["model"]["experts"] | {"shared_width": 16}
    scenario = tiny_scenario(
        overlap=overlap,
        cluster=TINY["cluster"] | {"gpu": gpu},
        model=TINY["model"] | {"experts": experts},
        workload=TINY["workload"] | {"part": "moe", "tokens_per_gpu": {"uniform": [1, 9]}},
    )
    simulated = run(deploy(load_scenario(str(write_scenario(tmp_path, scenario))))).timeline
    rows: list[list[tuple[int, ...]]] = [[] for _ in range(4)]
    entered: dict[tuple[int, float], float] = {}
    for i in range(len(simulated)):
        rank, phase, start_s = int(simulated.rank_N[i]), int(simulated.phase_N[i]), simulated.start_s_N[i]
        if PHASES[phase] == "wait":
            entered[rank, simulated.end_s_N[i]] = start_s
            continue
        if PHASES[phase] in ("dispatch", "combine"):
            start_s = entered.get((rank, start_s), start_s)
        named = {"phase": phase, "start_ns": start_s * 1e9, "end_ns": simulated.end_s_N[i] * 1e9}
        rows[rank].append(
            tuple(
                round(float(named[name] if name in named else getattr(simulated, f"{name}_N")[i]))
                for name in COLUMNS
            )
        )
    found = timeline("tiny", [np.array(sorted(each)) for each in rows])
    found.validate()
    assert {int(batch) for batch in found.micro_batch_N} == ({0} if overlap == "none" else {0, 1})
    belongs = ("phase", "micro_batch", "layer", "stream", "rank", "step")
    found, simulated = (
        each.select(np.lexsort((each.start_s_N, *(getattr(each, f"{name}_N") for name in belongs))))
        for each in (found, simulated)
    )
    for name in (*belongs, "start_s", "end_s", "bytes"):
        measured_N, simulated_N = (getattr(each, f"{name}_N") for each in (found, simulated))
        # Ranks record whole nanoseconds, and times count from the first.
        np.testing.assert_allclose(measured_N, simulated_N, rtol=0, atol=2 * NANOSECOND_S)


@st.composite
def runs(draw: st.DrawFn) -> list[NDArray[np.int64]]:
    """Ranks whose phases take random whole seconds, and that meet in collectives."""
    ranks, repeats, steps, layers = (draw(st.integers(1, most)) for most in (4, 2, 2, 2))
    now_G = np.zeros(ranks, np.int64)
    rows: list[list[tuple[int, int, int, str, int, int]]] = [[] for _ in range(ranks)]
    for repeat in range(repeats):
        for step in range(steps):
            for layer in range(layers):
                for phase in LAYER:
                    entered_G = now_G.copy()
                    if phase in ("dispatch", "combine"):
                        now_G[:] = now_G.max()
                    now_G += draw(st.lists(st.integers(0, 5), min_size=ranks, max_size=ranks))
                    for rank in range(ranks):
                        span = (repeat, step, layer, phase, int(entered_G[rank]), int(now_G[rank]))
                        rows[rank].append(span)
            now_G[:] = now_G.max()
    return [table(*each) for each in rows]


@settings(max_examples=examples(60))
@given(runs())
def test_ranks_are_busy_or_wait_from_the_start_of_a_step_to_its_end(tables: list[NDArray[np.int64]]) -> None:
    found = timeline("run", tables)
    found.validate()
    length_N = found.end_s_N - found.start_s_N
    assert (length_N[found.phase_N == PHASES.index("wait")] > 0).all()
    for repeat in np.unique(found.repeat_N):
        for step in np.unique(found.step_N):
            here_N = (found.repeat_N == repeat) & (found.step_N == step)
            whole_s = found.end_s_N[here_N].max() - found.start_s_N[here_N].min()
            for rank in range(len(tables)):
                assert length_N[here_N & (found.rank_N == rank)].sum() == pytest.approx(whole_s)


@settings(max_examples=examples(60))
@given(runs())
def test_a_collective_begins_when_the_last_rank_enters_it(tables: list[NDArray[np.int64]]) -> None:
    found = timeline("run", tables)
    for index, row in enumerate(tables[0]):
        repeat, step, _, layer, phase, *_ = row
        if PHASES[phase] not in ("dispatch", "combine"):
            continue
        last_s = max(int(each[index, START]) for each in tables) / SECOND
        spans = (
            (found.repeat_N == repeat)
            & (found.step_N == step)
            & (found.layer_N == layer)
            & (found.phase_N == phase)
        )
        assert found.start_s_N[spans].tolist() == [last_s] * len(tables)
