"""Counting against a naive oracle that walks over tokens with Python sets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from moesim.dispatch.count import count_work
from moesim.dispatch.modes import MODES
from moesim.dispatch.work import Work


def naive(
    slot_LTK: NDArray[np.int16],
    offsets_G: NDArray[np.int64],
    slot_gpu_S: NDArray[np.int32],
    gpus_per_node: int,
    mode: str,
) -> Work:
    L, G, S, P = len(slot_LTK), len(offsets_G) - 1, len(slot_gpu_S), gpus_per_node
    tokens = np.zeros((L, S), np.int32)
    unique = np.zeros((L, G), np.int32)
    sent, relayed, returned = (np.zeros((L, G, G), np.int32) for _ in range(3))
    moves = mode == "expert_to_expert"
    here = {token: home for home in range(G) for token in range(offsets_G[home], offsets_G[home + 1])}
    for layer in range(L):
        for home in range(G):
            for token in range(offsets_G[home], offsets_G[home + 1]):
                slots = [slot for slot in slot_LTK[layer, token].tolist() if slot >= 0]
                gpus = [int(slot_gpu_S[slot]) for slot in slots]
                for slot in slots:
                    tokens[layer, slot] += 1
                for gpu in set(gpus):
                    unique[layer, gpu] += 1
                if mode in ("all_gather", "all_reduce"):
                    gpus = list(range(G))
                if moves:
                    for gpu in set(gpus) - {here[token]}:
                        sent[layer, here[token], gpu] += 1
                    after = gpus[0] if gpus else here[token]
                    there = home if layer == L - 1 else after
                    for gpu in set(gpus or [here[token]]) - {there}:
                        returned[layer, gpu, there] += 1
                    here[token] = there
                elif mode == "per_expert":
                    for gpu in gpus:
                        sent[layer, home, gpu] += gpu != home
                elif mode == "per_gpu":
                    for gpu in set(gpus) - {home}:
                        sent[layer, home, gpu] += 1
                else:
                    for gpu in set(gpus) - {home}:
                        if gpu // P == home // P:
                            sent[layer, home, gpu] += 1
                    for node in {gpu // P for gpu in gpus} - {home // P}:
                        entry = node * P + home % P
                        sent[layer, home, entry] += 1
                        for gpu in {gpu for gpu in gpus if gpu // P == node} - {entry}:
                            relayed[layer, entry, gpu] += 1
    served = np.stack([tokens[:, slot_gpu_S == gpu].sum(axis=1) for gpu in range(G)], axis=1)
    return Work(tokens, served, unique, sent, relayed, returned if moves else None)


@st.composite
def routed(draw: st.DrawFn) -> tuple[NDArray[np.int16], NDArray[np.int64], NDArray[np.int32], int]:
    """Slots of assignments, home offsets, GPU of each slot, GPUs per node."""
    P, N = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    G = P * N
    S, K, L = draw(st.integers(G, 3 * G)), draw(st.integers(1, 4)), draw(st.integers(1, 2))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    per_rank_G = rng.integers(0, 6, G)
    T = int(per_rank_G.sum())
    slot_LTK = rng.integers(-1, S, (L, T, K)).astype(np.int16)
    offsets_G = np.concatenate([[0], np.cumsum(per_rank_G)]).astype(np.int64)
    return slot_LTK, offsets_G, rng.integers(0, G, S).astype(np.int32), P


@pytest.mark.parametrize("mode", MODES)
@given(case=routed())
def test_equals_the_naive_count(
    mode: str, case: tuple[NDArray[np.int16], NDArray[np.int64], NDArray[np.int32], int]
) -> None:
    found, expected = count_work(*case, mode), naive(*case, mode)
    assert (found.returned_LGG is None) == (mode != "expert_to_expert")
    for name in ("tokens_LS", "served_LG", "unique_LG", "sent_LGG", "relayed_LGG", "returned_LGG"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


@given(case=routed())
def test_modes_agree_on_what_must_arrive(
    case: tuple[NDArray[np.int16], NDArray[np.int64], NDArray[np.int32], int],
) -> None:
    slot_LTK, offsets_G, _, P = case
    by_mode = {mode: count_work(*case, mode) for mode in MODES}
    G = len(offsets_G) - 1
    node_G = np.arange(G) // P
    across_GG = node_G[:, None] != node_G[None, :]
    expert, gpu, node = (by_mode[mode] for mode in ("per_expert", "per_gpu", "per_node"))
    for mode in ("all_gather", "all_reduce"):
        # No mode that looks at the routing sends more than those that do not.
        assert (node.sent_LGG <= by_mode[mode].sent_LGG).all()
        assert (node.relayed_LGG <= by_mode[mode].relayed_LGG).all()
    # De-duplication only ever saves copies, and nothing stays on its own GPU as a copy.
    assert (gpu.sent_LGG <= expert.sent_LGG).all()
    assert node.sent_LGG[:, across_GG].sum() <= gpu.sent_LGG[:, across_GG].sum()
    for work in by_mode.values():
        assert work.sent_LGG[:, np.arange(G), np.arange(G)].sum() == 0
        assert work.tokens_LS.sum() == (slot_LTK >= 0).sum()
        assert not work.relayed_LGG[:, across_GG].any()
        np.testing.assert_array_equal(work.unique_LG, expert.unique_LG)
    # Each remote node that a token visits gets it over one NIC, and every GPU there gets it exactly once.
    arrived_LG = node.sent_LGG.sum(axis=1) + node.relayed_LGG.sum(axis=1)
    direct_LG = gpu.sent_LGG.sum(axis=1)
    # An entry GPU without a slot of the token still receives it, to relay it.
    assert (arrived_LG >= direct_LG).all()


def test_by_hand_two_nodes() -> None:
    """Two nodes of two GPUs, a slot each; one token at home on GPU 0 visits GPUs 1 and 3, another 2 and 3."""
    slot_LTK = np.array([[[1, 3], [2, 3]]], np.int16)
    case = (slot_LTK, np.array([0, 2, 2, 2, 2]), np.arange(4, dtype=np.int32), 2)
    per_node = count_work(*case, "per_node")
    # Rail: GPU 0 enters node 1 through GPU 2, which relays both tokens to GPU 3.
    assert per_node.sent_LGG[0].tolist() == [[0, 1, 2, 0], [0] * 4, [0] * 4, [0] * 4]
    assert per_node.relayed_LGG[0].tolist() == [[0] * 4, [0] * 4, [0, 0, 0, 2], [0] * 4]
    assert count_work(*case, "per_gpu").sent_LGG[0, 0].tolist() == [0, 1, 1, 2]
    assert per_node.unique_LG[0].tolist() == [0, 1, 1, 2]


def test_an_expert_twice_on_one_gpu_is_two_copies_only_per_expert() -> None:
    case = (np.array([[[2, 3]]], np.int16), np.array([0, 1, 1]), np.array([0, 0, 1, 1], np.int32), 2)
    assert count_work(*case, "per_expert").sent_LGG[0, 0].tolist() == [0, 2]
    assert count_work(*case, "per_gpu").sent_LGG[0, 0].tolist() == [0, 1]
    assert count_work(*case, "per_gpu").tokens_LS[0].tolist() == [0, 0, 1, 1]


def test_padded_pairs_all_send_as_much_as_the_fullest() -> None:
    slot_LTK = np.array([[[1], [1], [2]], [[0], [0], [0]]], np.int16)
    case = (slot_LTK, np.array([0, 3, 3, 3]), np.arange(3, dtype=np.int32), 3)
    assert count_work(*case, "per_gpu").sent_LGG[0].tolist() == [[0, 2, 1], [0, 0, 0], [0, 0, 0]]
    padded = count_work(*case, "per_gpu", pad=True).sent_LGG
    assert padded[0].tolist() == [[0, 2, 2], [2, 0, 2], [2, 2, 0]]
    assert not padded[1].any()


def test_all_gather_crosses_to_each_node_once_for_each_token() -> None:
    """Two nodes of two GPUs, 3 tokens at home on GPU 0, 1 on GPU 3: over one NIC, then relayed."""
    case = (np.zeros((1, 4, 1), np.int16), np.array([0, 3, 3, 3, 4]), np.arange(4, dtype=np.int32), 2)
    work = count_work(*case, "all_gather")
    assert work.sent_LGG[0].tolist() == [[0, 3, 3, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0]]
    assert work.relayed_LGG[0].tolist() == [[0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 3], [0, 0, 0, 0]]
