"""Dtypes of weights and activations, and the bytes of a value."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

Dtype = Literal["fp32", "bf16", "fp16", "fp8", "mxfp4", "nvfp4", "int8", "int4"]

DTYPE_BYTES: Mapping[str, float] = MappingProxyType(
    {
        "fp32": 4.0,
        "bf16": 2.0,
        "fp16": 2.0,
        "fp8": 1.0,  # DeepSeek's fp32 scale of each 128 × 128 block adds 0.02 %: left out
        "int8": 1.0,
        "mxfp4": 4.25 / 8,  # 4 bits and one 8-bit scale for each 32 values (OCP MX specification 1.0)
        "nvfp4": 4.5 / 8,  # 4 bits and one fp8 scale for each 16 values (NVIDIA's Blackwell tensor cores)
        "int4": 4.125 / 8,  # 4 bits and one 16-bit scale for each 128 values (GPTQ's and AWQ's usual group)
    }
)
"""Bytes of one value, its share of the scales included."""
