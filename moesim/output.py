"""The files of a run, in one folder: all of them appear, or none."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from moesim.errors import OutputError
from moesim.report.execution_file import read_execution
from moesim.report.execution_page import execution_page
from moesim.report.html import run_page, whatif_page
from moesim.report.result_file import read_comparison, read_result
from moesim.report.validation_file import read_validation
from moesim.report.validation_page import validation_page
from moesim.simulation.run import Run
from placement.placement_file import write_placement
from traces.files import check_is_file, write_text
from traces.perfetto import write_perfetto
from traces.timeline import read_timeline, read_work, write_timeline, write_work

# One of these stands in every folder that a run or a what-if wrote or has begun to write.
_OURS = ("result.json", "whatif.json", "points", "plan.json", "execution.json", "validation.json")


def write_run(
    folder: Path, run: Run, result: dict[str, Any], comparison: dict[str, Any] | None = None
) -> None:
    """Write what ``moesim run -o`` promises, and the comparison where there is one.

    Raises:
        OutputError: the folder cannot be written.
    """
    work = run.work()
    with whole_folder(folder) as part:
        write_text(part / "scenario.yaml", run.deployment.scenario.to_yaml())
        write_text(part / "result.json", to_json(result))
        write_timeline(run.timeline, part / "timeline.parquet")
        write_work(work, part / "work.parquet")
        write_perfetto(run.timeline, part / "timeline.json.gz")
        write_placement(run.deployment.placement, part / "placement.json")
        if run.moves:
            (part / "placements").mkdir()
        for move in run.moves:
            write_placement(move.placement, part / "placements" / f"step-{move.step}.json")
        if comparison is not None:
            write_text(part / "whatif.json", to_json(comparison))
        write_text(part / "report.html", run_page(result, run.timeline, work, comparison))


def write_comparison(folder: Path, comparison: dict[str, Any]) -> None:
    """Write what ``moesim whatif -o`` promises.

    Raises:
        OutputError: the folder cannot be written.
    """
    with whole_folder(folder) as part:
        write_text(part / "whatif.json", to_json(comparison))
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
    comparison = read_comparison(compared) if compared.exists() else None
    if (folder / "result.json").exists():
        result = read_result(folder / "result.json")
        timeline, work = read_timeline(folder / "timeline.parquet"), read_work(folder / "work.parquet")
        if comparison is not None and comparison["baseline"]["scenario"] != result["scenario"]:
            pages["whatif.html"] = whatif_page(comparison)
            comparison = None
        page = run_page(result, timeline, work, comparison)
    elif comparison is not None:
        page = whatif_page(comparison)
    elif (folder / "validation.json").exists():
        validation = read_validation(folder / "validation.json")
        page = validation_page(
            validation,
            *(read_timeline(folder / f"{name}.parquet") for name in ("measured", "simulated")),
        )
    elif (folder / "execution.json").exists():
        execution = read_execution(folder / "execution.json")
        page = execution_page(execution, read_timeline(folder / "timeline.parquet"))
    else:
        raise OutputError("holds no result.json, whatif.json, validation.json or execution.json", file=folder)
    pages["report.html"] = page
    for name, text in pages.items():
        write_text(folder / name, text)
    return [folder / name for name in pages]


def check_folder(folder: Path) -> None:
    """Refuse a folder that could not or should not be written, before anything is simulated; makes nothing.

    Raises:
        OutputError: a file is in the way, there is no permission to write, or the folder holds other
            things than a run.
    """
    nearest = folder
    try:
        while not nearest.exists() and nearest != nearest.parent:
            nearest = nearest.parent
        if not nearest.is_dir():
            raise OutputError("is not a folder", file=nearest)
        if folder.exists() and any(folder.iterdir()) and not any((folder / name).exists() for name in _OURS):
            raise OutputError(
                "is not empty and holds no run of ours; name a new folder, so that nothing is overwritten",
                file=folder,
            )
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror or error}", file=folder) from error
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise OutputError("cannot be written: Permission denied", file=nearest)


def check_file(out: Path, *, reads: Iterable[Path | str | None] = ()) -> None:
    """Refuse a file that could not or should not be written, before the work that fills it.

    Args:
        reads: what the command reads, of which ``out`` must be none; entries may be missing files.

    Raises:
        OutputError: it is a folder, a device or one of ``reads``; its folder is missing or closed to us.
    """
    check_is_file(out)
    if not out.parent.is_dir():
        raise OutputError("there is no such folder", file=out.parent)
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise OutputError("cannot be written: Permission denied", file=out)
    if out.exists() and any(each is not None and _is_file(each, out) for each in reads):
        raise OutputError("is what this command reads; name another file to write", file=out)


def _is_file(path: Path | str, other: Path) -> bool:
    try:
        return Path(path).samefile(other)
    except (OSError, ValueError):  # a preset's name, or nothing that is there
        return False


def to_json(value: dict[str, Any]) -> str:
    """One JSON object, a line for each entry of its upper levels."""
    return json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder; if the block succeeds, move its files into ``folder``.

    The empty one is inside ``folder`` where that exists, for it may be a file system of its own.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        around = folder if folder.is_dir() else folder.parent
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=around))
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror or error}", file=folder) from error
    try:
        yield part
        folder.mkdir(exist_ok=True)
        for file in sorted(part.iterdir()):
            if file.is_dir():  # a folder does not replace another that is not empty
                shutil.rmtree(folder / file.name, ignore_errors=True)
            file.replace(folder / file.name)
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror or error}", file=folder) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
