"""The folders of real runs and validations: apart, so that a simulation does not load what runs ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moesim.analysis.execution_file import ExecutionResult
from moesim.analysis.validation_file import ValidationResult
from moesim.calibration.files import write_profile
from moesim.deployment.deployment import Deployment
from moesim.live.execute import Execution
from moesim.live.plan import write_plan
from moesim.output import whole_folder
from moesim.report.execution_page import execution_page
from moesim.report.validation_page import validation_page
from moesim.studies.validate import Validated
from traces.base.files import write_json, write_text
from traces.base.parts import scratch_folder
from traces.perfetto import write_perfetto
from traces.timeline import write_timeline


@contextmanager
def execution_folder(out: Path | None) -> Iterator[Path]:
    """An empty folder that becomes ``out`` if the block succeeds, or is thrown away where there is none."""
    if out is None:
        with scratch_folder() as folder:
            yield folder
    else:
        with whole_folder(out) as part:
            yield part


def write_execution(
    folder: Path, deployment: Deployment, execution: Execution, result: ExecutionResult
) -> None:
    """Add what ``moesim execute -o`` promises to the plan, timeline and counts that lie there.

    Raises:
        OutputError: the folder cannot be written.
    """
    write_text(folder / "scenario.yaml", deployment.scenario.to_yaml())
    write_json(folder / "execution.json", result.plain())
    write_perfetto(execution.timeline, folder / "timeline.json.gz")
    write_text(folder / "report.html", execution_page(result, execution.timeline))


def write_validation(folder: Path, validated: Validated, result: ValidationResult) -> None:
    """Write what ``moesim validate -o`` promises.

    Raises:
        OutputError: the folder cannot be written.
    """
    deployment = validated.simulation.deployment
    simulated = validated.simulated
    with whole_folder(folder) as part:
        write_text(part / "scenario.yaml", deployment.scenario.to_yaml())
        write_profile(deployment.scenario.profile, part / "profile.yaml")
        write_json(part / "validation.json", result.plain())
        write_timeline(validated.measured, part / "measured.parquet")
        write_timeline(simulated, part / "simulated.parquet")
        write_plan(deployment, part / "plan")
        write_text(part / "report.html", validation_page(result, validated.measured, simulated))
