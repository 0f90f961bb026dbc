"""The rows that ``make bench BASE=COMMIT`` compares, timed in a process whose PYTHONPATH is one tree.

A row's name comes in on a line, the processor seconds of one call go out on another, ``-`` where the tree
has nothing of the kind. Each tree runs its own copy of this file; a tree from before it is timed by the
other's. So rows know no module by its path: they take what the tree's benchmark modules import, and the
command that its pyproject.toml names.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

LEAST_S = 0.3
"""Processor time of a measurement: short calls are repeated until they have taken as much together."""

Call = Callable[[], object]


def _names(module: str) -> Any:
    """A benchmark module of the tree, for what it defines and what it imports."""
    return import_module(f"benchmarks.{module}")


def counting(folder: Path) -> Call:
    """Counting the assignments of 8 layers to 128 GPUs."""
    batch, count_work = _names("policies").batch(), _names("counting").count_work
    gpu_S = (np.arange(batch.experts) // 2).astype(np.int32)
    slot_LTK = np.repeat(batch.ids_TK[None], 8, axis=0)
    return partial(count_work, slot_LTK, batch.offsets_G, gpu_S, 8, "per_node")


def _write(names: Any, path: Path) -> Call:
    """Validating and writing 12.6 M assignments with gate weights."""
    batch, layers = _names("policies").batch(), 96
    ids_TLK = np.stack([(batch.ids_TK + 5 * layer) % 256 for layer in range(layers)], axis=1)
    weights_TLK = np.repeat(batch.weights_TK[:, None], layers, axis=1).astype(np.float16)
    request_T, position_T = np.divmod(np.arange(len(ids_TLK), dtype=np.int32), np.int32(256))
    meta = names.TraceMeta("benchmark", 256, 8, tuple(range(layers)), "random", "")
    trace = names.RoutingTrace(
        meta, ids_TLK.astype(np.uint8), weights_TLK, request_T, position_T, None, None, None, (), None, None
    )

    def write() -> None:
        trace.validate()
        names.write_trace(trace, path)

    return write


def trace_writing(folder: Path) -> Call:
    """Validating and writing a trace."""
    return _write(_names("trace_io"), folder / "trace.parquet")


def trace_info(folder: Path) -> Call:
    """What ``trace info`` computes of the same trace."""
    names = _names("trace_io")
    _write(names, folder / "trace.parquet")()
    return partial(names.describe, folder / "trace.parquet", ep=8)


def step(nodes: int, folder: Path) -> Call:
    """One decode step of DeepSeek-V3 on 8 GPUs a node, 128 tokens on each."""
    names = _names("step")
    overrides = [
        names.Override(("cluster",), f"h800-{nodes}x8"),
        names.Override(("parallelism", "ep"), 8 * nodes),
        names.Override(("workload", "tokens_per_gpu"), 128),
        names.Override(("workload", "steps"), 1),
    ]
    return partial(names.run, names.deploy(names.load_scenario("demo", overrides)))


def command(arguments: list[str], folder: Path) -> Call:
    """The console command of the tree, in a process of its own."""
    root = Path(_names("counting").__file__).parents[1]
    with (root / "pyproject.toml").open("rb") as file:
        module, function = tomllib.load(file)["project"]["scripts"]["moesim"].split(":")
    program = f"from {module} import {function}; {function}()"
    whole = [sys.executable, "-P", "-c", program, *arguments]
    return partial(subprocess.run, whole, cwd=folder, stdout=subprocess.DEVNULL, check=True)


def policies(solved: bool, folder: Path) -> Call:
    """Every routing policy once, the solvers apart, which would hide all others."""
    names = _names("policies")
    batch = names.batch()
    found = [names.policy_from(case) for case in names.CASES]
    chosen = [policy for policy in found if (policy.name in names.SLOW) == solved]
    return lambda: [policy.apply(batch) for policy in chosen]


def replicas(folder: Path) -> Call:
    """Every replica choice once."""
    names = _names("policies")
    batch, copies = names.batch(), names.copies()
    choices = list(names.REPLICA_CHOICES.values())
    return lambda: [choose(batch.ids_TK[None], batch.offsets_G, copies) for choose in choices]


ROWS: dict[str, Callable[[Path], Call]] = {
    "counting": counting,
    "writing a trace": trace_writing,
    "trace info": trace_info,
    "one step, EP32": partial(step, 4),
    "one step, EP128": partial(step, 16),
    "moesim --help": partial(command, ["--help"]),
    "moesim demo, second run": partial(command, ["demo"]),
    "policies": partial(policies, False),
    "policies that solve": partial(policies, True),
    "replica choices": replicas,
}
"""From a folder for files to what is timed; all inputs exist before, and a first call has compiled."""


def answers(lines: Iterable[str]) -> Iterator[str]:
    """To each line with a row's name: processor seconds of a call, or ``-``."""
    held, call = "", None
    with tempfile.TemporaryDirectory() as folder:
        for name in map(str.strip, lines):
            if name != held:
                held, call = name, None  # inputs of the row before are let go first
                # A tree may be older than the row, its module, a name in it, or what a name takes.
                with suppress(KeyError, ImportError, AttributeError, TypeError):
                    made = ROWS[name](Path(folder))
                    made()
                    call = made
            yield "-" if call is None else str(seconds(call))


def seconds(call: Call) -> float:
    """Mean processor seconds of a call, child processes included."""
    calls, began, used = 0, _used(), 0.0
    while used < LEAST_S:
        call()
        calls, used = calls + 1, _used() - began
    return used / calls


def _used() -> float:
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


if __name__ == "__main__":
    for answer in answers(sys.stdin):
        print(answer, flush=True)
