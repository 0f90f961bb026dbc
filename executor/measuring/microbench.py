"""``torchrun … -m executor.measuring.microbench SPEC.json -o OUT``: a machine and some layers.

SPEC.json names plans (folders beside it) that differ in routing and dispatch mode alone. Their layers share
weights and run in turns, so that whatever else the machine does disturbs all of them alike. OUT, a folder,
gets ``machine.json``, what each rank reaches at best, ``NAME.parquet``, a timeline for each plan, and
``spec.json``, what was asked for.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from executor.measuring.spec import MACHINE, SPEC, Spec
from executor.plan.errors import PlanError
from executor.ranks.launch import Launch
from executor.ranks.progress import Mark
from executor.ranks.supervised import Patience, supervised
from traces.base.files import write_text
from traces.base.input_file import read_text


def main() -> None:
    """Run this rank."""
    parser = argparse.ArgumentParser(
        "torchrun --nproc-per-node RANKS -m executor.measuring.microbench",
        description="Measure what `moesim calibrate` fits a profile to.",
    )
    parser.add_argument("spec", metavar="SPEC", type=Path, help="a JSON file that names plans beside it")
    parser.add_argument("-o", dest="out", metavar="OUT", type=Path, required=True, help="write here")
    given = parser.parse_args()

    def work(launch: Launch, mark: Mark, patience: Patience) -> None:
        # Importing torch takes seconds, in which somebody watches already.
        from executor.measuring.bench import run

        spec = Spec.read(given.spec)
        if launch.rank == 0:
            # What was asked for, for whoever fits it elsewhere.
            write_text(
                given.out / SPEC, read_text(given.spec, "a specification of plans to measure", PlanError)
            )
        run(spec, given.out, launch, mark, patience)

    supervised(given.out, (MACHINE,), work)


if __name__ == "__main__":
    main()
