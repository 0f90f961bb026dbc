"""The folders of runs and what-ifs, page included, all files or none; and pages made anew."""

from __future__ import annotations

from pathlib import Path

from moesim.analysis.execution_file import ExecutionResult
from moesim.analysis.result_file import Comparison, Result
from moesim.analysis.validation_file import ValidationResult
from moesim.errors import OutputError
from moesim.output import whole_folder
from moesim.report.execution_page import execution_page
from moesim.report.html import run_page, whatif_page
from moesim.report.validation_page import validation_page
from moesim.simulation.run import Run
from placement.files.native import write_placement
from traces.base.files import write_json, write_text
from traces.perfetto import write_perfetto
from traces.timeline import read_timeline, read_work, write_timeline, write_work


def write_run(folder: Path, run: Run, result: Result, comparison: Comparison | None = None) -> None:
    """Write what ``moesim run -o`` promises, and the comparison where there is one.

    Raises:
        OutputError: the folder cannot be written.
    """
    work = run.work()
    with whole_folder(folder) as part:
        write_text(part / "scenario.yaml", run.deployment.scenario.to_yaml())
        write_json(part / "result.json", result.plain())
        write_timeline(run.timeline, part / "timeline.parquet")
        write_work(work, part / "work.parquet")
        write_perfetto(run.timeline, part / "timeline.json.gz")
        write_placement(run.deployment.placement, part / "placement.json")
        if run.moves:
            (part / "placements").mkdir()
        for move in run.moves:
            write_placement(move.placement, part / "placements" / f"step-{move.step}.json")
        if comparison is not None:
            write_json(part / "whatif.json", comparison.plain())
        write_text(part / "report.html", run_page(result, run.timeline, work, comparison))


def write_comparison(folder: Path, comparison: Comparison) -> None:
    """Write what ``moesim whatif -o`` promises.

    Raises:
        OutputError: the folder cannot be written.
    """
    with whole_folder(folder) as part:
        write_json(part / "whatif.json", comparison.plain())
        write_text(part / "report.html", whatif_page(comparison))


def rebuild_report(folder: Path) -> list[Path]:
    """Write ``report.html`` anew from the other files of a run, a what-if, a validation or a real run.

    Beside a run the what-if of another scenario has a page of its own, ``whatif.html``.

    Returns:
        the pages that were written.

    Raises:
        MoesimError: the folder holds none of them, or a file in it breaks its format.
    """
    pages = {}
    compared = folder / "whatif.json"
    comparison = Comparison.read(compared) if compared.exists() else None
    if (folder / "result.json").exists():
        result = Result.read(folder / "result.json")
        timeline, work = read_timeline(folder / "timeline.parquet"), read_work(folder / "work.parquet")
        if comparison is not None and comparison.baseline.scenario != result.scenario:
            pages["whatif.html"] = whatif_page(comparison)
            comparison = None
        page = run_page(result, timeline, work, comparison)
    elif comparison is not None:
        page = whatif_page(comparison)
    elif (folder / "validation.json").exists():
        validation = ValidationResult.read(folder / "validation.json")
        page = validation_page(
            validation,
            *(read_timeline(folder / f"{name}.parquet") for name in ("measured", "simulated")),
        )
    elif (folder / "execution.json").exists():
        execution = ExecutionResult.read(folder / "execution.json")
        page = execution_page(execution, read_timeline(folder / "timeline.parquet"))
    else:
        raise OutputError("holds no result.json, whatif.json, validation.json or execution.json", file=folder)
    pages["report.html"] = page
    for name, text in pages.items():
        write_text(folder / name, text)
    return [folder / name for name in pages]
