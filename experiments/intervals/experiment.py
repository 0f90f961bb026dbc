"""How often a measurement lies in a 90 % interval that was made without it, over all experiments that fit."""

from __future__ import annotations

from experiments.capacity_aware.experiment import capacity_aware
from experiments.comparison import Comparison, Row
from experiments.fewer_experts.experiment import fewer_experts
from experiments.kernels.experiment import kernels
from experiments.network.experiment import network

PROMISED = 0.9


def intervals() -> Comparison:
    """A row for each experiment, and the share of all their rows together."""
    rows, all_inside = [], list[bool]()
    for experiment in (network, kernels, fewer_experts, capacity_aware):
        inside = [row.inside for row in experiment().rows if row.ends is not None]
        all_inside += inside
        share = 100 * sum(inside) / len(inside)
        rows.append(Row(f"{experiment.__name__}: {len(inside)} rows", "% inside", 100 * PROMISED, share))
    pooled = f"{sum(all_inside)} of {len(all_inside)} rows, {sum(all_inside) / len(all_inside):.0%}"
    return Comparison(
        "intervals", "promised: nine of ten", tuple(rows), (), (), (f"All rows together: {pooled}, inside.",)
    )
