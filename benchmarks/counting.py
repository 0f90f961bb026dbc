"""Counting assignments, against a vectorised numpy version of the same count."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from moesim.dispatch.count import count_work
from moesim.dispatch.work import Work

T, K, E, G, P, LAYERS = 16_384, 8, 256, 128, 8, 8


def numpy_count(
    slot_LTK: NDArray[np.int16], offsets_G: NDArray[np.int64], gpu_S: NDArray[np.int32], per_node: int
) -> Work:
    """The same arrays as ``count_work`` in mode per_node, by whole-array operations."""
    L, tokens, _ = slot_LTK.shape
    S, N = len(gpu_S), G // per_node
    home_T = np.repeat(np.arange(G), np.diff(offsets_G))
    work = Work.zeros(L, S, G, returned=False)
    row_T1 = np.arange(tokens)[:, None]
    node_G = np.arange(G) // per_node
    for layer, slot_TK in enumerate(slot_LTK):
        gpu_TK = gpu_S[slot_TK]
        visits_TG = np.zeros((tokens, G), bool)
        visits_TG[row_T1, gpu_TK] = True
        visits_TN = np.zeros((tokens, N), bool)
        visits_TN[row_T1, gpu_TK // per_node] = True
        copies_GG = np.add.reduceat(visits_TG, offsets_G[:-1], axis=0, dtype=np.int32)
        nodes_GN = np.add.reduceat(visits_TN, offsets_G[:-1], axis=0, dtype=np.int32)
        work.tokens_LS[layer] = np.bincount(slot_TK.ravel(), minlength=S)
        work.served_LG[layer] = np.bincount(gpu_S, work.tokens_LS[layer], minlength=G)
        work.unique_LG[layer] = visits_TG.sum(axis=0)
        same_GG = node_G[:, None] == node_G[None, :]
        sent_GG = np.where(same_GG, copies_GG, 0)
        for node in range(N):
            away = np.flatnonzero(node_G != node)
            entry = node * per_node + away % per_node
            sent_GG[away, entry] = nodes_GN[away, node]
            inside = slice(node * per_node, (node + 1) * per_node)
            np.add.at(work.relayed_LGG[layer][:, inside], entry, copies_GG[away, inside])
        np.fill_diagonal(sent_GG, 0)
        np.fill_diagonal(work.relayed_LGG[layer], 0)
        work.sent_LGG[layer] = sent_GG
    assert len(home_T) == tokens
    return work


def best_of(
    function: Callable[[], object], times: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds of the fastest of some calls."""
    seconds = []
    for _ in range(times):
        began = clock()
        function()
        seconds.append(clock() - began)
    return min(seconds)


def counting() -> list[tuple[str, str]]:
    """Rows of the table: what, and how fast."""
    rng = np.random.default_rng(0)
    one_TK = np.argsort(rng.random((T, E)), axis=1)[:, :K].astype(np.int16)
    slot_LTK = np.repeat(one_TK[None], LAYERS, axis=0)
    offsets_G = np.arange(G + 1) * (T // G)
    gpu_S = (np.arange(E) // (E // G)).astype(np.int32)
    ours = count_work(slot_LTK, offsets_G, gpu_S, P, "per_node")
    theirs = numpy_count(slot_LTK, offsets_G, gpu_S, P)
    for name in ("tokens_LS", "served_LG", "unique_LG", "sent_LGG", "relayed_LGG"):
        if not np.array_equal(getattr(ours, name), getattr(theirs, name)):
            raise AssertionError(f"the two counts differ in {name}")
    seconds = best_of(lambda: count_work(slot_LTK, offsets_G, gpu_S, P, "per_node"), 9)
    numpy_seconds = best_of(lambda: numpy_count(slot_LTK, offsets_G, gpu_S, P), 3)
    size = slot_LTK.size / 1e6
    return [
        (f"counting, per_node, T {T}, K {K}, E {E}, G {G}", f"{size / seconds:.0f} M assignments/s"),
        ("  the same in numpy", f"{size / numpy_seconds:.0f} M assignments/s"),
        ("  ratio", f"{numpy_seconds / seconds:.1f}"),
    ]
