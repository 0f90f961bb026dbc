"""Milliseconds that fewer experts per token save a step: the bytes of weights that a batch does not read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from experiments.comparison import Comparison, Parameter, Row
from experiments.fewer_experts.serving import Serving, serve
from moesim.calibration.fitting import Problem, fit
from moesim.spec.profile import Profile, load_profile
from moesim.spec.yaml_source import Source
from moesim.units import format_rate

SOURCE = "arXiv 2505.03531: DeepSeek-V2-Lite, SGLang 0.4.4, 2 × A800 PCIe, input + output 2048"

TOP_K = (6, 5, 4, 3, 2)
"""Experts per token; the model was trained with the first."""

TOKENS_PER_S: Mapping[int, tuple[float, ...]] = MappingProxyType(
    {
        2: (479, 511, 544, 583, 631),
        32: (2345, 2412, 2529, 2716, 3069),
        512: (9379, 9783, 9950, 10102, 10954),
    }
)
"""As published: by concurrency, for each of ``TOP_K``."""

_FITTED = (2, 32)
"""Concurrencies at which what fewer experts save is reading weights."""

_LEVELS = tuple(f"concurrency {C}, " for C in _FITTED)

_OTHERWISE: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "skew 1": {"skew": 1.0},
        "persistence 0.9": {"persistence": 0.9},
        "256 of the tokens in": {"input_tokens": 256},
    }
)
"""What was not published, assumed otherwise."""

# By concurrency: one for each of TOP_K.
Cells = Mapping[int, Sequence[Serving]]


def fewer_experts() -> Comparison:
    """One parameter, fitted to what k = 6 to 2 saves at two concurrencies; levels follow from it."""
    generic = load_profile(None, Source(None, None, {}), ())
    cells: dict[int, list[Serving]] = {C: [] for C in TOKENS_PER_S}
    for k in TOP_K:  # outside, so that each trace is generated once
        for C, row in cells.items():
            row.append(serve(C, k))
    fitted = fit(
        Problem(
            lambda share_1: np.array(
                [saved_ms(cells[C], served_by(generic, float(share_1[0]))) for C in _FITTED]
            ),
            np.array([measured_saved_ms(C) for C in _FITTED]),
            start_P=np.array([0.85]),
            lower_P=np.array([0.3]),
            upper_P=np.array([1.0]),
        )
    )
    share = float(fitted.parameters_P[0])
    profile = served_by(generic, share)
    memory = cells[2][0].decode.deployment.scenario.cluster.gpu.memory_bandwidth
    rows = [
        Row(_saved_name(C), "ms", measured_saved_ms(C), float(predicted), float(left_out))
        for C, predicted, left_out in zip(_FITTED, fitted.predicted_R, fitted.left_out_R, strict=True)
    ]
    levels = _throughput(cells, profile)
    rows += [row for row in levels if row.case.startswith(_LEVELS)]
    checks = [
        *_saved(cells, [512], profile, ""),
        *_saved(cells, _FITTED, served_by(generic, generic.grouped_gemm.memory), ", memory as in generic"),
        *_saved(cells, _FITTED, generic, ", all as in generic"),
    ]
    for name, changed in _OTHERWISE.items():
        for C in _FITTED:
            other = {C: [serve(C, k, **changed) for k in (TOP_K[0], TOP_K[-1])]}
            checks += _saved(other, [C], profile, f", {name}")
    return Comparison(
        "fewer_experts",
        SOURCE,
        rows=tuple(rows),
        checks=(*checks, *(row for row in levels if not row.case.startswith(_LEVELS))),
        parameters=(
            Parameter(
                "memory bandwidth of GEMMs",
                format_rate(share * memory),
                f"{share:.2f} of {format_rate(memory)}",
            ),
        ),
    )


def served_by(generic: Profile, share: float) -> Profile:
    """The generic profile, with this share of the memory bandwidth in all GEMMs.

    With a handful of rows to an expert, arithmetic hides behind the weights on their way from memory. And
    SGLang prepares the next batch while the GPU works (its overlap scheduler, the default since 0.4).
    """
    roof = {"memory": share, "overlap": 1.0}
    return generic.model_copy(
        update={
            "gemm": generic.gemm.model_copy(update=roof),
            "grouped_gemm": generic.grouped_gemm.model_copy(update=roof),
            **dict.fromkeys(("step", "step_sequence", "step_token"), 0.0),
        }
    )


def measured_saved_ms(concurrency: int) -> float:
    """Milliseconds that a step with the fewest experts is shorter than one with the most.

    At concurrency 2 it is 2 / 479 s - 2 / 631 s:

    >>> round(measured_saved_ms(2), 3)
    1.006
    """
    most, *_, fewest = TOKENS_PER_S[concurrency]
    return 1e3 * concurrency * (1.0 / most - 1.0 / fewest)


def saved_ms(row: Sequence[Serving], profile: Profile) -> float:
    """The same, predicted: ``row`` begins with the most experts and ends with the fewest."""
    return 1e3 * (row[0].seconds_per_token(profile) - row[-1].seconds_per_token(profile))


def _saved(cells: Cells, concurrencies: Sequence[int], profile: Profile, how: str) -> list[Row]:
    return [
        Row(_saved_name(C) + how, "ms", measured_saved_ms(C), saved_ms(cells[C], profile))
        for C in concurrencies
    ]


def _throughput(cells: Cells, profile: Profile) -> list[Row]:
    return [
        Row(f"concurrency {C}, k {k}", "tokens/s", measured, cell.tokens_per_s(profile))
        for C, tokens_per_s in TOKENS_PER_S.items()
        for k, measured, cell in zip(TOP_K, tokens_per_s, cells[C], strict=True)
    ]


def _saved_name(concurrency: int) -> str:
    return f"concurrency {concurrency}, k {TOP_K[0]} to {TOP_K[-1]}"
