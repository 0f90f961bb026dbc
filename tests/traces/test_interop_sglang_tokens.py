"""SGLang's recorder: the tokens of per_token, each trap of them, and the requests that they belong to."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.traces.sglang_files import (
    GOOD,
    TIME,
    per_token,
    save,
    token_record,
    topk,
)
from traces.base.errors import TraceError
from traces.interop import IMPORTERS, detect, load_any
from traces.interop.hints import Hints
from traces.meta import TraceMeta

pytestmark = pytest.mark.executor


def test_per_token_slots_become_experts_and_padding_goes(tmp_path: Path) -> None:
    """Top-2 in 8 columns; the second token is padding; each layer has its own map."""
    record = token_record(5, [0, 1, 2], [[0, 4], [], [5, 2]], extend=[3])
    path = save(tmp_path / f"{TIME}_0.pt", per_token(record))
    assert detect(path) is IMPORTERS["sglang-per-token"]
    trace = load_any(path, Hints(model="tiny"))
    assert trace.meta == TraceMeta(
        "tiny", 4, 2, (1, 2, 3), "SGLang recorder, mode per_token", "", hidden_layers=4
    )
    assert trace.ids_TLK.tolist() == [[[0, 1], [3, 1], [1, 2]], [[3, 2], [3, 1], [3, 0]]]
    assert trace.position_T.tolist() == [0, 2]
    assert trace.step_T is not None
    assert trace.step_T.tolist() == [5, 5]


def test_tokens_of_requests_are_joined_over_passes(tmp_path: Path) -> None:
    """Two prompts, one of them cut into two chunks, then both decode, then the first has ended."""
    path = save(
        tmp_path / "t.pt",
        per_token(
            token_record(1, [0, 1, 0, 1], [[0, 1]] * 4, extend=[2, 2]),
            token_record(2, [2, 3, 4], [[1, 2]] * 3, extend=[3]),  # the second prompt's rest, or the first's
            token_record(3, [5, 2], [[2, 3]] * 2),
            token_record(4, [3], [[0, 2]]),
        ),
    )
    trace = load_any(path)
    assert trace.step_T is not None
    found = list(zip(trace.request_T.tolist(), trace.position_T.tolist(), trace.step_T.tolist(), strict=True))
    first = [(0, 0, 1), (0, 1, 1), (0, 2, 2), (0, 3, 2), (0, 4, 2), (0, 5, 3)]
    assert found == [*first, (1, 0, 1), (1, 1, 1), (1, 2, 3), (1, 3, 4)]


def test_a_token_that_continues_nothing_starts_a_request(tmp_path: Path) -> None:
    """Recording began while requests were decoding; later one starts again at a known position."""
    path = save(
        tmp_path / "t.pt",
        per_token(token_record(1, [9, 40], [[0, 1]] * 2), token_record(2, [10, 9], [[0, 1]] * 2)),
    )
    trace = load_any(path)
    assert list(zip(trace.request_T.tolist(), trace.position_T.tolist(), strict=True)) == [
        (0, 9),
        (0, 10),
        (1, 40),
        (2, 9),
    ]


def test_ranks_of_a_tensor_parallel_group_count_once(tmp_path: Path) -> None:
    """Ranks 0 and 1 hold the same tokens, rank 2 others."""
    for rank, choice in ((0, [0, 1]), (1, [0, 1]), (2, [2, 1])):
        record = token_record(1, [0, 1], [choice] * 2, rank=rank, extend=[2])
        save(tmp_path / f"{TIME}{rank}_{rank}.pt", per_token(record))
    trace = load_any(tmp_path)
    assert trace.source_rank_T is not None
    assert trace.source_rank_T.tolist() == [0, 0, 2, 2]
    assert trace.request_T.tolist() == [0, 0, 1, 1]


def test_a_rank_without_tokens_is_no_fault(tmp_path: Path) -> None:
    for rank, positions in ((0, [0]), (1, [])):
        record = token_record(1, positions, [[0, 1]] * len(positions), rank=rank)
        save(tmp_path / f"{TIME}_{rank}.pt", per_token(record))
    assert load_any(tmp_path).tokens == 1


def test_more_experts_than_columns_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "t.pt", per_token(token_record(**GOOD)))
    with pytest.raises(TraceError, match="keeps 8 of the 10 experts of a token"):
        load_any(path, Hints(model="tiny", top_k=10))
    with pytest.raises(TraceError, match=r"tiny chooses 4 experts per token \(got 2\)"):
        load_any(path, Hints(model="tiny", top_k=4))
    with pytest.raises(TraceError, match=r"layers: tiny has MoE layers 0, 1, 2, 3 \(got '1, 2, 3'\)"):
        load_any(path, Hints(model="tiny", layers=(0, 1, 2, 3)))


TOKEN_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "a slot beyond P": (
        {"topk_ids_of_layer": topk([[0, 6], [2, 1]])},
        r"forward pass 1, layer 1, token 0: slot must be below 6, or -1 \(got 6\)",
    ),
    "fewer experts": (
        {"topk_ids_of_layer": topk([[0, 1], [2]])},
        r"layer 1, token 1: must choose 2 experts in every MoE layer, or none in any \(got 1\)",
    ),
    "a hole": ({"topk_ids_of_layer": topk([[0, 1], [-1, 1, 2]])}, "layer 1, token 1: must choose"),
    "no choice at all": ({"topk_ids_of_layer": topk([[], []])}, "has no token that chose an expert"),
    "an expert twice": ({"topk_ids_of_layer": topk([[0, 1], [1, 4]])}, "an expert is named twice"),
    "another number of tokens": (
        {"topk_ids_of_layer": topk([[0, 1]])},
        r"must have shape \(4, 2, 8\), as map and positions \(got \(4, 1, 8\)\)",
    ),
    "another number of layers": (
        {"topk_ids_of_layer": topk([[0, 1]] * 2, 3)},
        r"must have shape \(4, 2, 8\)",
    ),
    "no positions": ({"positions": None}, "positions of forward pass 1: must be a list of whole numbers"),
    "negative position": ({"positions": [-1, 0]}, "positions of forward pass 1: must be between 0"),
    "huge position": ({"positions": [2**70, 0]}, "positions of forward pass 1: must be between 0"),
    "lengths that do not add up": (
        {"extend_seq_lens": [3]},
        r"must sum to 2, the tokens of the pass \(got 3\)",
    ),
    "lengths of something": ({"extend_seq_lens": "ab"}, "extend_seq_lens .*must be a list of whole numbers"),
}


@pytest.mark.parametrize("fault", TOKEN_FAULTS)
def test_bad_per_token_files_are_refused(tmp_path: Path, fault: str) -> None:
    change, message = TOKEN_FAULTS[fault]
    path = save(tmp_path / "t.pt", per_token({**token_record(**GOOD), **change}))
    with pytest.raises(TraceError, match=message):
        load_any(path)


@st.composite
def served(draw: st.DrawFn) -> tuple[list[dict[str, Any]], dict[int, list[int]]]:
    """Passes of a server in the recorder's layout, and the passes of each request's tokens by position.

    Prompts have lengths that differ by more than anything is decoded, so that no two requests ever wait
    for the same position: then they can be told apart with certainty.
    """
    count = draw(st.integers(1, 4))
    # Prompt r ends at 20 (r + 1); chunks are of at most 20 tokens, so a long prompt takes several.
    remaining = {request: 20 * (request + 1) for request in draw(st.permutations(range(count)))}
    done = dict.fromkeys(remaining, 0)
    to_decode = {request: draw(st.integers(0, 5)) for request in remaining}
    passes: dict[int, list[int]] = {request: [] for request in remaining}
    records: list[dict[str, Any]] = []
    running: list[int] = []
    number = 0
    while remaining or running:
        number += 1
        if remaining and (not running or draw(st.booleans())):
            request = next(iter(remaining))
            length = min(20, remaining[request])
            positions = list(range(done[request], done[request] + length))
            records.append(token_record(number, positions, [[0, 1]] * length, extend=[length]))
            done[request] += length
            passes[request] += [number] * length
            remaining[request] -= length
            if not remaining[request]:
                del remaining[request]
                running.append(request)
        elif running := [request for request in running if to_decode[request]]:
            positions = [done[request] for request in running]
            records.append(token_record(number, positions, [[2, 1]] * len(running)))
            for request in running:
                done[request] += 1
                to_decode[request] -= 1
                passes[request].append(number)
    return records, passes


@settings(max_examples=examples(30))
@given(served())
def test_requests_that_positions_tell_apart_are_found_again(
    tmp_path_factory: pytest.TempPathFactory, example: tuple[list[dict[str, Any]], dict[int, list[int]]]
) -> None:
    records, passes = example
    trace = load_any(save(tmp_path_factory.mktemp("served") / "t.pt", per_token(*records)))
    assert trace.step_T is not None
    offsets = trace.request_offsets
    found = [trace.step_T[a:b].tolist() for a, b in pairwise(offsets)]
    assert sorted(found) == sorted(passes.values())
    for a, b in pairwise(offsets):
        assert trace.position_T[a:b].tolist() == list(range(b - a))
