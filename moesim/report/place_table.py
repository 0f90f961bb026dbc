"""What ``moesim place`` prints: the placement beside what everyone runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from rich.console import Group, RenderableType

from moesim.report.point_names import steps as whole_steps
from moesim.report.table import Table, numbers, words
from moesim.report.terminal import bold, bullets, plain, spaced
from moesim.spec.question import plural
from moesim.units import format_bytes, format_count, format_number, format_seconds, format_share

Answer = Mapping[str, Any]

_FORMULAS: Final = {
    "sglang": "SGLang",
    "vllm": "vLLM",
    "trtllm_imbalance": "TensorRT-LLM (imbalance)",
    "slots": "ADRS (slots)",
}
_UNITS: Final = {"tokens": " tokens", "time": "", "copies": " copies", "mixed": " tokens"}
_COSTS: Final = {
    "tokens": "tokens of the fullest GPU of each layer",
    "time": "seconds of the slowest GPU of each layer, with the tokens of one step of the scenario",
    "copies": "copies of tokens sent to other nodes",
    "mixed": "tokens of the fullest GPU of each layer, and copies to other nodes at --copy-cost",
}
"""What each objective makes small; it is added up over layers."""


def place_tables(answer: Answer, *, all_metrics: bool = False) -> list[RenderableType]:
    """The answer in a sentence, the candidates, and what was asked beyond them."""
    return spaced(
        [
            bold(_headline(answer)),
            _candidates(answer),
            _metrics(answer) if all_metrics else None,
            None if answer["simulated"] is None else _simulated(answer["simulated"]),
            None if answer["migration"] is None else _migration(answer["migration"]),
            bullets("Mind", answer["notes"]),
        ]
    )


def _headline(answer: Answer) -> str:
    where = f"{answer['gpus']} GPUs" + (f" in {answer['nodes']} nodes" if answer["nodes"] > 1 else "")
    proof = "no bound is proven"
    if answer["gap"] is not None:
        proof = f"at most {_above(answer['gap'])} above what any placement costs"
    stopped = ", stopped at its limit" if answer["limit_reached"] else ""
    stopped = ", interrupted" if answer["interrupted"] else stopped
    return (
        f"{answer['slots']} slots on {where}, {answer['solver']}, fitted on {answer['fitted_on']}: "
        f"balancedness {answer['balancedness']:.3f}, {proof} ({answer['wall_s']:.2f} s{stopped})"
    )


def _rows(answer: Answer) -> dict[str, Answer]:
    """The candidates by name, the result last."""
    return {**answer["baselines"], answer["solver"]: answer}


def _called(name: str, answer: Answer) -> str:
    """A candidate's name; that of eplb says which of its two ways it went."""
    variant = answer["eplb"]["variant"]
    return f"{name} ({variant})" if name == "eplb" and answer["nodes"] > 1 else name


def _candidates(answer: Answer) -> Group:
    """Baselines, then the result in bold; a column that says nothing here is left out."""
    held_out, tokens = answer["held_out"], answer["objective"] == "tokens"
    crosses = answer["nodes"] > 1 and answer["cross_node_fraction"] is not None
    rows = []
    for name, row in _rows(answer).items():
        cells = {
            "placement": _called(name, answer),
            "balance": format_number(row["balancedness"], 3),
            "fullest GPUs" if tokens else "cost": _cost(row["max_load"] if tokens else row["cost"], answer),
            "above bound": _above(row["gap"]),
        }
        if held_out is not None:
            unseen = held_out if row is answer else held_out["baselines"][name]
            cells["kept back"] = format_number(unseen["balancedness"], 3)
            if not tokens:
                cells["cost there"] = _cost(unseen["cost"], answer)
        if crosses:
            cells["cross-node"] = format_share(row["cross_node_fraction"], 1)
        if answer["migration"] is not None:
            cells["moved"] = str(row["moved_experts"])
        rows.append(cells)
    heads = list(rows[-1])
    table = Table(
        [*words(heads[0]), *numbers(*heads[1:], whole=False)],
        [list(cells.values()) for cells in rows],
        marks={len(rows) - 1: "best"},
    )
    return Group(table, *(plain(line, "dim") for line in _legend(answer, crosses)))


def _legend(answer: Answer, crosses: bool) -> list[str]:
    windows = ""
    if answer["windows"] > 1:
        windows = f"; {'the worst' if answer['worst_window'] else 'the mean'} of {answer['windows']} windows"
    objective = answer["objective"]
    lines = [
        "balance: mean / max of tokens per GPU, by SGLang's formula",
        f"{'fullest GPUs' if objective == 'tokens' else 'cost'}: {_COSTS[objective]}, added up{windows}",
        f"bound: no placement costs less than {_cost(answer['lower_bound'], answer)}{_UNITS[objective]}",
    ]
    if answer["held_out"] is not None:
        there = "" if objective == "tokens" else "; cost there: the same cost"
        lines.append(f"kept back: the balance on {answer['held_out']['what']}, which no solver saw{there}")
    if answer["nodes"] > 1:
        lines.append(_which_eplb(answer))
    if crosses:
        lines.append("cross-node: copies sent to other nodes, one to each, for each assignment")
    return lines


def _which_eplb(answer: Answer) -> str:
    groups, nodes = answer["eplb"]["groups"], answer["nodes"]
    if answer["eplb"]["variant"] == "hierarchical":
        return (
            f"eplb: hierarchical, as servers run it: {groups} expert groups stay on one of {nodes} nodes each"
        )
    if groups is None:
        return "eplb: global, since nothing tells the model's expert groups (--model)"
    return f"eplb: global, as servers run it where expert groups ({groups}) do not divide over {nodes} nodes"


def _metrics(answer: Answer) -> Table:
    """Balancedness by the formulas of several systems, also on what was kept back."""
    judged = {"": list(_rows(answer).values())}
    if answer["held_out"] is not None:
        judged[", kept back"] = [*answer["held_out"]["baselines"].values(), answer["held_out"]]
    rows = [
        [f"{system}{where}", *(format_number(row["metrics"][key], 3) for row in each)]
        for where, each in judged.items()
        for key, system in _FORMULAS.items()
    ]
    return Table([*words("balancedness as in"), *numbers(*_rows(answer), whole=False)], rows)


def _simulated(simulated: Answer) -> Table:
    runs = {name: row for name, row in simulated.items() if isinstance(row, Mapping)}
    rows = [
        [
            name,
            format_seconds(row["step_time_s"]),
            format_number(row["straggler_ratio"]),
            format_number(row["balancedness"], 3),
            format_bytes(row["cross_node_bytes"]),
        ]
        for name, row in sorted(runs.items(), key=lambda run: run[0] == "result")
    ]
    heads = ("step", "straggler ratio", "balancedness", "cross-node bytes a step")
    return Table(
        [*words("simulated"), *numbers(*heads, whole=False)],
        rows,
        caption=f"{simulated['scenario']}: {plural(simulated['steps'], 'step')} of {simulated['replayed']}",
        marks={len(rows) - 1: "best"},
    )


def _migration(migration: Answer) -> str:
    experts = plural(migration["moves"], "expert")
    text = f"Migration: {experts} to move, {migration['cross_node_moves']} to another node"
    if migration["bytes"] is not None:
        text += f", {format_bytes(migration['bytes'])}"
    if migration["seconds"] is not None:
        text += f", {format_seconds(migration['seconds'])} with nothing else on the links"
        steps = migration["payback_steps"]
        text += (
            "; it never pays back: steps are no shorter"
            if steps is None
            else f"; paid back after {whole_steps(steps)}"
        )
    return text


def _cost(cost: float, answer: Answer) -> str:
    if answer["objective"] == "time":
        return format_seconds(cost)
    return format_count(cost) if cost >= 100 else f"{cost:.3g}"


def _above(gap: float | None) -> str:
    """A distance from the bound; where it is small, every hundredth counts."""
    return format_share(gap, None if gap is None or abs(gap) >= 0.0995 else 2)
