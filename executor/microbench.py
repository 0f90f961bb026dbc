"""``torchrun … -m executor.microbench SPEC.json -o OUT``: what a machine reaches, and layers of some plans.

SPEC.json names plans (folders beside it) that differ in routing and dispatch mode alone. Their layers share
weights and run in turns, so that whatever else the machine does disturbs all of them alike. OUT, a folder,
gets ``machine.json``, what each rank reaches at best, ``NAME.parquet``, a timeline for each plan, and
``spec.json``, what was asked for.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from executor.errors import PlanError
from executor.launch import Launch
from executor.progress import Mark
from executor.supervised import Patience, supervised
from traces.files import check_format, write_text

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
        try:
            value = json.loads(file.read_bytes())
        except OSError as error:
            raise PlanError(f"cannot be read: {error.strerror or error}", file=file) from error
        except (ValueError, RecursionError) as error:
            raise PlanError(f"is not JSON: {error}", file=file) from error
        if not isinstance(value, dict):
            raise PlanError("must be a JSON object", file=file)
        check_format(value.get("format"), "microbench", 1, file=file, error=PlanError)
        try:
            plans = tuple(file.parent / name for name in value["plans"])
            device, backend = str(value["device"]), str(value["backend"])
            threads, seconds = int(value["threads"]), float(value["seconds"])
        except (KeyError, TypeError, ValueError) as error:
            raise PlanError(f"lacks a field, or it is of another type: {error!r}", file=file) from error
        for field, holds, rule in (
            ("plans", bool(plans), "must name at least one"),
            ("device", device in ("cpu", "cuda"), "must be cpu or cuda"),
            ("threads", threads > 0, "must be at least 1"),
        ):
            if not holds:
                raise PlanError(rule, file=file, field=field, got=value[field])
        return cls(plans, device, backend, threads, seconds)


def main() -> None:
    """Run this rank."""
    parser = argparse.ArgumentParser(
        "torchrun --nproc-per-node RANKS -m executor.microbench",
        description="Measure what `moesim calibrate` fits a profile to.",
    )
    parser.add_argument("spec", metavar="SPEC", type=Path, help="a JSON file that names plans beside it")
    parser.add_argument("-o", dest="out", metavar="OUT", type=Path, required=True, help="write here")
    given = parser.parse_args()

    def work(launch: Launch, mark: Mark, patience: Patience) -> None:
        # Importing torch takes seconds, in which somebody watches already.
        from executor.bench import run

        spec = Spec.read(given.spec)
        if launch.rank == 0:
            # What was asked for, for whoever fits it elsewhere.
            write_text(given.out / SPEC, given.spec.read_text("utf-8"))
        run(spec, given.out, launch, mark, patience)

    supervised(given.out, (MACHINE,), work)


if __name__ == "__main__":
    main()
