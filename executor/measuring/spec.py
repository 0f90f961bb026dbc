"""What the microbenchmarks are asked for: the plans to measure, and how."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from executor.plan.errors import PlanError
from traces.base.files import check_format
from traces.base.input_file import read_json

MACHINE, SPEC = "machine.json", "spec.json"


@dataclass(frozen=True)
class Spec:
    """What to measure.

    Attributes:
        plans: folders of plans, all for the same ranks, placement and weights.
        device, backend, threads: as of ``executor``.
        seconds: how long to repeat the plans; five times they run in any case.
    """

    plans: tuple[Path, ...]
    device: str
    backend: str
    threads: int
    seconds: float

    @classmethod
    def read(cls, file: Path) -> Spec:
        """From SPEC.json.

        Raises:
            PlanError: the file cannot be read, or lacks a field.
        """
        value = read_json(file, "a specification of plans to measure", PlanError)
        check_format(value.get("format"), "microbench", 1, file=file, error=PlanError)
        try:
            plans = tuple(file.parent / name for name in value["plans"])
            device, backend = str(value["device"]), str(value["backend"])
            threads, seconds = int(value["threads"]), float(value["seconds"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise PlanError(f"lacks a field, or it is of another type: {error!r}", file=file) from error
        for field, holds, rule in (
            ("plans", bool(plans), "must name at least one"),
            ("device", device in ("cpu", "cuda"), "must be cpu or cuda"),
            ("threads", threads > 0, "must be at least 1"),
        ):
            if not holds:
                raise PlanError(rule, file=file, field=field, got=value[field])
        return cls(plans, device, backend, threads, seconds)
