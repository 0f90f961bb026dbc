"""Where kernels can run."""

from __future__ import annotations

import torch
import triton


def runs_on(device: torch.device) -> bool:
    """On a GPU; on a CPU only in Triton's interpreter."""
    return device.type != "cpu" or bool(triton.knobs.runtime.interpret)
