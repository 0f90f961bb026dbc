"""``python -m benchmarks.policies``: every routing policy and replica choice, some beside whole-array numpy.

In processor time: policies use one thread, and other programs of a shared machine are not theirs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.counting import best_of
from benchmarks.table import table_of
from moesim.routing.copies import Copies
from moesim.routing.policies import POLICIES, policy_from
from moesim.routing.policy import Batch, Candidates, Held
from moesim.routing.replicas import REPLICA_CHOICES

# DeepSeek-V3 on 128 GPUs, 128 tokens each; twice as many candidates as experts of a token; where there are
# replicas, three slots on each GPU.
T, K, C, E, G, P, S = 16_384, 8, 16, 256, 128, 8, 384

PARAMETERS: dict[str, dict[str, object]] = {
    "drop": {"capacity_factor": 1.25},
    "reroute": {"capacity_factor": 1.25},
    "expanded_drop": {"capacity_factor": 1.25},
    "top_k": {"k": 6},
    "top_p": {"p": 0.8},
    "threshold": {"share": 0.1},
    "gap": {"gap": 0.1},
    "skip": {"ratio": 0.5},
    "important": {"share": 0.5, "k": 4},
    "uncertain": {"below": 0.2, "k": 10},
    "mask": {"experts": list(range(32))},
    "mask_least": {"off": 32},
    "limited": {"most": 4},
}
"""What policies need beside their defaults."""

CASES: list[dict[str, object]] = [
    *({"policy": name} | PARAMETERS.get(name, {}) for name in POLICIES),
    *({"policy": "reroute", "to": to} | PARAMETERS["reroute"] for to in ("gpu", "node")),
]
"""All policies, and what is another algorithm in one of them."""

SLOW = ("base", "balanced")
"""Solvers, which are timed twice and no more."""


def batch() -> Batch:
    """Tokens with log-normal experts, balanced homes, linear placement."""
    rng = np.random.default_rng(0)
    score_TE = rng.standard_exponential((T, E), np.float32)
    score_TE = np.exp(0.5 * rng.standard_normal(E)).astype(np.float32) / score_TE
    order_TC = np.argpartition(-score_TE, C, axis=1)[:, :C]
    best_TC = np.take_along_axis(score_TE, order_TC, axis=1)
    rank_TC = np.argsort(-best_TC, axis=1)
    ids_TC = np.take_along_axis(order_TC, rank_TC, axis=1).astype(np.int16)
    scores_TC = np.take_along_axis(best_TC, rank_TC, axis=1)
    scores_TC /= scores_TC.sum(axis=1, keepdims=True)
    weights_TK = scores_TC[:, :K] / scores_TC[:, :K].sum(axis=1, keepdims=True)
    return Batch(
        np.ascontiguousarray(ids_TC[:, :K]),
        weights_TK,
        np.arange(G + 1) * (T // G),
        E,
        Candidates(ids_TC, scores_TC),
        Held(np.repeat(np.eye(G, dtype=bool), E // G, axis=0), np.arange(G, dtype=np.int32) // P),
    )


def numpy_drop(batch: Batch) -> NDArray[np.int16]:
    """``drop`` at γ = 1.25: assignments sorted by source, expert and weight, then ranked in their group."""
    assert batch.weights_TK is not None
    source_N = np.repeat(np.arange(G), np.diff(batch.offsets_G) * K)
    group_N = source_N * E + batch.ids_TK.ravel()
    order_N = np.lexsort((-batch.weights_TK.ravel(), group_N))
    sorted_N = group_N[order_N]
    first_N = np.searchsorted(sorted_N, sorted_N)
    capacity = -(-5 * (T // G) * K // (4 * E))
    ids_N = batch.ids_TK.ravel().copy()
    ids_N[order_N[np.arange(T * K) - first_N >= capacity]] = -1
    return ids_N.reshape(T, K)


def numpy_top_p(batch: Batch) -> NDArray[np.int16]:
    """``top_p`` at 0.8."""
    assert batch.weights_TK is not None
    order_TK = np.argsort(-batch.weights_TK, axis=1, kind="stable")
    sum_TK = np.cumsum(np.take_along_axis(batch.weights_TK, order_TK, axis=1), axis=1, dtype=np.float64)
    keeps_TK = np.ones((T, K), bool)
    keeps_TK[:, 1:] = sum_TK[:, :-1] < 0.8 * sum_TK[:, -1:]
    ids_TK = np.full((T, K), -1, np.int16)
    np.put_along_axis(
        ids_TK, order_TK, np.where(keeps_TK, np.take_along_axis(batch.ids_TK, order_TK, axis=1), -1), axis=1
    )
    return ids_TK


def numpy_mask(batch: Batch) -> NDArray[np.int16]:
    """``mask`` of the first 32 experts, candidates instead, by ranks of free places and what is left."""
    assert batch.candidates is not None
    ids_TC, ids_TK = batch.candidates.ids_TC, batch.ids_TK.copy()
    left_TC = (ids_TC >= 32) & ~(ids_TC[:, :, None] == ids_TK[:, None, :]).any(axis=2)
    free_TK = ids_TK < 32
    next_TC = np.take_along_axis(
        np.where(left_TC, ids_TC, -1), np.argsort(~left_TC, axis=1, kind="stable"), 1
    )
    rank_TK = np.cumsum(free_TK, axis=1) - 1
    return np.where(free_TK, np.take_along_axis(next_TC, np.maximum(rank_TK, 0), axis=1), ids_TK)


def numpy_limited(batch: Batch) -> NDArray[np.int16]:
    """``limited`` to 4 nodes by the two best, refilled: dense scores of all experts, sorted in each node."""
    assert batch.candidates is not None
    ids_TC, scores_TC = batch.candidates.ids_TC, batch.candidates.scores_TC
    N = G // P
    score_TE = np.repeat(scores_TC[:, -1:], E, axis=1)
    np.put_along_axis(score_TE, ids_TC.astype(np.intp), scores_TC, axis=1)
    seen_TN = np.zeros((T, N), bool)
    np.put_along_axis(seen_TN, (ids_TC // (E // N)).astype(np.intp), True, axis=1)
    best_TN = np.sort(score_TE.reshape(T, N, -1), axis=2)[:, :, -2:].sum(axis=2)
    node_TM = np.argsort(np.where(seen_TN, -best_TN, np.inf), axis=1, kind="stable")[:, :4]
    chosen_TN = np.zeros((T, N), bool)
    np.put_along_axis(chosen_TN, node_TM, True, axis=1)
    allowed_TC = np.take_along_axis(chosen_TN, (ids_TC // (E // N)).astype(np.intp), axis=1)
    free_TK = ~allowed_TC[:, :K]
    left_TC = allowed_TC & (np.arange(C) >= K)
    next_TC = np.take_along_axis(
        np.where(left_TC, ids_TC, -1), np.argsort(~left_TC, axis=1, kind="stable"), 1
    )
    rank_TK = np.cumsum(free_TK, axis=1) - 1
    return np.where(free_TK, np.take_along_axis(next_TC, np.maximum(rank_TK, 0), axis=1), batch.ids_TK)


RIVALS: dict[str, Callable[[Batch], NDArray[np.int16]]] = {
    "drop": numpy_drop,
    "top_p": numpy_top_p,
    "mask": numpy_mask,
    "limited": numpy_limited,
}


def copies() -> Copies:
    """Half of the experts in two slots, slots in any order."""
    rng = np.random.default_rng(0)
    slot_expert_S = rng.permutation(np.concatenate([np.arange(E), rng.permutation(E)[: S - E]]))
    slots_ER = np.full((E, 2), -1, np.int32)
    for expert in range(E):
        slots = np.flatnonzero(slot_expert_S == expert)
        slots_ER[expert, : len(slots)] = slots
    count_E = np.bincount(slot_expert_S, minlength=E).astype(np.int32)
    return Copies(count_E[None], slots_ER[None], np.arange(S, dtype=np.int32) // np.int32(S // G), G, P)


def policies() -> list[tuple[str, str]]:
    """Rows of the table: what, and how fast."""
    routed, placed = batch(), copies()
    rows = [(f"policies, T {T}, K {K}, C {C}, E {E}, G {G}", "")]
    for case in CASES:
        policy = policy_from(case)
        found = policy.apply(routed)
        to = f" to {case['to']}" if "to" in case else ""
        seconds = _seconds(policy.name, partial(policy.apply, routed))
        rows.append((f"  {policy.name}{to}", _speed(seconds)))
        if policy.name in RIVALS:
            if not np.array_equal(RIVALS[policy.name](routed), found.ids_TK):
                raise AssertionError(f"numpy's {policy.name} differs")
            rival = best_of(partial(RIVALS[policy.name], routed), 3, time.process_time)
            rows.append(("    the same in numpy", f"{_speed(rival)}, ratio {rival / seconds:.1f}"))
    rows.append((f"replicas, S {S}", ""))
    for name, choose in REPLICA_CHOICES.items():
        choice = partial(choose, routed.ids_TK[None], routed.offsets_G, placed)
        rows.append((f"  {name}", _speed(_seconds(name, choice))))
    return rows


def _seconds(name: str, function: Callable[[], object]) -> float:
    """The fastest call in processor time, after one that compiles."""
    function()
    return best_of(function, 2 if name in SLOW else 25, time.process_time)


def _speed(seconds: float) -> str:
    speed = T * K / 1e6 / seconds
    return f"{speed:.0f} M assignments/s" if speed >= 1 else f"{speed:.2g} M assignments/s"


def main() -> None:
    """Print the table."""
    Console().print(table_of("routing policies", ("what", "best"), [policies()]))


if __name__ == "__main__":
    main()
