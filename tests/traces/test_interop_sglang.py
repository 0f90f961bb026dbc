"""SGLang's recorder: files built in exactly its layout, each trap of it, and files that would run code."""

from __future__ import annotations

import pickle
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces.errors import LoadTableError, MoesimError, TraceError
from traces.interop import IMPORTERS, LOAD_IMPORTERS, detect, importer, load_any, open_source
from traces.interop.hints import Hints
from traces.load_table import LoadTable
from traces.meta import TraceMeta

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.executor

Array = np.ndarray[Any, Any]

# 4 hidden layers, of which 0 is dense; 4 experts in 6 slots: in layers 1 to 3 expert 1 has two copies,
# and expert 3 has two.
MAP = [[0, 1, 2, 3, 1, 3], [0, 1, 2, 3, 1, 3], [3, 2, 1, 0, 1, 3], [1, 3, 0, 1, 2, 3]]
TIME = "expert_distribution_recorder_1762992000.25"


def save(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def tables(path: Path, **known: Any) -> LoadTable:
    found = open_source(path, Hints(**known))
    assert isinstance(found, LoadTable)
    return found


# stat


def stat(count_WLE: Any) -> dict[str, Any]:
    count = torch.tensor(count_WLE, dtype=torch.int32)
    return {"rank": 0, "logical_count": count, "average_utilization_rate_over_window": None}


def test_stat_drops_dense_layers_and_steps_that_the_ring_never_reached(tmp_path: Path) -> None:
    count_WLE = np.zeros((5, 4, 4), np.int32)
    count_WLE[0, 1:] = 1
    count_WLE[3, 1:] = 3
    count_WLE[4, 1:] = 2
    path = save(tmp_path / f"{TIME}.pt", stat(count_WLE.tolist()))
    assert detect(path) is LOAD_IMPORTERS["sglang-stat"]
    table = tables(path, model="tiny", licence="CC0-1.0")
    assert (table.model, table.experts, table.layers, table.licence) == ("tiny", 4, (1, 2, 3), "CC0-1.0")
    assert np.array_equal(table.load_WLE, count_WLE[[0, 3, 4], 1:])
    assert same_table(table, tables(tmp_path, model="tiny", licence="CC0-1.0"))  # a folder with the one file


def same_table(left: LoadTable, right: LoadTable) -> bool:
    return np.array_equal(left.load_WLE, right.load_WLE) and left.layers == right.layers


def test_stat_sums_in_int64(tmp_path: Path) -> None:
    table = tables(save(tmp_path / "t.pt", stat([[[2**31 - 1] * 4]] * 3)))
    assert table.load_LE.tolist() == [[3 * (2**31 - 1)] * 4]


def test_stat_that_does_not_fit_the_model_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "t.pt", stat([[[0] * 4, [1] * 4]]))
    with pytest.raises(LoadTableError, match=r"t\.pt: tiny has 8 experts \(got 4\)"):
        open_source(path, Hints(model="tiny", experts=8))
    with pytest.raises(LoadTableError, match=r"layers with load: tiny has MoE layers 0, 1 \(got '1'\)"):
        open_source(path, Hints(model="tiny", layers=(0, 1)))


STAT_FAULTS: dict[str, tuple[Any, str]] = {
    "no load": (stat([[[0] * 4]]), "has no load in any window"),
    "no step": (stat(np.zeros((0, 2, 4)).tolist()), "must be a tensor with 3 axes"),
    "negative": (stat([[[1, -1]]]), "must not be negative"),
    "floats": ({"logical_count": torch.zeros(1, 2, 4)}, "must be whole numbers"),
    "booleans": ({"logical_count": torch.ones(1, 2, 4, dtype=torch.bool)}, "must be whole numbers"),
    "two axes": ({"logical_count": torch.ones(2, 4, dtype=torch.int32)}, "must be a tensor with 3 axes"),
    "a list": ({"logical_count": [[[1]]]}, r"must be a tensor with 3 axes \(got 'list'\)"),
    "sparse": ({"logical_count": torch.ones(1, 2, 4).int().to_sparse()}, "must be a tensor with 3 axes"),
    "stretched": (
        {"logical_count": torch.ones(1, 1, 1, dtype=torch.int32).expand(2**20, 2**10, 2**10)},
        "claims more numbers than it stores",
    ),
    "no count": ({"logical_counts": torch.ones(1)}, "logical_count: is missing"),
    "a list of counts": ([torch.ones(1)], r"must hold a dictionary \(got 'list'\)"),
}


@pytest.mark.parametrize("fault", STAT_FAULTS)
def test_bad_stat_files_are_refused(tmp_path: Path, fault: str) -> None:
    content, message = STAT_FAULTS[fault]
    with pytest.raises(LoadTableError, match=message):
        LOAD_IMPORTERS["sglang-stat"].open(save(tmp_path / "t.pt", content), Hints())


def test_several_stat_files_are_several_recordings(tmp_path: Path) -> None:
    for name in ("a.pt", "b.pt"):
        save(tmp_path / name, stat([[[1] * 4]]))
    with pytest.raises(LoadTableError, match="holds 2 recordings: name one"):
        open_source(tmp_path)


# per_pass


def per_pass(rank: int, counts: dict[int, Any], slot_expert_LS: Any = MAP) -> dict[str, Any]:
    records = [
        {
            "forward_pass_id": number,
            "rank": rank,
            "gatherer_key": "primary",
            "global_physical_count": torch.tensor(count_LS, dtype=torch.int32),
        }
        for number, count_LS in counts.items()
    ]
    return {"records": records, "last_physical_to_logical_map": torch.tensor(slot_expert_LS)}


def random_counts(seed: int) -> dict[int, Array]:
    rng = np.random.default_rng(seed)
    counts = {number: rng.integers(0, 9, (4, 6)) for number in (11, 10, 12)}
    for count_LS in counts.values():
        count_LS[0] = 0  # the dense layer
    return counts


def test_per_pass_sums_ranks_and_replicas(tmp_path: Path) -> None:
    ranks = [random_counts(rank) for rank in range(3)]
    for rank, counts in enumerate(ranks):
        save(tmp_path / f"{TIME}{rank}_{rank}.pt", per_pass(rank, {k: v.tolist() for k, v in counts.items()}))
    assert detect(tmp_path) is LOAD_IMPORTERS["sglang-per-pass"]
    table = tables(tmp_path)
    expected = np.zeros((3, 4, 4), np.int64)
    for counts in ranks:
        for window, number in enumerate((10, 11, 12)):
            for layer in range(4):
                for slot in range(6):
                    expected[window, layer, MAP[layer][slot]] += counts[number][layer, slot]
    assert table.layers == (1, 2, 3)
    assert np.array_equal(table.load_WLE, expected[:, 1:])


def test_a_pass_without_tokens_is_no_window(tmp_path: Path) -> None:
    counts = {1: np.ones((4, 6), int).tolist(), 2: np.zeros((4, 6), int).tolist()}
    assert tables(save(tmp_path / "t.pt", per_pass(0, counts))).windows == 1


ONE = {1: np.ones((4, 6), int).tolist()}


def test_one_file_of_several_ranks_is_enough_and_a_folder_must_be_whole(tmp_path: Path) -> None:
    for rank in (0, 2):
        save(tmp_path / f"{TIME}_{rank}.pt", per_pass(rank, ONE))
    assert tables(tmp_path / f"{TIME}_2.pt").windows == 1
    with pytest.raises(LoadTableError, match="lacks the file of rank 1"):
        open_source(tmp_path)


def test_a_rank_that_comes_twice_is_of_another_recording(tmp_path: Path) -> None:
    save(tmp_path / "a.pt", per_pass(0, ONE))
    save(tmp_path / "b.pt", per_pass(0, ONE))
    with pytest.raises(LoadTableError, match=r"b\.pt: rank 0 stands in a\.pt too: two recordings"):
        open_source(tmp_path)


def test_maps_that_differ_are_of_different_recordings(tmp_path: Path) -> None:
    save(tmp_path / "a.pt", per_pass(0, ONE))
    save(tmp_path / "b.pt", per_pass(1, ONE, [[3, 1, 2, 0, 1, 3], *MAP[1:]]))
    with pytest.raises(LoadTableError, match="last_physical_to_logical_map: differs between the ranks"):
        open_source(tmp_path)


def broken(**change: Any) -> dict[str, Any]:
    content = per_pass(0, ONE)
    content["records"][0] |= {key: value for key, value in change.items() if key in content["records"][0]}
    return content | {key: value for key, value in change.items() if key not in content["records"][0]}


PASS_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "no records": ({"records": []}, "records: must be a list with at least one record"),
    "records of something": ({"records": [3]}, r"records\[0\]: must be a dictionary"),
    "no pass": ({"forward_pass_id": None}, r"records\[0\]\.forward_pass_id: must be a whole number"),
    "negative rank": ({"rank": -1}, r"records\[0\]\.rank: must be a whole number"),
    "no map": ({"last_physical_to_logical_map": None}, "must be a tensor with 2 axes"),
    "map beyond the slots": (
        {"last_physical_to_logical_map": torch.full((4, 6), 6)},
        r"must be below 6, the number of slots \(got 6\)",
    ),
    "map with holes": ({"last_physical_to_logical_map": torch.full((4, 6), -1)}, "must name a logical"),
    "counts of another shape": (
        {"global_physical_count": torch.ones(3, 6, dtype=torch.int32)},
        r"must have shape \(4, 6\), as the map \(got \(3, 6\)\)",
    ),
}


@pytest.mark.parametrize("fault", PASS_FAULTS)
def test_bad_per_pass_files_are_refused(tmp_path: Path, fault: str) -> None:
    change, message = PASS_FAULTS[fault]
    with pytest.raises(LoadTableError, match=message):
        LOAD_IMPORTERS["sglang-per-pass"].open(save(tmp_path / "t.pt", broken(**change)), Hints())


def test_without_its_map_a_file_is_refused(tmp_path: Path) -> None:
    content = per_pass(0, ONE)
    del content["last_physical_to_logical_map"]
    with pytest.raises(LoadTableError, match="without which slots are not experts"):
        open_source(save(tmp_path / "t.pt", content))


# per_token


def topk(choices: list[Any], layers: int = 4) -> Any:
    """Slots [L, T, 8] of tokens that chose the same slots in layers 1 to 3; layer 0 is dense."""
    slots_LTK = np.full((layers, len(choices), 8), -1, np.int32)
    for token, chosen in enumerate(choices):
        slots_LTK[1:, token, : len(chosen)] = chosen
    return torch.tensor(slots_LTK)


def token_record(
    number: int, positions: list[int], choices: list[Any], *, rank: int = 0, extend: list[int] | None = None
) -> dict[str, Any]:
    return {
        "forward_pass_id": number,
        "rank": rank,
        "gatherer_key": "primary",
        "input_ids": [7] * len(positions),
        "positions": positions,
        "extend_seq_lens": extend,
        "forward_mode": 1 if extend else 2,
        "topk_ids_of_layer": topk(choices),
        "misc_objects": [],
        "global_physical_count": torch.zeros((4, 6), dtype=torch.int32),
    }


def per_token(*records: dict[str, Any]) -> dict[str, Any]:
    return {"records": list(records), "last_physical_to_logical_map": torch.tensor(MAP)}


def test_per_token_slots_become_experts_and_padding_goes(tmp_path: Path) -> None:
    """Top-2 in 8 columns; the second token is padding; each layer has its own map."""
    record = token_record(5, [0, 1, 2], [[0, 4], [], [5, 2]], extend=[3])
    path = save(tmp_path / f"{TIME}_0.pt", per_token(record))
    assert detect(path) is IMPORTERS["sglang-per-token"]
    trace = load_any(path, Hints(model="tiny"))
    assert trace.meta == TraceMeta("tiny", 4, 2, (1, 2, 3), "SGLang recorder, mode per_token", "")
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


GOOD: dict[str, Any] = {"number": 1, "positions": [0, 1], "choices": [[0, 1], [2, 1]], "extend": [2]}


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


# Files that are no recorder files, or worse.


class Evil:
    """Unpickled by anything careless, it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.write_text, (self.target, "ran")


@pytest.mark.parametrize("name", ["logical_count", "global_physical_count", "topk_ids_of_layer"])
def test_a_pickle_with_code_does_not_run(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / "t.pt", {name: Evil(tmp_path / "ran.txt"), "records": []})
    with pytest.raises(MoesimError, match=r"t\.pt: is damaged, or holds other things than tensors"):
        open_source(path)
    assert not (tmp_path / "ran.txt").exists()


def test_a_plain_pickle_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "t.pt"
    path.write_bytes(pickle.dumps({"logical_count": Evil(tmp_path / "ran.txt")}))
    with pytest.raises(LoadTableError, match=r"is damaged or not a \.pt file of torch\.save"):
        LOAD_IMPORTERS["sglang-stat"].open(path, Hints())
    assert not (tmp_path / "ran.txt").exists()


def test_a_zip_bomb_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "t.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("t/data.pkl", b"logical_count" + bytes(2**20))
    with pytest.raises(LoadTableError, match="which does not compress"):
        open_source(path)


def test_a_file_beyond_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "t.pt", stat([[[1] * 4]]))
    monkeypatch.setattr("traces.memory.physical_memory", lambda: 100)
    with pytest.raises(LoadTableError, match="the file with its numbers as int64 needs"):
        open_source(path)


def test_missing_torch_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "t.pt", stat([[[1] * 4]]))
    monkeypatch.setattr("traces.interop.torch_file.importlib.util.find_spec", lambda name: None)
    with pytest.raises(LoadTableError, match=r"t\.pt: needs torch to be read: pip install torch"):
        open_source(path)


def test_weights_of_a_model_are_no_recording(tmp_path: Path) -> None:
    assert detect(save(tmp_path / "model.pt", {"layer.weight": torch.ones(3)})) is None


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (stat([[[1, 2], [3, 4]]]), "sglang-stat"),
        (per_pass(0, ONE), "sglang-per-pass"),
        (per_token(token_record(**GOOD)), "sglang-per-token"),
    ],
)
def test_cut_anywhere_a_file_is_refused(tmp_path: Path, content: Any, name: str) -> None:
    path = save(tmp_path / "t.pt", content)
    whole = path.read_bytes()
    found = importer(name)
    for length in range(0, len(whole), 61):
        path.write_bytes(whole[:length])
        assert detect(path) is None
        with pytest.raises(MoesimError):
            found.open(path, Hints())


# Requests, against a server that knows them.


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


@settings(max_examples=30)
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
