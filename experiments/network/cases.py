"""DeepEP's two tables and the traffic behind each cell, counted from a routing drawn as its tests draw it.

Axes: T tokens, K experts per token, E experts, G GPUs, N nodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from moesim.dispatch.count import count_work
from moesim.hardware.transfer import Bytes, Transfer, combine_transfer, dispatch_transfer

SOURCE = "DeepEP, docs/legacy.md at dd758ca: H800, NVLink and one ConnectX-7 a GPU, hidden 7168, top 8"

GPUS_PER_NODE, HIDDEN, EXPERTS, TOP_K, TOP_NODES = 8, 7168, 256, 8, 4
COPY = Bytes.of(HIDDEN, "fp8", "bf16")

# GB/s by GPUs, normal kernels with 4096 tokens a GPU: over NVLink for 8 GPUs, over RDMA for more.
NORMAL: dict[int, dict[str, float]] = {
    8: {"dispatch": 153, "combine": 158},
    16: {"dispatch": 43, "combine": 43},
    32: {"dispatch": 58, "combine": 57},
    64: {"dispatch": 51, "combine": 50},
}
NORMAL_TOKENS = 4096

# Microseconds by GPUs, low-latency kernels with 128 tokens a GPU.
LOW_LATENCY: dict[int, dict[str, float]] = {
    8: {"dispatch": 77, "combine": 114},
    16: {"dispatch": 118, "combine": 195},
    32: {"dispatch": 155, "combine": 273},
    64: {"dispatch": 173, "combine": 314},
    128: {"dispatch": 192, "combine": 369},
    256: {"dispatch": 194, "combine": 360},
}
LOW_LATENCY_TOKENS = 128

Phase = Literal["dispatch", "combine"]


@dataclass(frozen=True)
class Case:
    """One cell of a table.

    Attributes:
        measured: GB/s of ``logical_bytes``, or microseconds.
        transfer: the bytes that really cross links.
        logical_bytes: what DeepEP divides by the time, averaged over GPUs. Normal kernels: each token
            once for each node that it visits (on one node: for each GPU), its own included.
    """

    mode: str
    gpus: int
    phase: Phase
    measured: float
    transfer: Transfer
    logical_bytes: float


def routing(gpus: int, tokens: int, seed: int, groups: int = 1, top_groups: int = 1) -> NDArray[np.int16]:
    """[T, K] experts of ``tokens`` tokens on each GPU: the largest of independent random scores.

    As in DeepEP's tests/test_internode.py, groups are the nodes and a token keeps the ``top_groups`` of
    them with the largest single score. The distribution of the scores does not matter, their order does.
    """
    return np.concatenate(list(_routing(gpus, tokens, seed, groups, top_groups)))


def _routing(gpus: int, tokens: int, seed: int, groups: int, top_groups: int) -> Iterator[NDArray[np.int16]]:
    rng = np.random.default_rng(seed)
    for _ in range(gpus):
        score_TE = rng.random((tokens, EXPERTS), np.float32)
        if top_groups < groups:
            best_TN = score_TE.reshape(tokens, groups, -1).max(axis=2)
            least_T1 = np.partition(best_TN, groups - top_groups, axis=1)[:, groups - top_groups, None]
            score_TE[np.repeat(best_TN < least_T1, EXPERTS // groups, axis=1)] = -1.0
        yield np.argpartition(score_TE, EXPERTS - TOP_K, axis=1)[:, EXPERTS - TOP_K :].astype(np.int16)


def normal_cases() -> list[Case]:
    """The table of normal kernels: once to each node, relayed there to each GPU."""
    cases = []
    for gpus, cells in NORMAL.items():
        nodes = gpus // GPUS_PER_NODE
        ids_TK = routing(gpus, NORMAL_TOKENS, gpus, groups=nodes, top_groups=min(nodes, TOP_NODES))
        copies = _visits(ids_TK, nodes if nodes > 1 else gpus) / gpus
        cases += _cases("per_node", gpus, NORMAL_TOKENS, ids_TK, copies, cells)
    return cases


def low_latency_cases() -> list[Case]:
    """The table of low-latency kernels: a copy for every chosen expert, straight to its GPU."""
    cases = []
    for gpus, cells in LOW_LATENCY.items():
        ids_TK = routing(gpus, LOW_LATENCY_TOKENS, gpus)
        cases += _cases("per_expert", gpus, LOW_LATENCY_TOKENS, ids_TK, LOW_LATENCY_TOKENS * TOP_K, cells)
    return cases


def _visits(ids_TK: NDArray[np.int16], places: int) -> int:
    """Distinct (token, place) pairs, the token's own place included, over equal shares of the experts."""
    place_S = (np.arange(EXPERTS) // (EXPERTS // places)).astype(np.int32)
    offsets = np.linspace(0, len(ids_TK), places + 1).astype(np.int64)
    return int(count_work(ids_TK[None], offsets, place_S, 1, "per_gpu").unique_LG.sum())


def _cases(
    mode: str,
    gpus: int,
    tokens: int,
    ids_TK: NDArray[np.int16],
    logical_copies: float,
    cells: dict[str, float],
) -> list[Case]:
    """Dispatch and combine of one routing, with experts in order over the GPUs."""
    gpu_S = (np.arange(EXPERTS) // (EXPERTS // gpus)).astype(np.int32)
    work = count_work(ids_TK[None], np.arange(gpus + 1, dtype=np.int64) * tokens, gpu_S, GPUS_PER_NODE, mode)
    sent_GG, relayed_GG = work.sent_LGG[0].astype(np.float64), work.relayed_LGG[0].astype(np.float64)
    there = dispatch_transfer(sent_GG, relayed_GG, COPY.dispatch)
    back = combine_transfer(sent_GG, relayed_GG, COPY.combine, GPUS_PER_NODE)
    return [
        Case(mode, gpus, "dispatch", cells["dispatch"], there, logical_copies * COPY.dispatch),
        Case(mode, gpus, "combine", cells["combine"], back, logical_copies * COPY.combine),
    ]
