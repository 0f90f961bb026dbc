"""Counting rows of a trace, against choosing slots first and counting these."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.deployment.batch import gather_ids
from moesim.deployment.deployment import deploy
from moesim.dispatch.count import count_work
from moesim.dispatch.modes import MODES
from moesim.dispatch.replayed import Replayed
from moesim.dispatch.work import Work
from moesim.routing.copies import Copies
from moesim.routing.replicas import round_robin
from moesim.simulation.counting import Counter
from moesim.simulation.price import replayed
from moesim.spec.scenario import load_scenario
from tests.moesim.tiny import tiny_scenario, write_scenario

BY_ROWS = [name for name, mode in MODES.items() if mode.by_rows]


def same(found: Work, expected: Work) -> None:
    for field in fields(Work):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_array_equal(one, other, err_msg=field.name)


def compare(
    rng: np.random.Generator, mode: str, tokens_G: list[int], shape: tuple[int, int, int], most: int, P: int
) -> None:
    """``shape``: layers, experts, places of a token; each expert in up to ``most`` slots, in any order."""
    (L, E, K), G = shape, len(tokens_G)
    offsets_G = np.cumsum([0, *tokens_G])
    rows = 50
    ids_TLK = rng.permuted(np.broadcast_to(np.arange(E), (rows, L, E)), axis=2)[:, :, :K].astype(np.uint8)
    count_LE = rng.integers(1, most + 1, (L, E)).astype(np.int32)
    S = int(count_LE.sum(axis=1).max()) + 2
    slots_LER = np.full((L, E, most), -1, np.int32)
    for layer in range(L):
        slot_S = rng.permutation(S)
        for expert in range(E):
            taken, slot_S = np.split(slot_S, [count_LE[layer, expert]])
            slots_LER[layer, expert, : len(taken)] = np.sort(taken)
    gpu_S = rng.integers(0, G, S).astype(np.int32)
    row_B = rng.integers(0, rows, offsets_G[-1])
    copies = Copies(count_LE, slots_LER, gpu_S, G, P)
    slot_LTK = round_robin(gather_ids(ids_TLK, row_B), offsets_G, copies)
    same(
        count_work(Replayed(ids_TLK, row_B, count_LE, slots_LER), offsets_G, gpu_S, P, mode),
        count_work(slot_LTK, offsets_G, gpu_S, P, mode),
    )


@pytest.mark.parametrize("mode", BY_ROWS)
@given(
    seed=st.integers(0, 2**32),
    P=st.integers(1, 3),
    nodes=st.integers(1, 3),
    shape=st.tuples(st.integers(1, 3), st.integers(4, 9), st.integers(1, 4)),
    most=st.integers(1, 3),
)
def test_counts_what_chosen_slots_count(
    mode: str, seed: int, P: int, nodes: int, shape: tuple[int, int, int], most: int
) -> None:
    rng = np.random.default_rng(seed)
    compare(rng, mode, rng.integers(0, 9, P * nodes).tolist(), shape, most, P)


@pytest.mark.parametrize("mode", BY_ROWS)
@pytest.mark.parametrize("most", [1, 2])
def test_more_tokens_than_a_counter_of_bits_holds(mode: str, most: int) -> None:
    compare(np.random.default_rng(1), mode, [300, 0, 127, 128], (2, 8, 2), most, 2)


@pytest.mark.parametrize("mode", BY_ROWS)
@pytest.mark.parametrize("gpus", [56, 64, 72])
def test_more_places_than_bits_of_a_word(mode: str, gpus: int) -> None:
    """56 GPUs and 7 nodes have 63 bits; with 64 GPUs the nodes have none; 72 GPUs have none."""
    compare(np.random.default_rng(gpus), mode, [3] * gpus, (2, 100, 6), 1, 8)


def test_a_run_counts_rows_where_nothing_changes_what_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with the policy and the choice of slots in between; tallies too."""
    mapping = tiny_scenario(placement={"solver": "eplb", "slots": 12}, dispatch={"mode": "per_node"})
    deployment = deploy(load_scenario(str(write_scenario(tmp_path, mapping))))
    tokens = next(replayed(deployment))
    rows, slots = (Counter(deployment, lambda layers, ids: None) for _ in range(2))
    slots._as_recorded = False
    with monkeypatch.context() as patch:
        patch.setattr("moesim.simulation.counting.gather_ids", lambda *_: pytest.fail("gathers experts"))
        found = rows.work(tokens, deployment.placement)
    same(found, slots.work(tokens, deployment.placement))
    assert rows.tallies == slots.tallies
