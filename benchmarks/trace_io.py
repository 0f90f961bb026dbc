"""Writing and describing a trace, against numpy's own compressed files."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.counting import best_of
from traces.interop.describe import describe
from traces.meta import TraceMeta
from traces.routing import RoutingTrace
from traces.trace_file import TraceFile
from traces.trace_writer import write_trace

T, L, K, E, REQUEST = 210_000, 24, 4, 32, 300


def _validate_and_write(trace: RoutingTrace, path: Path) -> None:
    trace.validate()
    write_trace(trace, path)


def trace_io() -> list[tuple[str, str]]:
    """Rows of the table: what, and how fast."""
    rng = np.random.default_rng(0)
    # Distinct experts in each row, as a router chooses them; one layer's choices serve all layers, shifted.
    one_TK = np.argsort(rng.random((T, E), np.float32), axis=1)[:, :K]
    ids_TLK = np.stack([(one_TK + 5 * layer) % E for layer in range(L)], axis=1).astype(np.uint8)
    weights_TLK = rng.random((T, L, K), np.float32).astype(np.float16)
    request_T = (np.arange(T) // REQUEST).astype(np.int32)
    position_T = (np.arange(T) % REQUEST).astype(np.int32)
    meta = TraceMeta("benchmark", E, K, tuple(range(L)), "random", "")
    size = ids_TLK.size / 1e6
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path, rival = Path(folder) / "trace.parquet", Path(folder) / "trace.npz"
        for name, weights in (("ids", None), ("ids and weights", weights_TLK)):
            trace = RoutingTrace(
                meta, ids_TLK, weights, request_T, position_T, None, None, None, (), None, None
            )
            seconds = best_of(partial(_validate_and_write, trace, path), 3)
            rows.append((f"validating and writing a trace, {name}", f"{size / seconds:.0f} M assignments/s"))
        compressed = best_of(lambda: np.savez_compressed(rival, ids=ids_TLK, weights=weights_TLK), 1)
        rows.append(("  numpy.savez_compressed of the same", f"{size / compressed:.0f} M assignments/s"))
        rows.append(("  ratio", f"{compressed / seconds:.1f}"))
        seconds = best_of(lambda: describe(path, ep=8), 3)
        rows.append((f"trace info, {size:.0f} M assignments", f"{size / seconds:.0f} M assignments/s"))

        def window() -> None:
            with TraceFile(path) as file:
                file.read(slice(100_000, 101_000))

        rows.append(("a window of 1,000 tokens of it", f"{best_of(window, 3) * 1e3:.0f} ms"))
    return rows
