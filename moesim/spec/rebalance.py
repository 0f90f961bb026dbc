"""Rebalancing: how often a deployment places its experts anew while it serves, and how copies travel."""

from __future__ import annotations

from typing import Literal

from moesim.spec.base import Count, Index, Strict
from moesim.units import Seconds


class Rebalance(Strict):
    """A new placement every so many steps, for the loads of the last ones.

    ``{every_steps: 100}``: before steps 100, 200, … the solver gets the loads of the last 100 steps, as a
    server's recorder counts them: what tokens chose, before a policy. The number of slots stays.

    Attributes:
        every_steps: None = never, to compare with.
        window: steps whose loads count; by default ``every_steps``.
        solver: its name; it knows the placement in force.
        max_moves: most copies that may be sent each time, over all layers; None = no limit.
        mode: ``sync``: the next step waits until all copies have arrived. ``layerwise``: steps go on; copies
            travel beside them, layer after layer, and compete with dispatch and combine for the links. A
            layer changes over at the first step after its copies have arrived.
        solve: seconds of the solver; they stall a step in ``sync`` and pass beside the steps in
            ``layerwise``.
    """

    every_steps: Count | None
    window: Count | None = None
    solver: str = "swap"
    max_moves: Index | None = None
    mode: Literal["sync", "layerwise"] = "sync"
    solve: Seconds = 0.0
