"""One case: every layer checked against a float64 loop, then timed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.gpu.cases import Case
from benchmarks.gpu.rivals import LAYERS, RIVALS, Layer, Weights, reference_rows
from benchmarks.gpu.roofline import Peaks, Roof, median_s

_CHECKED = 8
"""Tokens that are compared, spread over the batch."""
_TOLERANCE = 0.02
"""|found - wanted| / |wanted|: three roundings to bf16 are a few thousandths."""


class WrongResultError(Exception):
    """A layer that computed something else."""


@dataclass(frozen=True)
class Row:
    """What came out.

    Attributes:
        bound: what limits the case at best, ``compute`` or ``memory``.
        reached: our share of that limit.
        seconds: of each layer that ran.
        missing: why others did not.
        eight_bits_s: of ours with weights of eight bits.
    """

    case: Case
    bound: str
    reached: float
    seconds: Mapping[str, float]
    missing: Mapping[str, str]
    eight_bits_s: float

    @property
    def speedup(self) -> float | None:
        """The best rival's time over ours; None without any."""
        others = [seconds for name, seconds in self.seconds.items() if name != "ours"]
        return min(others) / self.seconds["ours"] if others else None


def batch(case: Case, device: torch.device | str = "cuda") -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, their experts, and gate weights that sum to 1."""
    generator = torch.Generator(device).manual_seed(0)
    T, K = case.tokens, case.shape.top_k
    x_TH = torch.randn(T, case.shape.hidden, generator=generator, device=device).to(torch.bfloat16)
    score_TK = torch.rand(T, K, generator=generator, device=device)
    return x_TH, torch.from_numpy(case.routing()).to(device), score_TK / score_TK.sum(1, keepdim=True)


def check(name: str, layer: Layer, inputs: tuple[Tensor, Tensor, Tensor], weights: Weights) -> None:
    """Compare some tokens.

    Raises:
        WrongResultError: they are not what they must be.
    """
    tokens = len(inputs[0])
    at_X = torch.arange(0, tokens, -(-tokens // _CHECKED), device=inputs[0].device)
    x_XH, ids_XK, weight_XK = (tensor[at_X] for tensor in inputs)
    wanted_XH = reference_rows(x_XH, ids_XK, weight_XK, weights)
    found_XH = layer(*inputs)[at_X].double()
    error = float((found_XH - wanted_XH).norm() / wanted_XH.norm())
    # Not "error > …", which lets NaN pass.
    if not error <= _TOLERANCE:
        raise WrongResultError(
            f"{name} is wrong by {error:.2g} of its result, at most {_TOLERANCE} is rounding"
        )


def measure(case: Case, weights: Weights, eight_bits: Weights, peaks: Peaks) -> Row:
    """Check and time all layers on one case.

    Args:
        eight_bits: the same weights, rounded.

    Raises:
        WrongResultError: ours is wrong.
    """
    inputs, roof = batch(case), Roof.of(case)

    def timed(name: str, weights: Weights) -> float:
        layer = LAYERS[name].make(weights)
        check(name, layer, inputs, weights)
        graph = LAYERS[name].graph and case.phase == "decode"
        return median_s(lambda: layer(*inputs), graph=graph)

    seconds, missing = {"ours": timed("ours", weights)}, {}
    eight_bits_s = timed("ours", eight_bits)
    for name in RIVALS:
        try:
            seconds[name] = timed(name, weights)
        except ImportError:
            missing[name] = "not installed"
        except torch.OutOfMemoryError:
            missing[name] = "out of memory"
        except Exception as error:
            # What others raise is theirs: it is reported, and the rest goes on.
            missing[name] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    reached = roof.reached(seconds["ours"], peaks)
    return Row(case, roof.bound(peaks), reached, seconds, missing, eight_bits_s)
