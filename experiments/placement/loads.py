"""The loads: families with a stated skew, and a recorded trace where it is at hand."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

LAYERS, EXPERTS = 58, 256
"""Of DeepSeek-V3."""

SEEDS = (0, 1, 2)


def _zipf(exponent: float) -> Callable[[np.random.Generator], Floats]:
    """Loads 1 / rank^exponent; every layer has ranks of its own."""
    load_E = np.arange(1.0, EXPERTS + 1) ** -exponent
    return lambda rng: np.stack([rng.permutation(load_E) for _ in range(LAYERS)])


def _lognormal(sigma: float) -> Callable[[np.random.Generator], Floats]:
    return lambda rng: rng.lognormal(0.0, sigma, size=(LAYERS, EXPERTS))


FAMILIES: Mapping[str, Callable[[np.random.Generator], Floats]] = MappingProxyType(
    {
        "zipf 0.6": _zipf(0.6),
        "zipf 1.0": _zipf(1.0),
        "lognormal 0.5": _lognormal(0.5),
        "lognormal 1.0": _lognormal(1.0),
    }
)


def family(name: str, seed: int) -> Floats:
    """float64 [58, 256], loads of a family."""
    return FAMILIES[name](np.random.default_rng(seed))


def trace_file() -> Path:
    """A recording of gpt-oss-20b, in the folder that ``MOESIM_SHARED`` names, by default ``../shared``."""
    default = Path(__file__).parents[3] / "shared"
    return Path(os.environ.get("MOESIM_SHARED", default)) / "data" / "gptoss20b" / "decode_routing.npz"


def request_loads(file: Path) -> Floats:
    """float64 [R, 24, 32], loads of each request of the recording, in its order."""
    with np.load(file) as arrays:
        ids_TLK, offsets = arrays["topk_ids"], arrays["request_offsets"]
    requests = len(offsets) - 1
    layers, experts = ids_TLK.shape[1], int(ids_TLK.max()) + 1
    load_RLE = np.zeros((requests, layers, experts))
    for request in range(requests):
        for layer in range(layers):
            ids_N = ids_TLK[offsets[request] : offsets[request + 1], layer].ravel()
            load_RLE[request, layer] = np.bincount(ids_N, minlength=experts)
    return load_RLE


def windows_of(load_RLE: Floats, windows: int) -> Floats:
    """float64 [windows, L, E], loads of equally many neighbouring requests each."""
    return np.stack([part.sum(axis=0) for part in np.array_split(load_RLE, windows)])
