"""A small run, made up but consistent, from which the report's tests build pages and tables.

Each layer: attention, router, an all-to-all, experts that take as long as they have tokens, an
all-to-all back. Every GPU waits for the slowest one before both all-to-alls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from moesim.analysis.execution_file import ExecutionResult
from moesim.analysis.record import Record
from moesim.analysis.result_file import Comparison, Outcome, Result
from moesim.analysis.validation_file import ValidationResult
from traces.timeline import PHASES, Timeline, WorkTable

Shown = TypeVar("Shown")

TOKENS_PER_GPU, TOP_K, SLOTS_PER_GPU = 128, 8, 8
COPY_BYTES = 7168
FIXED_S = {"attention": 90e-6, "router": 8e-6, "dispatch": 45e-6, "combine": 70e-6}
EXPERT_S_PER_ASSIGNMENT = 1.2e-7


def example_run(
    layers: int = 6, gpus: int = 8, steps: int = 3, skew: float = 0.9, seed: int = 1
) -> tuple[dict[str, Any], Timeline, WorkTable]:
    """The result, timeline and work of a run with log-normal loads (sigma ``skew``) of its slots."""
    rng = np.random.default_rng(seed)
    true_layers = np.arange(3, 3 + layers)
    popularity_LS = rng.lognormal(0.0, skew, (layers, gpus * SLOTS_PER_GPU))
    popularity_LS /= popularity_LS.sum(1, keepdims=True)
    assignments = gpus * TOKENS_PER_GPU * TOP_K
    tokens_DLS = np.stack(
        [[rng.multinomial(assignments, row) for row in popularity_LS] for _ in range(steps)]
    )
    timeline = _timeline(tokens_DLS, true_layers, gpus)
    result = _result(tokens_DLS, timeline, true_layers, gpus)
    return result, timeline, _work(tokens_DLS, true_layers, gpus)


def _timeline(tokens_DLS: np.ndarray, true_layers: np.ndarray, gpus: int) -> Timeline:
    steps, layers, _ = tokens_DLS.shape
    load_DLG = tokens_DLS.reshape(steps, layers, gpus, SLOTS_PER_GPU).sum(3)
    rows: list[tuple[int, int, int, int, int, float, float, int, int]] = []
    now = 0.0
    for step in range(steps):
        for index, layer in enumerate(true_layers.tolist()):
            load_G = load_DLG[step, index]
            ends_G = np.full(gpus, now)
            for phase in ("attention", "router", "dispatch", "experts", "combine"):
                if phase in ("dispatch", "combine"):
                    together = float(ends_G.max())
                    rows += [
                        (step, layer, rank, 0, PHASES.index("wait"), end, together, 0, 0)
                        for rank, end in enumerate(ends_G.tolist())
                        if end < together
                    ]
                    ends_G[:] = together
                seconds_G = np.full(gpus, FIXED_S.get(phase, 0.0))
                if phase == "experts":
                    seconds_G = 30e-6 + load_G * EXPERT_S_PER_ASSIGNMENT
                moved = phase in ("dispatch", "combine")
                for rank in range(gpus):
                    start, end = float(ends_G[rank]), float(ends_G[rank] + seconds_G[rank])
                    size = int(load_G[rank]) * COPY_BYTES if moved else 0
                    work = int(load_G[rank]) if moved or phase == "experts" else 0
                    rows.append((step, layer, rank, int(moved), PHASES.index(phase), start, end, work, size))
                ends_G = ends_G + seconds_G
            now = float(ends_G.max())
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    step_N, layer_N, rank_N = (column.astype(np.int32) for column in columns[:3])
    stream_N, phase_N = (column.astype(np.int8) for column in columns[3:5])
    zero_N = np.zeros(len(rows), np.int32)
    return Timeline(
        run="example",
        repeat_N=zero_N,
        step_N=step_N,
        micro_batch_N=zero_N,
        layer_N=layer_N,
        rank_N=rank_N,
        stream_N=stream_N,
        phase_N=phase_N,
        start_s_N=columns[5],
        end_s_N=columns[6],
        assignments_N=columns[7].astype(np.int64),
        unique_tokens_N=columns[7].astype(np.int64),
        bytes_N=columns[8].astype(np.int64),
    )


def _work(tokens_DLS: np.ndarray, true_layers: np.ndarray, gpus: int) -> WorkTable:
    step_N, layer_N, slot_N = (axis.astype(np.int32) for axis in np.nonzero(tokens_DLS))
    count_N = tokens_DLS[step_N, layer_N, slot_N].astype(np.int64)
    return WorkTable(
        step_N=step_N,
        layer_N=true_layers[layer_N].astype(np.int32),
        phase_N=np.full(len(step_N), PHASES.index("experts"), np.int8),
        hop_N=np.zeros(len(step_N), np.int8),
        source_N=np.full(len(step_N), -1, np.int32),
        destination_N=slot_N,
        count_N=count_N,
        bytes_N=np.zeros(len(step_N), np.int64),
    )


def _result(tokens_DLS: np.ndarray, timeline: Timeline, true_layers: np.ndarray, gpus: int) -> dict[str, Any]:
    steps, layers, _ = tokens_DLS.shape
    load_DLG = tokens_DLS.reshape(steps, layers, gpus, SLOTS_PER_GPU).sum(3).astype(float)
    step_s = float(timeline.end_s_N.max()) / steps
    experts_DLG = 30e-6 + load_DLG * EXPERT_S_PER_ASSIGNMENT
    balanced_s = layers * float(experts_DLG.mean())
    worst_s = float(experts_DLG.max(2).sum(1).mean())
    phase_time = dict.fromkeys(PHASES, 0.0) | {name: layers * each for name, each in FIXED_S.items()}
    phase_time["experts"] = step_s - sum(phase_time.values())
    network_s = 0.7 * (phase_time["dispatch"] + phase_time["combine"])
    overhead_s = 12e-6 * layers
    mean_ratio = float((load_DLG.max(2) / load_DLG.mean(2)).mean())
    return {
        "format": "moesim.result/1",
        "scenario": _scenario(gpus, steps),
        "metrics": {
            "step_time_s": {"mean": step_s, "p50": step_s, "p95": step_s * 1.02, "p99": step_s * 1.03},
            "tokens_per_s": gpus * TOKENS_PER_GPU / step_s,
            "layer_time_s": {"mean": step_s / layers, "p95": 1.2 * step_s / layers},
            "phase_time_s": phase_time,
            "straggler_ratio": {"assignments": mean_ratio, "experts_time": 1.3, "dispatch_bytes": 1.1},
            "balancedness": float((load_DLG.mean(2) / load_DLG.max(2)).mean()),
            "wished": 1.0,
            "kept": 1.0,
            "rerouted": 0.0,
            "dropped": 0.0,
            "added": 0.0,
            "gate_mass_lost": 0.0,
            "effective_capacity_factor": None,
            "cross_node_bytes": 3.1e9,
            "gpu_memory_bytes": {"max": 61 * 2**30, "mean": 60 * 2**30},
        },
        "attribution": {
            "hardware_s": 0.0,
            "imbalance_s": worst_s - balanced_s,
            "network_s": network_s,
            "overhead_s": overhead_s,
            "ideal_s": step_s - (worst_s - balanced_s) - network_s - overhead_s,
        },
        "bounds": {
            "attention": 0.55 * phase_time["attention"],
            "dispatch": 0.3 * phase_time["dispatch"],
            "experts": 0.6 * balanced_s,
            "combine": 0.3 * phase_time["combine"],
        },
        "stragglers": _stragglers(tokens_DLS, experts_DLG, true_layers, gpus),
        "trace": {
            "name": "synthetic",
            "origin": "generated: log-normal popularity",
            "tokens": 4096,
            "requests": 64,
            "skew": 2.9,
            "generated": True,
        },
        "provenance": {
            "moesim": "0.1.0",
            "numpy": "2.4.6",
            "numba": "0.66.0",
            "seed": 0,
            "trace_sha256": "5f" * 32,
            "profile": "generic",
            "resolution": "event",
            "wall_s": 0.41,
        },
    }


def _scenario(gpus: int, steps: int) -> dict[str, Any]:
    nodes = max(1, gpus // 8)
    return {
        "name": "decode-example",
        "model": {"name": "deepseek-v3", "experts": {"count": gpus * SLOTS_PER_GPU, "top_k": TOP_K}},
        "cluster": {
            "name": f"h800-{nodes}x{gpus // nodes}",
            "gpu": {"name": "H800"},
            "nodes": nodes,
            "gpus_per_node": gpus // nodes,
        },
        "parallelism": {"ep": gpus, "tp": 1},
        "workload": {
            "phase": "decode",
            "tokens_per_gpu": TOKENS_PER_GPU,
            "context": 1024,
            "steps": steps,
        },
        "placement": {"solver": "linear", "slots": gpus * SLOTS_PER_GPU},
        "routing": {"policy": "none"},
        "dispatch": {"mode": "per_node", "dtype": "fp8", "combine_dtype": "bf16"},
        "network": "ports",
        "profile": {"name": "generic", "sources": {"attention": "assumed", "nic": "fitted to <a table>"}},
        "seed": 0,
    }


def _stragglers(
    tokens_DLS: np.ndarray, experts_DLG: np.ndarray, true_layers: np.ndarray, gpus: int
) -> list[dict[str, Any]]:
    layers = tokens_DLS.shape[1]
    slots_LGS = tokens_DLS.mean(0).reshape(layers, gpus, SLOTS_PER_GPU)
    load_LG, last_DL = slots_LGS.sum(2), experts_DLG.argmax(2)
    found = []
    for index, layer in enumerate(true_layers.tolist()):
        rank = int(np.bincount(last_DL[:, index]).argmax())
        hottest = int(slots_LGS[index, rank].argmax())
        seconds_DG = experts_DLG[:, index]
        found.append(
            {
                "layer": layer,
                "rank": rank,
                "share": float((last_DL[:, index] == rank).mean()),
                "load": float(load_LG[index, rank] / load_LG[index].mean()),
                "time": float(seconds_DG[:, rank].mean() / seconds_DG.mean()),
                "lost_s": float((seconds_DG.max(1) - seconds_DG.mean(1)).mean()),
                "cause": "tokens" if index % 5 else "weights",
                "expert": rank * SLOTS_PER_GPU + hottest,
                "expert_share": float(slots_LGS[index, rank, hottest] / load_LG[index, rank]),
                "expert_load": float(slots_LGS[index, rank, hottest] / load_LG[index].mean()),
            }
        )
    return found


def example_comparison(result: dict[str, Any]) -> dict[str, Any]:
    """What `whatif --json` holds: placement times capacity factor, one point slower than the base."""
    base_s = result["metrics"]["step_time_s"]["mean"]
    points = []
    for solver, saved in (("linear", 0.0), ("greedy", 0.6)):
        for factor, dropped in ((1.0, 0.09), (1.5, 0.02), (2.0, 0.0)):
            imbalance_s = result["attribution"]["imbalance_s"] * (1 - saved) * (1 - 4 * dropped)
            step_s = base_s - result["attribution"]["imbalance_s"] + imbalance_s
            step_s += 2e-5 if solver == "linear" and factor == 2.0 else 0.0
            metrics = result["metrics"] | {
                "step_time_s": {"mean": step_s, "p50": step_s, "p95": step_s, "p99": step_s},
                "tokens_per_s": result["metrics"]["tokens_per_s"] * base_s / step_s,
                "kept": 1 - dropped,
                "dropped": dropped,
                "gate_mass_lost": 0.7 * dropped,
                "balancedness": min(1.0, result["metrics"]["balancedness"] * (1 + saved / 2)),
            }
            points.append(
                {
                    "vary": {"placement": {"solver": solver}, "routing.capacity_factor": factor},
                    "metrics": metrics,
                    "attribution": result["attribution"] | {"imbalance_s": imbalance_s},
                    "speedup": base_s / step_s,
                }
            )
    return {"format": "moesim.whatif/1", "baseline": result, "points": points}


def typed(plain: dict[str, Any]) -> Record:
    """What stands in a file, or is one point of a comparison, as its record."""
    if "vary" in plain:
        return Outcome.model_validate(plain)
    if "points" in plain:
        return Comparison.model_validate(plain)
    kinds = (Result, ExecutionResult, ValidationResult)
    return next(kind for kind in kinds if plain["format"] == f"moesim.{kind.THING}/1").model_validate(plain)


def on_plain(show: Callable[..., Shown]) -> Callable[..., Shown]:
    """A function of a report that takes what stands in files, which tests change more easily."""

    def shown(*given: Any) -> Shown:
        return show(*(typed(each) if isinstance(each, dict) else each for each in given))

    return shown
