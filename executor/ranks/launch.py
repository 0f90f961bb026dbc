"""Which rank this process is, and what a rank that fails tells torchrun."""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from executor.plan.errors import PlanError
from executor.plan.plan import Plan
from executor.ranks.progress import MEETING


@dataclass(frozen=True)
class Launch:
    """Which rank this process is.

    Attributes:
        local_rank, local_ranks: its place in its node, and how many ranks that has.
        agent: the process that started the ranks of the node, or this one itself.
        meeting: the private folder where ranks of one machine meet, if ``moesim`` started them.
    """

    rank: int = 0
    ranks: int = 1
    local_rank: int = 0
    local_ranks: int = 1
    agent: int = 0
    meeting: Path | None = None

    @classmethod
    def from_environment(cls) -> Self:
        """As ``moesim`` or torchrun set it; a process that neither started is the only rank."""
        if MEETING in os.environ:
            rank, ranks, agent = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "MOESIM_LAUNCHER"))
            return cls(rank, ranks, rank, ranks, agent, Path(os.environ[MEETING]))
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return cls(agent=os.getpid())
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        rank, ranks, local_rank, local_ranks = (int(os.environ[name]) for name in names)
        return cls(rank, ranks, local_rank, local_ranks, os.getppid())

    @property
    def first_rank(self) -> int:
        """The first one of the node."""
        return self.rank - self.local_rank

    def check(self, plan: Plan, *, serial: bool) -> None:
        """Refuse another number of processes than the plan has ranks, or than 1 where they run in turns.

        Raises:
            PlanError: saying how to start it.
        """
        wanted, why = plan.ranks, f"the plan is for {plan.ranks} ranks"
        if serial:
            wanted, why = 1, "--serial runs all ranks in one process"
        if self.ranks != wanted:
            raise PlanError(
                f"{why}: start as many with torchrun --nproc-per-node {wanted}, or on all nodes together",
                field="ranks",
                got=self.ranks,
            )


def tell_torchrun(cause: str) -> None:
    """Have torchrun give this cause where it lists the ranks that failed.

    It reads the file that ``torch.distributed.elastic.multiprocessing.errors.record`` writes; without a call
    stack in it, the message stands in its place.
    """
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file is not None:
        said = {"message": {"message": cause, "extraInfo": {"timestamp": str(int(time.time()))}}}
        # The watcher tells it in any case.
        with contextlib.suppress(OSError):
            Path(file).write_text(json.dumps(said), encoding="utf-8")
