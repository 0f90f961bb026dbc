"""The dispatch modes."""

from __future__ import annotations

from typing import Literal, get_args

DispatchMode = Literal["per_expert", "per_gpu", "per_node", "all_gather", "all_reduce", "expert_to_expert"]

MODES: tuple[DispatchMode, ...] = get_args(DispatchMode)
