"""What was asked: a resolved scenario in one sentence, and short names for varied values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any


def question(scenario: Mapping[str, Any]) -> str:
    """The scenario as a question in one sentence."""
    model, cluster, work = scenario["model"], scenario["cluster"], scenario["workload"]
    parallel = f"EP{scenario['parallelism']['ep']}"
    if scenario["parallelism"].get("tp", 1) != 1:
        parallel += f", TP{scenario['parallelism']['tp']}"
    # A group may be smaller than the cluster.
    gpus = scenario["parallelism"]["ep"]
    nodes = -(-gpus // cluster["gpus_per_node"])
    machines = f"{gpus} × {cluster['gpu']['name']} in {plural(nodes, 'node')}"
    load = f"{amount(work['tokens_per_gpu'])} tokens a GPU"
    if work.get("context") is not None:
        load += f", a context of {amount(work['context'])}"
    asked = [placement(scenario["placement"]), policy(scenario["routing"])]
    rebalance = scenario.get("rebalance") or {}
    if rebalance.get("every_steps"):
        asked[0] += f" (anew every {plural(rebalance['every_steps'], 'step')} by {rebalance['solver']})"
    asked.append(f"{scenario['dispatch']['mode'].replace('_', ' ')} dispatch")
    return (
        f"What does a {work['phase']} step of {model['name'] or 'an unnamed model'} cost on {machines} "
        f"({parallel}) with {load}, {', '.join(asked[:-1])} and {asked[-1]}?"
    )


def placement(value: Any) -> str:
    """A placement in words.

    >>> placement({"solver": "greedy", "slots": 288}), placement("linear")
    ('greedy placement on 288 slots', 'linear placement')
    >>> placement({"solver": None, "file": "/tmp/p.json"})
    'the placement of p.json'
    """
    if not isinstance(value, Mapping):
        return f"{brief(value)} placement"
    if value.get("solver") is None:
        return f"the placement of {PurePath(str(value.get('file'))).name}"
    return f"{value['solver']} placement" + (f" on {value['slots']} slots" if value.get("slots") else "")


def policy(routing: Any) -> str:
    """A routing policy, or a list of its stages, in words."""
    stages = routing if isinstance(routing, list) else [routing]
    words = []
    for stage in stages:
        if stage["policy"] == "none":
            words.append("no routing policy")
            continue
        options = ", ".join(f"{key} {brief(value)}" for key, value in stage.items() if key != "policy")
        words.append(f"routing policy {stage['policy']}" + (f" ({options})" if options else ""))
    return ", then ".join(words)


def amount(value: Any) -> str:
    """A number, a list with one number per rank, or a distribution.

    >>> amount(128), amount([64, 256, 128]), amount({"uniform": [1, 9]})
    ('128', '64 to 256', '{uniform: [1, 9]}')
    """
    if isinstance(value, list) and value and all(isinstance(item, int | float) for item in value):
        low, high = min(value), max(value)
        return f"{low:g}" if low == high else f"{low:g} to {high:g}"
    return f"{value:g}" if isinstance(value, int | float) else brief(value)


def brief(value: Any) -> str:
    """A value as one would write it on the command line; a solver or policy by its name, then its options.

    >>> brief({"solver": "greedy"}), brief({"solver": "greedy", "slots": 288}), brief([1, None, True])
    ('greedy', 'greedy slots=288', '[1, null, true]')
    """
    if isinstance(value, Mapping):
        for kind in ("solver", "policy"):
            if value.get(kind) is not None:
                options = (f"{key}={brief(item)}" for key, item in value.items() if key != kind)
                return " ".join((brief(value[kind]), *options))
        return "{" + ", ".join(f"{key}: {brief(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(brief(item) for item in value) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def plural(count: int, noun: str) -> str:
    """
    >>> plural(1, "node"), plural(4096, "node")
    ('1 node', '4,096 nodes')
    """
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
