"""Which tokens of the trace make up each step of a run, where they are at home, and what they attend to."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import SpecError, TraceError
from moesim.routing.halves import first_half_T
from moesim.spec.workload import Workload
from traces.base.jit import jit
from traces.routing import RoutingTrace

# Positions before this one are tokens of the chat template, the same in almost every request: a batch
# that decodes from there in lock-step would show an imbalance that no server sees.
FIRST_POSITION = 4


@dataclass(frozen=True)
class StepTokens:
    """The tokens of one step, sorted by home rank. T tokens, G ranks.

    Attributes:
        row_T: row of the trace that each token replays.
        offsets_G: [G + 1]; tokens offsets_G[g] to offsets_G[g + 1] have their home on rank g.
        keys_T: tokens that each attends to, itself included; sliding windows not yet applied.
        prefill_T: whether it is one of a chunk of consecutive tokens.
        last_T: whether it is its sequence's last of this step, whose logits are asked for.
    """

    row_T: NDArray[np.int64]
    offsets_G: NDArray[np.int64]
    keys_T: NDArray[np.float64]
    prefill_T: NDArray[np.bool_]
    last_T: NDArray[np.bool_]

    @property
    def tokens_G(self) -> NDArray[np.int64]:
        """Tokens at home on each rank."""
        return np.diff(self.offsets_G)

    @property
    def last_G(self) -> NDArray[np.float64]:
        """Tokens of each rank whose logits are asked for."""
        return self.per_rank(self.last_T)

    @property
    def prefilling_G(self) -> NDArray[np.float64]:
        """Tokens of each rank that are of chunks."""
        return self.per_rank(self.prefill_T)

    def halves(self) -> tuple[StepTokens, StepTokens]:
        """Two micro-batches: of each rank the first half of its tokens, rounded up, and the rest."""
        first_T = first_half_T(self.offsets_G)
        return self._only(first_T), self._only(~first_T)

    def _only(self, chosen_T: NDArray[np.bool_]) -> StepTokens:
        return StepTokens(
            self.row_T[chosen_T],
            home_offsets(self.per_rank(chosen_T).astype(np.int64)),
            self.keys_T[chosen_T],
            self.prefill_T[chosen_T],
            self.last_T[chosen_T],
        )

    def keys_G(
        self, attended: Callable[[NDArray[np.float64]], NDArray[np.float64]], *, prefill: bool
    ) -> NDArray[np.float64]:
        """Keys that each rank's decoding or prefill tokens attend to, summed.

        Args:
            attended: how many a token attends to, by the tokens before it.
        """
        return self.per_rank(np.where(self.prefill_T == prefill, attended(self.keys_T), 0.0))

    def per_rank(self, values_T: NDArray[Any]) -> NDArray[np.float64]:
        """The sum of a value over the tokens of each rank."""
        G = len(self.offsets_G) - 1
        home_T = np.repeat(np.arange(G), self.tokens_G)
        return np.bincount(home_T, values_T, minlength=G).astype(np.float64)


@dataclass(frozen=True)
class Seeds:
    """One stream of randomness for each purpose, so that none shifts another."""

    decode: np.random.Generator
    prefill: np.random.Generator
    tokens: np.random.Generator
    contexts: np.random.Generator
    jitter: np.random.Generator
    durations: np.random.Generator

    @classmethod
    def of(cls, seed: int) -> Seeds:
        """Streams that follow from the scenario's seed."""
        return cls(*(np.random.default_rng(each) for each in np.random.SeedSequence(seed).spawn(6)))


def batches(trace: RoutingTrace, workload: Workload, ranks: int, seed: int) -> Iterator[StepTokens]:
    """The tokens of each step of a workload.

    Raises:
        TraceError: the trace has no token where decoding could start.
    """
    seeds = Seeds.of(seed)
    tokens_G = workload.tokens_per_gpu.per_rank(ranks, seeds.tokens)
    chunk_G = np.zeros(ranks, np.int64)
    if workload.phase == "prefill":
        tokens_G, chunk_G = chunk_G, tokens_G
    elif workload.prefill_tokens_per_gpu is not None:
        chunk_G = workload.prefill_tokens_per_gpu.per_rank(ranks, seeds.tokens)
    sequences = int(tokens_G.sum())
    if not sequences + chunk_G.sum():
        raise SpecError(
            "draws no token for any rank; raise it",
            field="workload.tokens_per_gpu",
            got=workload.tokens_per_gpu,
        )
    if workload.context.ranks is None:
        context_B = workload.context.draw(sequences, seeds.contexts)
        before_G = workload.context.per_rank(ranks, seeds.contexts)
    else:
        before_G = np.array(workload.context.ranks, np.int64)
        context_B = np.repeat(before_G, tokens_G)
    recorded = workload.order == "recorded"
    turn = itertools.cycle(range(len(trace.request_offsets) - 1)) if recorded else None
    streams = [
        _Stream(trace, int(chunk), int(before), seeds.prefill, turn)
        for chunk, before in zip(chunk_G, before_G, strict=True)
        if chunk
    ]
    home_T = np.concatenate([np.repeat(np.arange(ranks), tokens_G), np.repeat(np.arange(ranks), chunk_G)])
    order_T = np.argsort(home_T, kind="stable")
    offsets_G = home_offsets(tokens_G + chunk_G)
    prefill_T = np.repeat([False, True], [sequences, int(chunk_G.sum())])
    keys_B = np.maximum(context_B, 1).astype(np.float64)
    rows = decode_rows(
        trace.request_offsets,
        trace.position_T,
        sequences,
        workload.steps,
        seeds.decode,
        recorded=recorded,
    )
    for row_B in rows:
        parts = [(row_B, keys_B, np.ones(sequences, bool)), *(stream.chunk() for stream in streams)]
        row_T, keys_T, last_T = (np.concatenate(column)[order_T] for column in zip(*parts, strict=True))
        yield StepTokens(row_T, offsets_G, keys_T, prefill_T[order_T], last_T)


class _Stream:
    """Prefill on one rank: request after request, each from its first token to its last, cut into chunks.

    The next request is the next of ``turn``, which ranks may share; without one, any.
    """

    def __init__(
        self,
        trace: RoutingTrace,
        chunk: int,
        before: int,
        rng: np.random.Generator,
        turn: Iterator[int] | None,
    ) -> None:
        self._offsets, self._position_T = trace.request_offsets, trace.position_T
        self._chunk, self._before, self._rng, self._turn = chunk, before, rng, turn
        self._next = self._end = 0
        self._draw()
        # Ranks are in the middle of their requests when the run starts, not all at a first token.
        self._next = int(rng.integers(self._next, self._end))

    def _draw(self) -> None:
        requests = len(self._offsets) - 1
        request = next(self._turn) if self._turn is not None else int(self._rng.integers(requests))
        self._next, self._end = int(self._offsets[request]), int(self._offsets[request + 1])

    def chunk(self) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_]]:
        """(rows, keys, last) of the next tokens."""
        rows, last = np.empty(self._chunk, np.int64), np.zeros(self._chunk, bool)
        filled = 0
        while filled < self._chunk:
            if self._next == self._end:
                self._draw()
            taken = min(self._chunk - filled, self._end - self._next)
            rows[filled : filled + taken] = np.arange(self._next, self._next + taken)
            self._next += taken
            filled += taken
            last[filled - 1] = True
        return rows, self._position_T[rows] + (1.0 + self._before), last


def decode_rows(
    request_offsets: NDArray[np.int64],
    position_T: NDArray[np.int32],
    batch: int,
    steps: int,
    rng: np.random.Generator,
    *,
    recorded: bool = False,
) -> Iterator[NDArray[np.int64]]:
    """Trace rows of each decode step, one for each of ``batch`` sequences.

    A sequence draws a request and a start position of at least 4, then follows the request token by
    token; when it ends, the sequence draws another. At the start each request is drawn equally often
    (once, or never, if there are more requests than sequences); later draws are uniform.

    In ``recorded`` order sequences start with the first requests, each at a position that is drawn, and a
    sequence that ends goes on with the next request that none has had yet, from its position 4.

    Args:
        request_offsets: [R + 1]; request r is rows request_offsets[r] to request_offsets[r + 1].
        position_T: position of each row in its request, ascending.
        batch, steps: sequences, and rows for each of them.
        rng: where the draws come from.
        recorded: take requests in their order, over and over, instead of drawing them.

    Yields:
        row_B, int64: the row that each sequence decodes in this step.

    Raises:
        TraceError: no request has a token at position 4 or later.
    """
    if batch == 0:
        yield from (np.empty(0, np.int64) for _ in range(steps))
        return
    ends_R = request_offsets[1:]
    starts_R = np.array(
        [
            start + np.searchsorted(position_T[start:end], FIRST_POSITION)
            for start, end in zip(request_offsets[:-1], ends_R, strict=True)
        ],
        np.int64,
    )
    usable_R = np.flatnonzero(starts_R < ends_R)
    if not len(usable_R):
        raise TraceError(
            f"no request has a token at position {FIRST_POSITION} or later, where decoding starts",
            field="position",
            got=f"{len(ends_R)} requests",
        )

    def draw(requests: NDArray[np.int64]) -> NDArray[np.int64]:
        return rng.integers(starts_R[requests], ends_R[requests])

    turns = -(-batch // len(usable_R))
    request_B = np.concatenate([usable_R if recorded else rng.permutation(usable_R) for _ in range(turns)])
    request_B, taken = request_B[:batch], batch
    row_B = draw(request_B)
    for _ in range(steps):
        yield row_B.copy()
        row_B += 1
        ended_B = np.flatnonzero(row_B == ends_R[request_B])
        if recorded:
            request_B[ended_B] = usable_R[(taken + np.arange(len(ended_B))) % len(usable_R)]
            row_B[ended_B] = starts_R[request_B[ended_B]]
            taken += len(ended_B)
        else:
            request_B[ended_B] = rng.choice(usable_R, len(ended_B))
            row_B[ended_B] = draw(request_B[ended_B])


def home_offsets(tokens_G: NDArray[np.int64]) -> NDArray[np.int64]:
    """[G + 1]: tokens offsets[g] to offsets[g + 1] of a step have their home on rank g."""
    return np.concatenate([[0], np.cumsum(tokens_G)]).astype(np.int64)


def gather_ids(
    ids_TLK: NDArray[np.uint8] | NDArray[np.uint16], row_B: NDArray[np.int64], layers: slice = slice(None)
) -> NDArray[np.int16]:
    """ids_LBK, int16: the experts of the chosen rows, layer by layer."""
    chosen_TLK = ids_TLK[:, layers]
    ids_LBK = np.empty((chosen_TLK.shape[1], len(row_B), chosen_TLK.shape[2]), np.int16)
    _gather(chosen_TLK, row_B, ids_LBK)
    return ids_LBK


def gather_weights(
    weights_TLK: NDArray[np.floating], row_B: NDArray[np.int64], layers: slice = slice(None)
) -> NDArray[np.float32]:
    """weights_LBK, float32: their gate weights."""
    return np.ascontiguousarray(weights_TLK[row_B, layers].astype(np.float32).transpose(1, 0, 2))


@jit
def _gather(ids_TLK: Any, row_B: Any, ids_LBK: Any) -> None:
    L, B, K = ids_LBK.shape
    for b in range(B):
        row = row_B[b]
        for layer in range(L):
            for k in range(K):
                ids_LBK[layer, b, k] = ids_TLK[row, layer, k]
