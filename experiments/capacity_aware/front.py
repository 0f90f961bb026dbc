"""Which policies are worth having: none is both faster and better than they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from experiments.figure import save_figure
from moesim.analysis.result import simulate_scenario
from moesim.spec.override import Override
from moesim.spec.question import brief
from moesim.spec.scenario import load_scenario

Spec = dict[str, Any] | list[dict[str, Any]]
"""A scenario's ``routing``."""

_GAMMAS = (1.5, 1.25, 1.0, 0.75)

FAMILIES: Mapping[str, tuple[Spec, ...]] = MappingProxyType(
    {
        "no policy": ({"policy": "none"},),
        "token drop": tuple({"policy": "drop", "capacity_factor": gamma} for gamma in _GAMMAS),
        "drop by device": tuple(
            {"policy": "drop", "unit": "device", "capacity_factor": gamma} for gamma in _GAMMAS[1:]
        ),
        "reroute": tuple({"policy": "reroute", "capacity_factor": gamma} for gamma in _GAMMAS),
        "expanded drop": tuple({"policy": "expanded_drop", "capacity_factor": gamma} for gamma in _GAMMAS),
        "smaller k": tuple({"policy": "top_k", "k": k, "renormalise": True} for k in (3, 2, 1)),
        "top-p": tuple({"policy": "top_p", "p": p, "renormalise": True} for p in (0.9, 0.8, 0.7)),
        "skip": tuple({"policy": "skip", "ratio": ratio, "renormalise": True} for ratio in (0.2, 0.4, 0.6)),
        "top-p 0.9, then drop": tuple(
            [
                {"policy": "top_p", "p": 0.9, "renormalise": True},
                {"policy": "drop", "capacity_factor": gamma},
            ]
            for gamma in (1.0, 0.75)
        ),
    }
)
"""Policies by kind, each from mild to strong."""


@dataclass(frozen=True)
class Choice:
    """A policy with what it wins and what it costs.

    Attributes:
        family: a key of ``FAMILIES``.
        spec: the policies.
        speedup: how many times as many tokens a second, as simulated.
        perplexity: of a byte, measured.
        dropped, rerouted, gate_mass_lost: fractions of what the router asked for, where quality was measured.
    """

    family: str
    spec: Spec
    speedup: float
    perplexity: float
    dropped: float
    rerouted: float
    gate_mass_lost: float


def front(choices: Sequence[Choice]) -> list[Choice]:
    """Those that no other beats in one respect and equals in the other, the best ones first.

    >>> made = [Choice("", {}, *each, 0, 0, 0) for each in ((1.0, 3.0), (1.5, 3.2), (1.2, 3.4), (1.5, 3.3))]
    >>> [each.speedup for each in front(made)], [each.perplexity for each in front(made)]
    ([1.0, 1.5], [3.0, 3.2])
    """
    kept: list[Choice] = []
    for choice in sorted(choices, key=lambda each: (-each.speedup, each.perplexity)):
        if not kept or choice.perplexity < kept[-1].perplexity:
            kept.append(choice)
    return kept[::-1]


def tokens_per_s(spec: Spec) -> float:
    """Simulated, of the scenario beside this file with these policies."""
    path = Path(__file__).with_name("sample.yaml")
    _, found = simulate_scenario(load_scenario(str(path), [Override(("routing",), spec)]))
    return found.metrics.tokens_per_s


def front_table(choices: Sequence[Choice]) -> Table:
    """All choices in their order; the first is what the others are compared with, those in front are bold."""
    best = front(choices)
    table = Table(title="a step of 8 × H20, and held-out quality of the small model", title_justify="left")
    for column in ("kind", "policy", "faster", "perplexity", "worse", "dropped", "rerouted", "mass lost"):
        table.add_column(column, justify="left" if column in ("kind", "policy") else "right", no_wrap=True)
    for each in choices:
        table.add_row(
            each.family,
            label(each.spec),
            f"{each.speedup:.2f}×",
            f"{each.perplexity:.3f}",
            f"{each.perplexity / choices[0].perplexity - 1:+.1%}",
            *(f"{share:.1%}" for share in (each.dropped, each.rerouted, each.gate_mass_lost)),
            style="bold" if each in best else None,
        )
    table.caption = "bold: nothing here is both faster and better"
    return table


def label(spec: Spec) -> str:
    """What sets a policy apart from others of its kind; of several policies, the last one."""
    last = spec[-1] if isinstance(spec, list) else spec
    values = {key: value for key, value in last.items() if key not in ("policy", "unit", "renormalise")}
    return ", ".join(f"{key} {brief(value)}" for key, value in values.items())


def draw_front(choices: Sequence[Choice], path: Path) -> None:
    """Speedup against perplexity lost, in per cent of the first: a line for each kind, the front behind them.

    Raises:
        OutputError: the file cannot be written.
    """
    figure = Figure(figsize=(7.0, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(*_points(front(choices), choices[0]), label="nothing faster is better", **_BEHIND)
    for family in FAMILIES:
        mine = [each for each in choices if each.family == family]
        axes.plot(*_points(mine, choices[0]), "o-", markersize=4.0, linewidth=1.0, label=family)
    # What mild and strong policies cost lies two orders of magnitude apart, and no policy costs nothing.
    axes.set_yscale("symlog", linthresh=0.1)
    axes.set_yticks(_WORSE, [f"{worse:g} %" for worse in _WORSE])
    axes.set_xlabel("times as fast a step, simulated on 8 × H20")
    axes.set_ylabel("perplexity worse by, small model, held out")
    axes.legend(frameon=False, fontsize="small")
    save_figure(figure, path)


_BEHIND: Mapping[str, Any] = MappingProxyType({"color": "0.85", "linewidth": 8.0, "solid_capstyle": "round"})
_WORSE = (0, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20)


def _points(choices: Sequence[Choice], first: Choice) -> tuple[list[float], list[float]]:
    return [each.speedup for each in choices], [
        100.0 * (each.perplexity / first.perplexity - 1.0) for each in choices
    ]
