"""TensorRT-LLM: the file of its static expert-parallel load balancer (``examples/wide_ep``)."""

from __future__ import annotations

from placement.files.write_grid import check_full
from placement.problem.placement import Placement


def trtllm(placement: Placement, hidden_layers: int | None) -> str:
    """YAML with exactly ``num_slots``, ``initial_global_assignments`` and ``layer_updates_per_iter``.

    Assignments are by the layer's index in the whole model; 0 updates leave them as they are.

    Raises:
        PlacementError: TensorRT-LLM cannot hold it.
    """
    check_full(placement, "TensorRT-LLM")
    rows = zip(placement.layers, placement.slot_expert_LS.tolist(), strict=True)
    assignments = "".join(f"  {layer}: [{', '.join(map(str, experts))}]\n" for layer, experts in rows)
    return (
        f"num_slots: {placement.slots}\ninitial_global_assignments:\n{assignments}layer_updates_per_iter: 0\n"
    )
