"""The back ends by name, and the small interface between them and the layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Protocol

from torch import Tensor

from executor.experts.grouped_mm import GroupedMmExperts
from executor.experts.loop import LoopExperts
from executor.experts.weights import ExpertWeights


class Experts(Protocol):
    """The feed-forward networks of one rank's slots in one layer."""

    def __call__(self, rows_AH: Tensor, count_Z: Tensor) -> Tensor:
        """The output of each row's expert, in the order of the rows.

        Args:
            rows_AH: one row for each assignment, sorted by local slot.
            count_Z: int64, rows of each local slot; their sum is A.

        Returns:
            A new tensor [A, H].
        """


def _triton(weights: ExpertWeights) -> Experts:
    # Triton exists for Linux only.
    from executor.experts.triton import TritonExperts

    return TritonExperts(weights)


BACKENDS: Mapping[str, Callable[[ExpertWeights], Experts]] = MappingProxyType(
    {"loop": LoopExperts, "grouped_mm": GroupedMmExperts, "triton": _triton}
)
