"""What ``moesim place`` prints: the placement beside what everyone runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from moesim.report.findings import percent
from moesim.report.findings import steps as whole_steps
from moesim.spec.question import plural
from moesim.units import format_bytes, format_seconds

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
    parts: list[RenderableType] = [Text(_headline(answer), style="bold"), _candidates(answer)]
    if all_metrics:
        parts.append(_metrics(answer))
    if answer["simulated"] is not None:
        parts.append(_simulated(answer["simulated"]))
    if answer["migration"] is not None:
        parts.append(Text(_migration(answer["migration"])))
    if answer["notes"]:
        bullets = (Padding(Text(f"- {note}"), (0, 1)) for note in answer["notes"])
        parts.append(Group(Text("Mind", style="bold"), *bullets))
    return [Padding(part, (0, 0, 1, 0)) for part in parts]


def _headline(answer: Answer) -> str:
    where = f"{answer['gpus']} GPUs" + (f" in {answer['nodes']} nodes" if answer["nodes"] > 1 else "")
    proof = "no bound is proven"
    if answer["gap"] is not None:
        proof = f"at most {_percent(answer['gap'])} above what any placement costs"
    stopped = ", stopped at its limit" if answer["limit_reached"] else ""
    stopped = ", interrupted" if answer["interrupted"] else stopped
    return (
        f"{answer['slots']} slots on {where}, {answer['solver']}, fitted on {answer['fitted_on']}: "
        f"balancedness {answer['balancedness']:.3f}, {proof} ({answer['wall_s']:.2f} s{stopped})"
    )


def _rows(answer: Answer) -> dict[str, Answer]:
    return {**answer["baselines"], answer["solver"]: answer}


def _candidates(answer: Answer) -> Group:
    """Baselines, then the result in bold; a column that says nothing here is left out."""
    held_out = answer["held_out"]
    table = _table()
    table.add_column("placement")
    tokens = answer["objective"] == "tokens"
    heads = ["balance", "fullest GPUs" if tokens else "cost", "above bound"]
    if held_out is not None:
        heads += ["kept back"] if tokens else ["kept back", "cost there"]
    crosses = answer["nodes"] > 1 and answer["cross_node_fraction"] is not None
    heads += ["cross-node"] * crosses + ["moved"] * (answer["migration"] is not None)
    for head in heads:
        table.add_column(head, justify="right")
    for name, row in _rows(answer).items():
        cost = _cost(row["max_load"] if tokens else row["cost"], answer)
        cells = [f"{row['balancedness']:.3f}", cost, _percent(row["gap"])]
        if held_out is not None:
            unseen = held_out if row is answer else held_out["baselines"][name]
            cells.append(f"{unseen['balancedness']:.3f}")
            if not tokens:
                cells.append(_cost(unseen["cost"], answer))
        if crosses:
            cells.append(f"{100 * row['cross_node_fraction']:.1f} %")
        if answer["migration"] is not None:
            cells.append(str(row["moved_experts"]))
        table.add_row(name, *cells, style="bold" if row is answer else None)
    return Group(table, Text(_legend(answer, crosses), style="dim"))


def _legend(answer: Answer, crosses: bool) -> str:
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
    if crosses:
        lines.append("cross-node: copies sent to other nodes, one to each, for each assignment")
    return "\n".join(lines)


def _metrics(answer: Answer) -> Table:
    held_out = answer["held_out"]
    table = _table()
    table.add_column("balancedness as in")
    for name in _rows(answer):
        table.add_column(name, justify="right")
    for key, system in _FORMULAS.items():
        table.add_row(system, *(f"{row['metrics'][key]:.3f}" for row in _rows(answer).values()))
    if held_out is not None:
        unseen = [*held_out["baselines"].values(), held_out]
        for key, system in _FORMULAS.items():
            table.add_row(f"{system}, kept back", *(f"{row['metrics'][key]:.3f}" for row in unseen))
    return table


def _simulated(simulated: Answer) -> Table:
    runs = {name: row for name, row in simulated.items() if isinstance(row, Mapping)}
    table = _table(
        caption=f"{simulated['scenario']}: {plural(simulated['steps'], 'step')} of {simulated['replayed']}"
    )
    table.caption_justify = "left"
    table.add_column("simulated")
    for head in ("step", "straggler ratio", "balancedness", "cross-node bytes a step"):
        table.add_column(head, justify="right")
    for name, row in sorted(runs.items(), key=lambda run: run[0] == "result"):
        table.add_row(
            name,
            format_seconds(row["step_time_s"]),
            f"{row['straggler_ratio']:.2f}",
            f"{row['balancedness']:.3f}",
            format_bytes(row["cross_node_bytes"]),
            style="bold" if name == "result" else None,
        )
    return table


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
    return f"{cost:,.0f}" if cost >= 100 else f"{cost:.3g}"


def _percent(fraction: float | None) -> str:
    """A distance from the bound; where it is small, every hundredth counts."""
    if fraction is None:
        return "–"
    return percent(fraction) if abs(fraction) >= 0.0995 else f"{100 * fraction:.2f} %"


def _table(**options: Any) -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", **options)
