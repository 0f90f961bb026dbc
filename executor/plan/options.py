"""How a plan is run: what the command line of ``python -m executor`` says beside the plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """The same on every rank.

    Attributes:
        out: the folder for what was measured.
        repeats, warmup: runs of all steps that are recorded, and before them that are not.
        backend: of the experts.
        device: ``cpu`` or ``cuda``.
        count: whether the work is also counted from what arrives.
        serial: whether one process runs the kernels of all ranks, rank after rank.
        threads: of each rank, on CPU.
    """

    out: Path
    repeats: int = 5
    warmup: int = 2
    backend: str = "loop"
    device: str = "cpu"
    count: bool = False
    serial: bool = False
    threads: int = 1

    @property
    def passes(self) -> range:
        """The numbers of all repeats, those of the warm-up below 0."""
        return range(-self.warmup, self.repeats)
