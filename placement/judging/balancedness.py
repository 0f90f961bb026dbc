"""Balancedness: one word, four formulas of four systems, each under its own name.

Axes: W windows (or steps), L MoE layers, G GPUs, S slots. Loads are tokens (assignments).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from placement.problem.placement import Placement
from traces.base.arrays import Floats

# SGLang adds this to both, so that a layer without tokens counts as balanced (0.5.23, expert_distribution).
_EPSILON = 1e-5


def sglang(load_XLG: Floats) -> float:
    """SGLang's: (mean + 1e-5) / (max + 1e-5) over GPUs, then the mean over layers and windows.

    >>> round(sglang(np.array([[[1.0, 3.0], [2.0, 2.0]]])), 3)
    0.833
    """
    mean_XL, max_XL = load_XLG.mean(axis=-1), load_XLG.max(axis=-1)
    return float(((mean_XL + _EPSILON) / (max_XL + _EPSILON)).mean())


def vllm(load_WLG: Floats) -> float:
    """vLLM's (0.33): Σ over layers of the mean / Σ over layers of the max over GPUs, the mean over windows.

    >>> vllm(np.array([[[1.0, 3.0], [2.0, 2.0]]]))
    0.8
    """
    mean_W, max_W = load_WLG.mean(axis=-1).sum(axis=-1), load_WLG.max(axis=-1).sum(axis=-1)
    return float(_ratio(mean_W, max_W).mean())


def trtllm_imbalance(load_WLG: Floats) -> float:
    """TensorRT-LLM's imbalance: (max − mean) / mean over GPUs, the mean over layers and windows; 0 is best.

    >>> trtllm_imbalance(np.array([[[1.0, 3.0], [2.0, 2.0]]]))
    0.25
    """
    mean_WL, max_WL = load_WLG.mean(axis=-1), load_WLG.max(axis=-1)
    return float((_ratio(max_WL, mean_WL) - 1.0).mean())


def slots(load_WLS: Floats) -> float:
    """The ADRS evaluator's, over slots: Σ mean / Σ max, layers added up, the mean over windows.

    It is meant for a placement made on one window and scored on the next. An empty slot has no load.

    >>> slots(np.array([[[1.0, 3.0], [2.0, 2.0]]]))
    0.8
    """
    return vllm(load_WLS)


def slot_load_WLS(placement: Placement, load_WLE: npt.ArrayLike) -> Floats:
    """float64 [W, L, S], each expert's tokens divided evenly over its copies."""
    return placement.in_slots(np.asarray(load_WLE, dtype=np.float64) / placement.replicas_LE)


def gpu_load_WLG(placement: Placement, load_WLE: npt.ArrayLike) -> Floats:
    """float64 [W, L, G], as :meth:`Placement.gpu_load_LG` for each window."""
    return np.stack([placement.gpu_load_LG(load_LE) for load_LE in np.asarray(load_WLE)])


FORMULAS: Mapping[str, Callable[[Floats, Floats], float]] = MappingProxyType(
    {
        "sglang": lambda load_WLG, _: sglang(load_WLG),
        "vllm": lambda load_WLG, _: vllm(load_WLG),
        "trtllm_imbalance": lambda load_WLG, _: trtllm_imbalance(load_WLG),
        "slots": lambda _, load_WLS: slots(load_WLS),
    }
)
"""From the loads of GPUs and of slots."""


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """1 where both are 0: nothing to balance."""
    ratio: Floats = np.divide(numerator, denominator, out=np.ones_like(numerator), where=denominator > 0)
    return ratio
