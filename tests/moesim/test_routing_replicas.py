"""Every choice of replicas against its rule, and the programme against every split of small batches."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from moesim.routing.copies import Copies
from moesim.routing.replicas import REPLICA_CHOICES
from tests.examples import examples


@dataclass(frozen=True)
class Case:
    """Two layers of assignments on a placement with replicas."""

    ids_LTK: NDArray[np.int16]
    offsets_G: NDArray[np.int64]
    copies: Copies

    def slots(self, layer: int, expert: int) -> list[int]:
        count = self.copies.count_LE[layer, expert]
        return [int(slot) for slot in self.copies.slots_LER[layer, expert, :count]]

    def home(self, token: int) -> int:
        return int(np.searchsorted(self.offsets_G, token, side="right")) - 1


@st.composite
def cases(draw: st.DrawFn) -> Case:
    ranks, experts = draw(st.sampled_from([1, 2, 4])), draw(st.integers(1, 4))
    chance = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    slots = experts + draw(st.integers(0, 5))
    slot_gpu_S = chance.integers(0, ranks, slots).astype(np.int32)
    count_LE = np.zeros((2, experts), np.int32)
    slots_LER = np.full((2, experts, slots), -1, np.int32)
    for layer in range(2):
        held_S = chance.permutation(
            np.concatenate([np.arange(experts), chance.integers(0, experts, slots - experts)])
        )
        for expert in range(experts):
            found = np.flatnonzero(held_S == expert)
            count_LE[layer, expert] = len(found)
            slots_LER[layer, expert, : len(found)] = found
    tokens_G = draw(st.lists(st.integers(0, 4), min_size=ranks, max_size=ranks))
    top_k, tokens = draw(st.integers(1, min(2, experts))), sum(tokens_G)
    ids_LTK = np.argsort(chance.random((2, tokens, experts)), axis=2)[..., :top_k].astype(np.int16)
    ids_LTK[chance.random(ids_LTK.shape) < 0.1] = -1
    copies = Copies(count_LE, slots_LER, slot_gpu_S, ranks, max(1, ranks // 2))
    return Case(ids_LTK, np.cumsum([0, *tokens_G]).astype(np.int64), copies)


def chosen(case: Case, name: str) -> NDArray[np.int16]:
    return REPLICA_CHOICES[name](case.ids_LTK, case.offsets_G, case.copies)


@settings(max_examples=examples(60))
@given(cases(), st.sampled_from(list(REPLICA_CHOICES)))
def test_every_assignment_goes_to_a_slot_of_its_expert(case: Case, name: str) -> None:
    slot_LTK = chosen(case, name)
    assert slot_LTK.dtype == np.int16
    for at, expert in np.ndenumerate(case.ids_LTK):
        assert slot_LTK[at] in (case.slots(at[0], int(expert)) if expert >= 0 else [-1])


@settings(max_examples=examples(60))
@given(cases())
def test_nearest_goes_no_farther_than_it_must(case: Case) -> None:
    gpu_S, P = case.copies.slot_gpu_S, case.copies.gpus_per_node

    def distance(slot: int, home: int) -> int:
        return 0 if gpu_S[slot] == home else 1 if gpu_S[slot] // P == home // P else 2

    slot_LTK = chosen(case, "nearest").astype(int)
    used: dict[tuple[int, int, int], list[int]] = {}
    for at, wished in np.ndenumerate(case.ids_LTK):
        if wished < 0:
            continue
        layer, home = at[0], case.home(at[1])
        near = min(distance(slot, home) for slot in case.slots(layer, int(wished)))
        assert distance(int(slot_LTK[at]), home) == near
        used.setdefault((layer, home, int(wished)), []).append(int(slot_LTK[at]))
    for (layer, home, expert), slots in used.items():
        near = min(distance(slot, home) for slot in case.slots(layer, expert))
        equal = [slot for slot in case.slots(layer, expert) if distance(slot, home) == near]
        assert slots == [equal[(home + n) % len(equal)] for n in range(len(slots))]


@settings(max_examples=examples(60))
@given(cases())
def test_least_loaded_looks_at_what_is_served_so_far(case: Case) -> None:
    gpu_S = case.copies.slot_gpu_S
    slot_LTK = chosen(case, "least_loaded").astype(int)
    for layer, ids_TK in enumerate(case.ids_LTK.astype(int)):
        wished = [case.slots(layer, int(expert)) for expert in ids_TK.ravel() if expert >= 0]
        load = Counter(int(gpu_S[only[0]]) for only in wished if len(only) == 1)
        for at, expert in np.ndenumerate(ids_TK):
            slots = case.slots(layer, int(expert)) if expert >= 0 else []
            if len(slots) < 2:
                continue
            best = min(slots, key=lambda slot: load[int(gpu_S[slot])])
            assert slot_LTK[layer][at] == best
            load[int(gpu_S[best])] += 1


def fullest(case: Case, layer: int, slots: NDArray[np.int16]) -> int:
    return int(np.bincount(case.copies.slot_gpu_S[slots[slots >= 0]], minlength=1).max())


@settings(max_examples=examples(40))
@given(cases())
def test_the_programme_is_the_best_of_all_splits(case: Case) -> None:
    slot_LTK = chosen(case, "balanced")
    for layer, ids_TK in enumerate(case.ids_LTK):
        wished = Counter(int(expert) for expert in ids_TK.ravel() if expert >= 0)
        if not wished:
            continue
        ways = [
            itertools.combinations_with_replacement(case.slots(layer, expert), count)
            for expert, count in wished.items()
        ]
        if np.prod([len(case.slots(layer, e)) ** min(c, 3) for e, c in wished.items()]) > 300:
            continue
        best = min(
            fullest(case, layer, np.array(list(itertools.chain(*split)), np.int16))
            for split in itertools.product(*ways)
        )
        assert fullest(case, layer, slot_LTK[layer]) == best


def test_the_programme_splits_a_large_batch_to_the_token() -> None:
    # Expert 0, on all of 8 GPUs, has 8,001 tokens, expert 1 on GPU 3 has 500: ⌈8,501 / 8⌉ = 1,063 at most.
    slots_LER = np.full((1, 2, 8), -1, np.int32)
    slots_LER[0, 0], slots_LER[0, 1, 0] = np.arange(8), 8
    slot_gpu_S = np.array([*range(8), 3], np.int32)
    copies = Copies(np.array([[8, 1]], np.int32), slots_LER, slot_gpu_S, 8, 8)
    ids_LTK = np.repeat([0, 1], [8001, 500]).astype(np.int16)[None, :, None]
    case = Case(ids_LTK, np.linspace(0, 8501, 9).astype(np.int64), copies)
    served_G = np.bincount(slot_gpu_S[chosen(case, "balanced").ravel()], minlength=8)
    assert served_G.sum() == 8501
    assert served_G.max() == 1063
    # Whoever can stays at home: only what GPU 3 has too much of moves, and what its expert 1 brings.
    home_T = np.repeat(np.arange(8), np.diff(case.offsets_G))
    away = slot_gpu_S[chosen(case, "balanced").ravel()] != home_T
    assert away[ids_LTK.ravel() == 0].sum() < 8001 / 4


def test_hash_spreads_evenly_over_many() -> None:
    copies = Copies(np.array([[3]], np.int32), np.array([[[0, 1, 2]]], np.int32), np.zeros(3, np.int32), 1, 1)
    slots = REPLICA_CHOICES["hash"](np.zeros((1, 3000, 1), np.int16), np.array([0, 3000]), copies)
    assert np.abs(np.bincount(slots.ravel()) - 1000).max() < 20


@pytest.mark.parametrize("name", list(REPLICA_CHOICES))
def test_layers_choose_on_their_own(name: str) -> None:
    chance = np.random.default_rng(1)
    slots_LER = np.array([[[0, 2], [1, -1]], [[1, -1], [0, 2]]], np.int32)
    copies = Copies(np.array([[2, 1], [1, 2]], np.int32), slots_LER, np.array([0, 0, 1], np.int32), 2, 2)
    ids_LTK = chance.integers(0, 2, (2, 9, 1)).astype(np.int16)
    offsets_G = np.array([0, 5, 9])
    both = REPLICA_CHOICES[name](ids_LTK, offsets_G, copies)
    for layer in range(2):
        one = slice(layer, layer + 1)
        assert np.array_equal(REPLICA_CHOICES[name](ids_LTK[one], offsets_G, copies.of(one)), both[one])
