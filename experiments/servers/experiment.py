"""Whole servers of DeepSeek-V3: tokens a second, what two micro-batches gain, and kernels side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.comparison import Comparison, Row
from experiments.servers.side_by_side import side_by_side
from experiments.servers.step import GPUS_PER_NODE, tokens_per_s

SOURCE = (
    "SGLang on H100 (lmsys.org, 2025-05-05); DeepSeek on H800 (deepseek-ai/profile-data, "
    "its tokens a second as in alibaba/InferSim's README)"
)

_DEEPSEEK_DECODE: Mapping[str, Any] = {
    "cluster": "h800-16x8",
    "parallelism": {"ep": 128},
    "placement": "linear",
    "trace": {"synth": {"skew": 0}},
    "workload": {"phase": "decode", "tokens_per_gpu": 128, "context": 4096, "steps": 2},
}


def servers() -> Comparison:
    """Nothing is fitted to these rows: they are what counted bytes, launches and assumed shares give."""
    prefill, decode, few = tokens_per_s("prefill"), tokens_per_s("decode"), tokens_per_s("decode", 32)
    one_prefill, one_decode, one_few = (
        tokens_per_s(name, tokens, overlap="none")
        for name, tokens in (("prefill", None), ("decode", None), ("decode", 32))
    )
    deepseek = tokens_per_s("prefill", cluster="h800-4x8"), tokens_per_s("decode", **_DEEPSEEK_DECODE)
    rows = (
        Row("prefill EP32, 16,384 tokens a GPU, even loads", "tokens/s a node", 59300, prefill),
        Row("decode EP72, 256 tokens a GPU", "tokens/s a node", 22300, decode),
        # Measured between 1.27 and 1.35.
        Row("prefill, two micro-batches", "× one", 1.31, prefill / one_prefill),
        Row("decode at 256, two micro-batches", "× one", 1.255, decode / one_decode),
        Row("decode at 32, two micro-batches", "× one", 0.73, few / one_few),
    )
    checks = (
        Row("DeepSeek, prefill EP32", "tokens/s a GPU", 7839, deepseek[0] / GPUS_PER_NODE),
        Row("DeepSeek, decode EP128", "tokens/s a GPU", 2324, deepseek[1] / GPUS_PER_NODE),
        *side_by_side(),
    )
    return Comparison("servers", SOURCE, rows, checks, parameters=())
