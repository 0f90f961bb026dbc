"""SGLang's recorder: the counts of stat and per_pass, and each trap of their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.traces.sglang_files import (
    MAP,
    ONE,
    TIME,
    per_pass,
    save,
    stat,
)
from traces.base.errors import LoadTableError
from traces.interop import LOAD_IMPORTERS, detect, open_source
from traces.interop.hints import Hints
from traces.load_table import LoadTable

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.executor

Array = np.ndarray[Any, Any]


def tables(path: Path, **known: Any) -> LoadTable:
    found = open_source(path, Hints(**known))
    assert isinstance(found, LoadTable)
    return found


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


def test_stat_of_averages(tmp_path: Path) -> None:
    path = save(tmp_path / "t.pt", {"logical_count": torch.tensor([[[0.0, 0.0], [0.5, 3.0]]])})
    table = tables(path)
    assert (table.layers, table.hidden_layers, table.load_LE.tolist()) == ((1,), 2, [[0.5, 3.0]])
    whole = tables(save(path, {"logical_count": torch.tensor([[[0.0, 4.0]]])}))
    assert (str(whole.load_WLE.dtype), whole.load_LE.tolist()) == ("int64", [[0, 4]])


def same_table(left: LoadTable, right: LoadTable) -> bool:
    return np.array_equal(left.load_WLE, right.load_WLE) and left.layers == right.layers


def test_stat_sums_in_int64(tmp_path: Path) -> None:
    table = tables(save(tmp_path / "t.pt", stat([[[2**31 - 1] * 4]] * 3)))
    assert table.load_LE.tolist() == [[3 * (2**31 - 1)] * 4]


def test_stat_that_does_not_fit_the_model_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "t.pt", stat([[[0] * 4, [1] * 4]]))
    with pytest.raises(LoadTableError, match=r"t\.pt: tiny has 8 experts \(got 4\)"):
        open_source(path, Hints(model="tiny", experts=8))
    rule = r"needs a row for each MoE layer of tiny \(3, from 1 to 3\).*'load in 1 of 2 rows, from 1 to 1'"
    with pytest.raises(LoadTableError, match=rule):
        open_source(path, Hints(model="tiny", layers=(1, 2, 3)))


def test_rows_of_the_moe_layers_alone_are_told_by_their_number(tmp_path: Path) -> None:
    path = save(tmp_path / "t.pt", stat([[[1, 2, 3, 4], [4, 3, 2, 1]]]))
    opened = open_source(path, Hints(model="tiny", layers=(3, 5)))
    assert isinstance(opened, LoadTable)
    assert opened.layers == (3, 5)


STAT_FAULTS: dict[str, tuple[Any, str]] = {
    "no load": (stat([[[0] * 4]]), "has no load in any window"),
    "no step": (stat(np.zeros((0, 2, 4)).tolist()), "must be a tensor with 3 axes"),
    "negative": (stat([[[1, -1]]]), "must not be negative"),
    "complex": ({"logical_count": torch.ones(1, 2, 4) * 1j}, "must be numbers"),
    "booleans": ({"logical_count": torch.ones(1, 2, 4, dtype=torch.bool)}, "must be numbers"),
    "two axes": ({"logical_count": torch.ones(2, 4, dtype=torch.int32)}, "must be a tensor with 3 axes"),
    "a list": ({"logical_count": [[[1]]]}, r"must be a tensor with 3 axes \(got 'list'\)"),
    "sparse": ({"logical_count": torch.ones(1, 2, 4).int().to_sparse()}, "must be a tensor with 3 axes"),
    "stretched": (
        {"logical_count": torch.ones(1, 1, 1, dtype=torch.int32).expand(2**20, 2**10, 2**10)},
        "claims more numbers than it stores",
    ),
    "no count": ({"logical_counts": torch.ones(1)}, "lacks the key logical_count; it has logical_counts"),
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


def test_ranks_may_count_in_different_dtypes(tmp_path: Path) -> None:
    ranks = [per_pass(rank, ONE) for rank in range(2)]
    record = ranks[1]["records"][0]
    record["global_physical_count"] = record["global_physical_count"].float() / 2
    for rank, content in enumerate(ranks):
        save(tmp_path / f"{TIME}{rank}_{rank}.pt", content)
    whole = {1: (2 * np.ones((4, 6), int)).tolist()}
    (tmp_path / "one").mkdir()
    save(tmp_path / "one" / "a.pt", per_pass(0, whole))
    assert np.allclose(tables(tmp_path).load_WLE * 4 / 3, tables(tmp_path / "one" / "a.pt").load_WLE)
