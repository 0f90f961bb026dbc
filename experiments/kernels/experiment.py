"""Grouped GEMMs in FP8 and bf16 on Hopper: four fitted parameters for the first, one for the second."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from experiments.comparison import Comparison, Parameter, Row, spread, with_ends
from experiments.kernels import deepgemm, grouped_mm
from moesim.calibration.fitting import Problem, fit
from moesim.hardware.gemm import Rates
from moesim.spec.cluster import load_cluster
from moesim.spec.profile import Roof, load_profile
from moesim.spec.yaml_source import Source
from moesim.units import format_rate

FloatArray = NDArray[np.float64]

_NOWHERE = Source(None, None, {})


def kernels() -> Comparison:
    """FP8 fitted to the grouped table; bf16 fitted to 128 experts and asked about 512."""
    profile = load_profile(None, _NOWHERE, ())
    h800, h100 = (load_cluster(f"{name}-1x8", _NOWHERE).gpu for name in ("h800", "h100"))
    fp8 = Rates(h800.flops["fp8"], h800.memory_bandwidth, h800.sms)
    bf16 = Rates(h100.flops["bf16"], h100.memory_bandwidth, h100.sms)

    fitted = fit(
        Problem(
            lambda parameters_P: np.array(
                [deepgemm.tflops(cell, _roof(parameters_P), profile, fp8) for cell in deepgemm.GROUPED]
            ),
            np.array([cell.tflops for cell in deepgemm.GROUPED]),
            start_P=np.array([0.7, 0.85, 0.5, 500.0]),
            lower_P=np.array([0.3, 0.5, 0.0, 0.0]),
            upper_P=np.array([1.0, 1.0, 1.0, 2000.0]),
        )
    )
    roof = _roof(fitted.parameters_P)
    rows = [
        Row(f"fp8 {cell.name}", "TFLOPS", cell.tflops, float(predicted), float(left_out))
        for cell, predicted, left_out in zip(
            deepgemm.GROUPED, fitted.predicted_R, fitted.left_out_R, strict=True
        )
    ]

    # Everything but the rate of the arithmetic is the FP8 fit's.
    def bf16_roof(compute: float) -> Roof:
        return roof.model_copy(update={"compute": compute})

    compute = brentq(
        lambda share: (
            grouped_mm.tflops(grouped_mm.E128, bf16_roof(share), profile, bf16) - grouped_mm.E128.tflops
        ),
        0.1,
        1.0,
    )
    predicted = grouped_mm.tflops(grouped_mm.E512, bf16_roof(compute), profile, bf16)
    rows.append(Row(f"bf16 {grouped_mm.E512.name}", "TFLOPS", grouped_mm.E512.tflops, predicted, predicted))
    rows = with_ends(rows)
    checks = [
        Row(f"fp8 {cell.name}", "TFLOPS", cell.tflops, deepgemm.tflops(cell, roof, profile, fp8))
        for cell in deepgemm.DENSE
    ]
    sonic = grouped_mm.SONIC
    reached = grouped_mm.tflops(sonic, bf16_roof(compute), profile, bf16)
    checks.append(Row(f"bf16 {sonic.name}", "TFLOPS", sonic.tflops, reached))
    return Comparison(
        "kernels",
        f"{deepgemm.SOURCE}; {grouped_mm.SOURCE}",
        rows=tuple(rows),
        checks=tuple(checks),
        parameters=(
            Parameter(
                "fp8 arithmetic",
                format_rate(h800.flops["fp8"] * roof.compute, "FLOP/s"),
                "endless depth, peak 1979",
            ),
            Parameter(
                "memory bandwidth",
                format_rate(h800.memory_bandwidth * roof.memory),
                f"of {format_rate(h800.memory_bandwidth)}",
            ),
            Parameter("overlap", f"{roof.overlap:.2f}", "of the shorter of arithmetic and memory"),
            Parameter("drain", f"{roof.drain:.0f} B", "of depth, for each tile"),
            Parameter(
                "bf16 arithmetic",
                format_rate(h100.flops["bf16"] * compute, "FLOP/s"),
                f"to reach {grouped_mm.E128.tflops:g} TFLOPS at {grouped_mm.E128.name}; peak 989",
            ),
            Parameter(
                "uncertainty",
                f"{spread(rows):.3f}, of dense GEMMs {spread(checks[: len(deepgemm.DENSE)]):.3f}",
                "spread of the errors with each row left out",
            ),
        ),
    )


def _roof(parameters_P: FloatArray) -> Roof:
    compute, memory, overlap, drain = (float(value) for value in parameters_P)
    return Roof(compute=compute, memory=memory, overlap=overlap, drain=drain)
