"""How much faster layers are with a capacity on 8 H20: a parameter for each model, five cells predicted."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq

from experiments.capacity_aware.layer import Assumed, expert_peak, speedup
from experiments.comparison import Comparison, Parameter, Row, with_ends

SOURCE = "Capacity-Aware Inference, arXiv 2503.05066: Megatron-LM, 8 × H20, 8-way DP and EP, sequence 512"

GAMMAS = (2.0, 1.5, 1.0)
"""Capacity factors, in the order of the table."""

METHODS: Mapping[str, str] = MappingProxyType({"token drop": "drop", "expanded drop": "expanded_drop"})
"""Published names, and those of the policies; the authors' expanded drop lets a token have more than K."""

FITTED = ("token drop", 1.5)
"""The column that the skew is fitted to."""


class Setting(NamedTuple):
    """A model of the table.

    Attributes:
        name: as published.
        model: the preset.
        times: how many times as fast, by method, one for each of ``GAMMAS``.
    """

    name: str
    model: str
    times: Mapping[str, Sequence[float]]

    def measured(self, method: str, gamma: float) -> float:
        return self.times[method][GAMMAS.index(gamma)]

    def predicted(self, method: str, gamma: float, skew: float, assumed: Assumed) -> float:
        policy = {"policy": METHODS[method], "capacity_factor": gamma}
        return speedup(self.model, skew, policy, assumed)


SETTINGS = (
    Setting(
        "OLMoE-Instruct",
        "olmoe-1b-7b",
        {"token drop": (1.21, 1.30, 1.46), "expanded drop": (1.16, 1.25, 1.36)},
    ),
    Setting(
        "DeepSeek-V2-Lite",
        "deepseek-v2-lite",
        {"token drop": (1.12, 1.23, 1.37), "expanded drop": (1.09, 1.15, 1.31)},
    ),
    Setting(
        "Mixtral-8x7B-Instruct",
        "mixtral-8x7b",
        {"token drop": (1.44, 1.89, 2.55), "expanded drop": (1.43, 1.86, 2.51)},
    ),
)

# Speedups grow with the skew from none at all to far beyond any published one, and by half of it here.
_SKEWS, _SKEW_STEP = (0.05, 5.0), 2e-3

_OTHERWISE: Mapping[str, Assumed] = MappingProxyType(
    {
        "8K sequences": Assumed(tokens_per_gpu=4096),
        "the MoE part alone": Assumed(part="moe"),
        "affinity kept by half": Assumed(kept=0.5),
        "20 us a launch": Assumed(launch_us=20.0),
        "other experts hot": Assumed(seed=1),
    }
)
"""What was not published, assumed otherwise; the skew is fitted anew each time."""


def capacity_aware() -> Comparison:
    """The skew is fitted to token drop at 1.5; everything else is predicted."""
    assumed = Assumed()
    rows, checks, parameters = list[Row](), list[Row](), list[Parameter]()
    for setting in SETTINGS:
        skew = fitted_skew(setting, (FITTED[1],), assumed)
        rows += list(_rows(setting, skew, assumed))
        peak = expert_peak(setting.model, skew, assumed)
        bound = f"0 is uniform; the hottest expert of any layer has {peak:.1f} times the mean load"
        parameters.append(Parameter(f"skew of {setting.name}", f"{skew:.3f}", bound))
    checks.append(order(rows))
    for how, other in _OTHERWISE.items():
        for setting in SETTINGS:
            skew = fitted_skew(setting, (FITTED[1],), other)
            checks += [_row(setting, method, GAMMAS[-1], skew, other, f", {how}") for method in METHODS]
    return Comparison(
        "capacity_aware",
        SOURCE,
        rows=tuple(with_ends(rows)),
        checks=tuple(checks),
        parameters=tuple(parameters),
    )


def fitted_skew(setting: Setting, gammas: Sequence[float], assumed: Assumed) -> float:
    """The skew at which the errors of these cells of token drop add up to nothing."""
    method, _ = FITTED

    def error(skew: float) -> float:
        return float(
            np.mean(
                [
                    setting.predicted(method, gamma, skew, assumed) / setting.measured(method, gamma) - 1.0
                    for gamma in gammas
                ]
            )
        )

    return float(brentq(error, *_SKEWS, xtol=_SKEW_STEP))


def order(rows: Sequence[Row]) -> Row:
    """How many pairs of unequal cells there are, and how many stand the same way round when predicted."""
    pairs = [(low, high) for low, high in itertools.permutations(rows, 2) if low.measured < high.measured]
    kept = sum(low.predicted < high.predicted for low, high in pairs)
    return Row("cells in their order", "pairs", len(pairs), kept)


def _rows(setting: Setting, skew: float, assumed: Assumed) -> Iterator[Row]:
    """All cells of a model; that of the fit also predicted from the rest of its row."""
    others = [gamma for gamma in GAMMAS if gamma != FITTED[1]]
    for method, gamma in itertools.product(METHODS, GAMMAS):
        if (method, gamma) != FITTED:
            yield _row(setting, method, gamma, skew, assumed)
            continue
        unseen = fitted_skew(setting, others, assumed)
        left_out = setting.predicted(method, gamma, unseen, assumed)
        yield _row(setting, method, gamma, skew, assumed, left_out=left_out)


def _row(
    setting: Setting,
    method: str,
    gamma: float,
    skew: float,
    assumed: Assumed,
    how: str = "",
    left_out: float | None = None,
) -> Row:
    case = f"{setting.name}, {method}, γ {gamma:g}{how}"
    predicted = setting.predicted(method, gamma, skew, assumed)
    return Row(case, "×", setting.measured(method, gamma), predicted, left_out)
