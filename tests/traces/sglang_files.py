"""Files of SGLang's expert distribution recorder, built in exactly its layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

# 4 hidden layers, of which 0 is dense; 4 experts in 6 slots: in layers 1 to 3 expert 1 has two copies,
# and expert 3 has two.
MAP = [[0, 1, 2, 3, 1, 3], [0, 1, 2, 3, 1, 3], [3, 2, 1, 0, 1, 3], [1, 3, 0, 1, 2, 3]]
TIME = "expert_distribution_recorder_1762992000.25"


def save(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def stat(count_WLE: Any) -> dict[str, Any]:
    count = torch.tensor(count_WLE, dtype=torch.int32)
    return {"rank": 0, "logical_count": count, "average_utilization_rate_over_window": None}


def per_pass(rank: int, counts: dict[int, Any], slot_expert_LS: Any = MAP) -> dict[str, Any]:
    records = [
        {
            "forward_pass_id": number,
            "rank": rank,
            "gatherer_key": "primary",
            "global_physical_count": torch.tensor(count_LS, dtype=torch.int32),
        }
        for number, count_LS in counts.items()
    ]
    return {"records": records, "last_physical_to_logical_map": torch.tensor(slot_expert_LS)}


ONE = {1: np.ones((4, 6), int).tolist()}


def topk(choices: list[Any], layers: int = 4) -> Any:
    """Slots [L, T, 8] of tokens that chose the same slots in layers 1 to 3; layer 0 is dense."""
    slots_LTK = np.full((layers, len(choices), 8), -1, np.int32)
    for token, chosen in enumerate(choices):
        slots_LTK[1:, token, : len(chosen)] = chosen
    return torch.tensor(slots_LTK)


def token_record(
    number: int, positions: list[int], choices: list[Any], *, rank: int = 0, extend: list[int] | None = None
) -> dict[str, Any]:
    return {
        "forward_pass_id": number,
        "rank": rank,
        "gatherer_key": "primary",
        "input_ids": [7] * len(positions),
        "positions": positions,
        "extend_seq_lens": extend,
        "forward_mode": 1 if extend else 2,
        "topk_ids_of_layer": topk(choices),
        "misc_objects": [],
        "global_physical_count": torch.zeros((4, 6), dtype=torch.int32),
    }


def per_token(*records: dict[str, Any]) -> dict[str, Any]:
    return {"records": list(records), "last_physical_to_logical_map": torch.tensor(MAP)}


GOOD: dict[str, Any] = {"number": 1, "positions": [0, 1], "choices": [[0, 1], [2, 1]], "extend": [2]}
