"""A measured dispatch or combine, and the traffic behind it, counted from routing drawn as the tests draw it.

Axes: T tokens, K experts per token, E experts, G GPUs, N nodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from moesim.dispatch.count import count_work
from moesim.hardware.transfer import Bytes, Transfer, combine_transfer, dispatch_transfer

GPUS_PER_NODE, HIDDEN, EXPERTS, TOP_K = 8, 7168, 256, 8
COPY = Bytes.of(HIDDEN, "fp8", "bf16")

Phase = Literal["dispatch", "combine"]
Traffic = dict[Phase, tuple[Transfer, ...]]

_DRAWN = 512
"""So many tokens a GPU are drawn in all, over several batches where one has fewer; 8 batches at most."""


@dataclass(frozen=True, eq=False)
class Case:
    """One measured cell.

    Attributes:
        machine: beginning of the GPU's name.
        mode: of dispatch; ``plain`` for a collective library's own all-to-all.
        gpus, tokens: of the group, and on each GPU of it.
        sms: multiprocessors given to the kernels; 0 where they take what they need.
        measured: microseconds, or GB/s of ``logical_bytes`` where these are not 0.
        transfers: the bytes that really cross links, for some draws of the routing.
        copy_bytes: of one copy.
        logical_bytes: what DeepEP's normal tests divide by the time, averaged over GPUs: each token once for
            each node that it visits (on one node: for each GPU), its own included.
        experts: of the model.
    """

    machine: str
    mode: str
    gpus: int
    tokens: int
    phase: Phase
    sms: int
    measured: float
    transfers: tuple[Transfer, ...]
    copy_bytes: float
    logical_bytes: float = 0.0
    experts: int = EXPERTS

    @property
    def nodes(self) -> int:
        """Nodes of the group."""
        return self.gpus // GPUS_PER_NODE

    @property
    def kind(self) -> str:
        """Machine and kernels, as tables group them."""
        if self.mode == "plain":
            return f"{self.machine} NCCL"
        if self.mode == "per_expert":
            return f"{self.machine} low latency"
        return f"{self.machine} normal, {'one node' if self.nodes == 1 else 'relaying'}"


def routing(
    gpus: int, tokens: int, seed: int, groups: int = 1, top_groups: int = 1, experts: int = EXPERTS
) -> NDArray[np.int16]:
    """[T, K] experts of ``tokens`` tokens on each GPU: the largest of independent random scores.

    As in DeepEP's tests/test_internode.py, groups are the nodes and a token keeps the ``top_groups`` of
    them with the largest single score. The distribution of the scores does not matter, their order does.
    """
    return np.concatenate(list(_routing(gpus, tokens, seed, groups, top_groups, experts)))


def _routing(
    gpus: int, tokens: int, seed: int, groups: int, top_groups: int, experts: int
) -> Iterator[NDArray[np.int16]]:
    rng = np.random.default_rng(seed)
    for _ in range(gpus):
        score_TE = rng.random((tokens, experts), np.float32)
        if top_groups < groups:
            best_TN = score_TE.reshape(tokens, groups, -1).max(axis=2)
            least_T1 = np.partition(best_TN, groups - top_groups, axis=1)[:, groups - top_groups, None]
            score_TE[np.repeat(best_TN < least_T1, experts // groups, axis=1)] = -1.0
        yield np.argpartition(score_TE, experts - TOP_K, axis=1)[:, experts - TOP_K :].astype(np.int16)


@cache
def uniform(mode: str, gpus: int, tokens: int, experts: int = EXPERTS) -> Traffic:
    """The traffic of uniform routing, as several batches where they are small."""
    drawn = [
        traffic(mode, gpus, tokens, routing(gpus, tokens, seed, experts=experts), experts)
        for seed in range(min(8, max(1, _DRAWN // tokens)))
    ]
    return {phase: tuple(each[phase][0] for each in drawn) for phase in drawn[0]}


def traffic(mode: str, gpus: int, tokens: int, ids_TK: NDArray[np.int16], experts: int = EXPERTS) -> Traffic:
    """Dispatch and combine of one routing, with experts in order over the GPUs."""
    gpu_S = (np.arange(experts) // (experts // gpus)).astype(np.int32)
    work = count_work(ids_TK[None], np.arange(gpus + 1, dtype=np.int64) * tokens, gpu_S, GPUS_PER_NODE, mode)
    sent_GG, relayed_GG = work.sent_LGG[0].astype(np.float64), work.relayed_LGG[0].astype(np.float64)
    there = dispatch_transfer(sent_GG, relayed_GG, COPY.dispatch)
    back = combine_transfer(sent_GG, relayed_GG, COPY.combine, GPUS_PER_NODE)
    return {"dispatch": (there,), "combine": (back,)}


def visits(ids_TK: NDArray[np.int16], places: int) -> int:
    """Distinct (token, place) pairs, the token's own place included, over equal shares of the experts."""
    place_S = (np.arange(EXPERTS) // (EXPERTS // places)).astype(np.int32)
    offsets = np.linspace(0, len(ids_TK), places + 1).astype(np.int64)
    return int(count_work(ids_TK[None], offsets, place_S, 1, "per_gpu").unique_LG.sum())


def copy_bytes(phase: Phase) -> float:
    """Of one copy of a token on its way there or back."""
    return COPY.dispatch if phase == "dispatch" else COPY.combine
