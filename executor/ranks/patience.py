"""How long a healthy rank may stay in one phase before it is taken to hang."""

from __future__ import annotations

import numpy as np

from executor.plan.plan import Plan
from executor.ranks.memory import DTYPE_BYTES, weight_bytes
from executor.ranks.supervised import START_S

_LEAST_S = 10.0
"""A machine may pause a process for seconds, however short the phase."""
_WEIGHTS = 1e8
"""Bytes of weights per second that any machine makes."""
_FLOPS = {"cpu": 4e9, "cuda": 1e12}
_BYTES = {"cpu": 1e9, "cuda": 1e11}
"""FLOP and bytes of weights per second that any healthy rank reaches."""


def preparation_s(plan: Plan) -> float:
    """While weights are made."""
    return START_S + max(weight_bytes(plan, rank) for rank in range(plan.ranks)) / _WEIGHTS


def phase_s(plan: Plan, device: str) -> float:
    """While a step runs: as if all its tokens met on one rank with all experts of a layer.

    Args:
        device: ``cpu`` or ``cuda``.
    """
    model = plan.model
    tokens = int(np.diff(plan.offsets_NG[:, [0, -1]]).max())
    expert = (3 if model.gated else 2) * model.hidden * model.width
    arithmetic = 2 * tokens * model.top_k * expert / _FLOPS[device]
    return _LEAST_S + arithmetic + model.experts * expert * DTYPE_BYTES[plan.dtype] / _BYTES[device]
