"""The folder of a real run, in which the executor writes first."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moesim.execution.execute import Execution
from moesim.output import to_json, whole_folder
from moesim.report.execution_page import execution_page
from moesim.simulation.deployment import Deployment
from traces.files import write_text
from traces.perfetto import write_perfetto


@contextmanager
def execution_folder(out: Path | None) -> Iterator[Path]:
    """An empty folder that becomes ``out`` if the block succeeds, or is thrown away where there is none."""
    if out is None:
        with tempfile.TemporaryDirectory(prefix="moesim-") as folder:
            yield Path(folder)
    else:
        with whole_folder(out) as part:
            yield part


def write_execution(
    folder: Path, deployment: Deployment, execution: Execution, result: dict[str, Any]
) -> None:
    """Add what ``moesim execute -o`` promises to the plan, timeline and counts that lie there.

    Raises:
        OutputError: the folder cannot be written.
    """
    write_text(folder / "scenario.yaml", deployment.scenario.to_yaml())
    write_text(folder / "execution.json", to_json(result))
    write_perfetto(execution.timeline, folder / "timeline.json.gz")
    write_text(folder / "report.html", execution_page(result, execution.timeline))
