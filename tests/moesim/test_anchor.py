"""Dispatch that leaves a token where its expert was: its way through the layers, and what that sends."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from moesim.deployment.batch import batches
from moesim.deployment.deployment import Deployment, deploy
from moesim.dispatch.anchor import anchor_T, path_XT
from moesim.dispatch.count import count_work
from moesim.dispatch.work import Work
from moesim.errors import SpecError
from moesim.simulation import counting
from moesim.simulation.run import run
from moesim.spec.scenario import load_scenario
from tests.moesim.command import moesim
from tests.moesim.tiny import tiny_scenario, write_scenario
from traces.timeline import PHASES, WorkTable, read_work


@st.composite
def routed(draw: st.DrawFn) -> dict[str, Any]:
    """Slots and weights of assignments, GPU of each slot, home offsets."""
    L, T, K = draw(st.integers(1, 4)), draw(st.integers(1, 12)), draw(st.integers(1, 4))
    G, S = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    home_T = np.sort(rng.integers(0, G, T)).astype(np.int32)
    return {
        "slot_LTK": rng.integers(-1, S, (L, T, K)).astype(np.int16),
        # Few different weights, so that ties are common.
        "weights_LTK": rng.integers(0, 3, (L, T, K)).astype(np.float32) if draw(st.booleans()) else None,
        "home_T": home_T,
        "offsets_G": np.searchsorted(home_T, np.arange(G + 1)),
        "slot_gpu_S": rng.integers(0, G, S).astype(np.int32),
    }


def naive_anchor(slots: list[int], weights: list[float], here: int, gpu_S: NDArray[np.int32]) -> int:
    served = [k for k, slot in enumerate(slots) if slot >= 0]
    return int(gpu_S[slots[min(served, key=lambda k: (-weights[k], k))]]) if served else here


def count(case: dict[str, Any]) -> tuple[Work, NDArray[np.int32]]:
    path = path_XT(case["slot_LTK"], case["weights_LTK"], case["home_T"], case["slot_gpu_S"])
    path[-1] = case["home_T"]
    arguments = case["slot_LTK"], case["offsets_G"], case["slot_gpu_S"], 1
    return count_work(*arguments, "expert_to_expert", path=path), path


@given(case=routed())
def test_the_path_follows_each_tokens_anchor(case: dict[str, Any]) -> None:
    slot_LTK, weights_LTK, here_T = case["slot_LTK"], case["weights_LTK"], case["home_T"]
    path = path_XT(slot_LTK, weights_LTK, here_T, case["slot_gpu_S"])
    for token, here in enumerate(here_T.tolist()):
        assert path[0, token] == here
        for layer in range(len(slot_LTK)):
            slots = slot_LTK[layer, token].tolist()
            weights = [0.0] * len(slots) if weights_LTK is None else weights_LTK[layer, token].tolist()
            here = naive_anchor(slots, weights, here, case["slot_gpu_S"])
            assert path[layer + 1, token] == here


@given(case=routed())
def test_every_token_reaches_its_experts_and_comes_home(case: dict[str, Any]) -> None:
    """Copies one by one, with sets: out to each distinct GPU but its own, back from each to its anchor."""
    work, path = count(case)
    sent_LGG, returned_LGG = np.zeros_like(work.sent_LGG), np.zeros_like(work.sent_LGG)
    for layer, slot_TK in enumerate(case["slot_LTK"]):
        for token, slots in enumerate(slot_TK.tolist()):
            here, there = path[layer, token], path[layer + 1, token]
            gpus = {int(case["slot_gpu_S"][slot]) for slot in slots if slot >= 0}
            for gpu in gpus - {here}:
                sent_LGG[layer, here, gpu] += 1
            for gpu in (gpus or {here}) - {there}:
                returned_LGG[layer, gpu, there] += 1
    np.testing.assert_array_equal(work.sent_LGG, sent_LGG)
    np.testing.assert_array_equal(work.returned_LGG, returned_LGG)
    assert not work.relayed_LGG.any()


@given(case=routed())
def test_a_token_leaves_each_layer_from_where_the_last_one_left_it(case: dict[str, Any]) -> None:
    """With one expert a token, a GPU's tokens change by what enters and leaves; at the end all are home."""
    case |= {"slot_LTK": case["slot_LTK"][:, :, :1], "weights_LTK": None}
    work, path = count(case)
    assert work.returned_LGG is not None
    G = len(case["offsets_G"]) - 1
    held_G = np.bincount(case["home_T"], minlength=G)
    for layer, moved_GG in enumerate(work.sent_LGG + work.returned_LGG):
        held_G = held_G + moved_GG.sum(axis=0) - moved_GG.sum(axis=1)
        np.testing.assert_array_equal(held_G, np.bincount(path[layer + 1], minlength=G))
    np.testing.assert_array_equal(held_G, np.bincount(case["home_T"], minlength=G))


def test_experts_that_follow_each_other_on_one_gpu_send_nothing() -> None:
    """One expert a token, always on the token's own GPU; between GPUs it would be sent in every layer."""
    layers, offsets_G = 3, np.array([0, 2, 4])
    slot_LTK = np.tile(np.array([0, 0, 1, 1], np.int16)[None, :, None], (layers, 1, 1))
    together = count_work(slot_LTK, offsets_G, np.array([0, 1], np.int32), 2, "expert_to_expert")
    assert not together.sent_LGG.any()
    assert together.returned_LGG is not None
    assert not together.returned_LGG.any()
    apart = count_work(slot_LTK, offsets_G, np.array([1, 0], np.int32), 2, "expert_to_expert")
    # Out before the first layer, home after the last, and nothing in between.
    assert apart.sent_LGG.sum(axis=(1, 2)).tolist() == [4, 0, 0]
    assert apart.returned_LGG is not None
    assert apart.returned_LGG.sum(axis=(1, 2)).tolist() == [0, 0, 4]


def test_by_hand_two_experts_on_three_gpus() -> None:
    """One token at home on GPU 0; slots 0, 1, 2 on GPUs 0, 1, 2.

    Layer 0, slots 1 and 2, the second heavier: copies 0 → 1 and 0 → 2, back 1 → 2. Layer 1, slots 2 and 0:
    2 → 0, then both outputs home, 2 → 0.
    """
    slot_LTK = np.array([[[1, 2]], [[2, 0]]], np.int16)
    weights_LTK = np.array([[[0.4, 0.6]], [[0.5, 0.5]]], np.float32)
    case = {
        "slot_LTK": slot_LTK,
        "weights_LTK": weights_LTK,
        "home_T": np.array([0], np.int32),
        "offsets_G": np.array([0, 1, 1, 1]),
        "slot_gpu_S": np.arange(3, dtype=np.int32),
    }
    work, path = count(case)
    assert path.ravel().tolist() == [0, 2, 0]
    assert [np.argwhere(sent_GG).tolist() for sent_GG in work.sent_LGG] == [[[0, 1], [0, 2]], [[2, 0]]]
    assert work.returned_LGG is not None
    assert [np.argwhere(back_GG).tolist() for back_GG in work.returned_LGG] == [[[1, 2]], [[2, 0]]]


def test_a_token_dropped_in_the_last_layer_still_comes_home() -> None:
    slot_LTK = np.array([[[1]], [[-1]]], np.int16)
    work = count_work(slot_LTK, np.array([0, 1, 1]), np.array([0, 1], np.int32), 2, "expert_to_expert")
    assert work.returned_LGG is not None
    assert work.returned_LGG.tolist() == [[[0, 0], [0, 0]], [[0, 0], [1, 0]]]
    assert work.tokens_LS.tolist() == [[0, 1], [0, 0]]


@pytest.mark.parametrize(("weights", "gpu"), [([0.3, 0.3, 0.2], 1), ([0.2, 0.3, 0.3], 2), (None, 1)])
def test_ties_go_to_the_first(weights: list[float] | None, gpu: int) -> None:
    weights_TK = None if weights is None else np.array([weights], np.float32)
    slot_TK, here_T = np.array([[1, 2, 3]], np.int16), np.array([0], np.int32)
    assert anchor_T(slot_TK, weights_TK, here_T, np.arange(4, dtype=np.int32)).tolist() == [gpu]


# Whole runs

MOVING = {"mode": "expert_to_expert", "dtype": "fp8", "combine_dtype": "bf16"}


def deployment(folder: Path, **changes: Any) -> Deployment:
    """The tiny scenario, with gate weights that single out any of a token's experts."""
    path = write_scenario(folder, tiny_scenario(dispatch=MOVING, **changes))
    made = deploy(load_scenario(str(path)))
    weights_TLK = np.random.default_rng(7).random(made.replayed.ids_TLK.shape).astype(np.float16)
    return replace(made, replayed=replace(made.replayed, weights_TLK=weights_TLK))


def copies(work: WorkTable) -> dict[tuple[int, int, str, int, int], int]:
    """Copies by step, layer, phase, source and destination; micro-batches added up."""
    found: Counter[tuple[int, int, str, int, int]] = Counter()
    columns = (work.step_N, work.layer_N, work.phase_N, work.source_N, work.destination_N, work.count_N)
    for step, layer, phase, source, destination, count in zip(
        *(column.tolist() for column in columns), strict=True
    ):
        found[step, layer, PHASES[phase], source, destination] += count
    return {key: count for key, count in found.items() if key[2] != "experts"}


def walked(made: Deployment) -> dict[tuple[int, int, str, int, int], int]:
    """The same, token by token from the trace: one slot for each expert, two layers, no policy."""
    scenario, trace, placement = made.scenario, made.replayed, made.placement
    assert trace.weights_TLK is not None
    found: Counter[tuple[int, int, str, int, int]] = Counter()
    ranks = scenario.parallelism.ep
    for step, tokens in enumerate(batches(trace, scenario.workload, ranks, scenario.seed)):
        for token, row in enumerate(tokens.row_T.tolist()):
            home = here = int(np.searchsorted(tokens.offsets_G, token, side="right")) - 1
            for i, layer in enumerate(trace.meta.layers):
                gpu_of = dict(zip(placement.slot_expert_LS[i].tolist(), placement.slot_gpu_S, strict=True))
                gpus = [int(gpu_of[expert]) for expert in trace.ids_TLK[row, i].tolist()]
                heaviest = int(trace.weights_TLK[row, i].argmax())
                there = home if layer == trace.meta.layers[-1] else gpus[heaviest]
                for gpu in set(gpus) - {here}:
                    found[step, layer, "dispatch", here, gpu] += 1
                for gpu in set(gpus) - {there}:
                    found[step, layer, "combine", gpu, there] += 1
                here = there
    return dict(found)


@pytest.mark.parametrize("overlap", ["none", "two_batch"])
@pytest.mark.parametrize("block", [1, 1 << 24])
def test_a_run_moves_each_token_as_a_walk_over_the_trace_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overlap: str, block: int
) -> None:
    """However many layers are counted at a time, and in however many micro-batches."""
    monkeypatch.setattr(counting, "_BLOCK", block)
    cluster = tiny_scenario()["cluster"]
    cluster["gpu"]["sms"] = 100
    made = deployment(tmp_path, overlap=overlap, cluster=cluster, placement="greedy")
    done = run(made)
    assert copies(done.work()) == walked(made)
    # What crosses the cards and what ranks receive is what was counted.
    work, timeline = done.work(), done.timeline
    across = (work.source_N >= 0) & (work.source_N // 2 != work.destination_N // 2)
    assert done.cross_node_bytes == pytest.approx(float(work.bytes_N[across].sum()))
    for phase in ("dispatch", "combine"):
        rows, spans = (table.phase_N == PHASES.index(phase) for table in (work, timeline))
        assert work.bytes_N[rows].sum() == timeline.bytes_N[spans].sum()


def test_the_copies_differ_from_those_of_a_token_that_goes_home(tmp_path: Path) -> None:
    moving = deployment(tmp_path)
    fixed = moving.scenario.dispatch.model_copy(update={"mode": "per_gpu"})
    at_home = replace(moving, scenario=moving.scenario.model_copy(update={"dispatch": fixed}))
    one, other = copies(run(moving).work()), copies(run(at_home).work())
    first = {key: count for key, count in other.items() if key[1] == 1 and key[2] == "dispatch"}
    assert first.items() <= one.items()
    assert one != other


def test_the_command_line_compares_reports_and_refuses_it(here: Path) -> None:
    modes = "dispatch.mode=[per_gpu, expert_to_expert]"
    done = moesim("whatif", "s.yaml", "--vary", modes, "-o", "out", "--json")
    assert done.code == 0, done.err
    points = json.loads(done.out)["points"]
    assert [point["vary"] for point in points] == [
        {"dispatch.mode": "per_gpu"},
        {"dispatch.mode": "expert_to_expert"},
    ]
    crossed = [point["metrics"]["cross_node_bytes"] for point in points]
    assert crossed[0] != crossed[1]
    done = moesim("run", "s.yaml", "-s", "dispatch.mode=expert_to_expert", "-o", "run")
    assert done.code == 0, done.err
    read_work("run/work.parquet").validate()
    assert "expert to expert dispatch" in Path("run/report.html").read_text(encoding="utf-8")
    path = write_scenario(here, tiny_scenario(dispatch=MOVING | {"padded": True}), "padded.yaml")
    with pytest.raises(SpecError, match="belongs to per_expert and per_gpu, not to expert_to_expert"):
        load_scenario(str(path))
