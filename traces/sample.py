"""The built-in sample: what the routers of ``experiments/tiny_moe`` chose for text they never saw."""

from __future__ import annotations

from pathlib import Path

SAMPLE_NAME = "sample"
"""Stands for the sample where a trace is asked for."""

SAMPLE_TRACE = Path(__file__).parent / "data" / "sample.parquet"
"""Code and prose, with gate weights and the scores of 12 candidates."""

SAMPLE_GENERATOR = SAMPLE_TRACE.with_suffix(".yaml")
"""A generator that was fitted to it (``moesim trace fit sample``)."""
