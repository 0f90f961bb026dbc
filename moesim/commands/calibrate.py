"""``moesim calibrate``: what this machine reaches, as a profile."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from moesim.commands.execute import Device, told_when_interrupted
from moesim.commands.terminal import AsJson, progress, say, show, tell

if TYPE_CHECKING:
    from moesim.calibration.design import Settings


def calibrate(
    out: Annotated[
        Path | None, typer.Option("-o", metavar="PROFILE", help="Write the profile to this YAML file.")
    ] = None,
    device: Device = "cpu",
    ranks: Annotated[
        int | None,
        typer.Option("--ranks", min=1, max=64, metavar="N", help="Measured at once. [default: 2, 1 on cuda]"),
    ] = None,
    backend: Annotated[
        Literal["loop", "grouped_mm", "triton"] | None,
        typer.Option(
            "--backend",
            help="What multiplies the experts' matrices. [default: loop, grouped_mm on cuda]",
        ),
    ] = None,
    dtype: Annotated[
        Literal["fp32", "bf16", "fp16"], typer.Option("--dtype", help="Of weights and activations.")
    ] = "fp32",
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="Experts like those of this preset or config.json. [default: as cpu-ep2]",
        ),
    ] = None,
    seconds: Annotated[
        float, typer.Option("--seconds", min=1, max=3600, help="How long the layers are repeated.")
    ] = 60.0,
    plan_only: Annotated[
        bool,
        typer.Option(
            "--plan-only", help="Only write what to measure, to the folder -o, and say how to, elsewhere."
        ),
    ] = False,
    measured: Annotated[
        list[Path] | None,
        typer.Option(
            "--measured",
            metavar="FOLDER",
            help="Fit what that run wrote, which knows its options. Repeatable.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure this machine with the executor's own layers, and fit a profile to it.

    `-s profile=PROFILE` and `validate --profile PROFILE` take what -o writes.
    """
    from moesim.calibration.design import Settings
    from moesim.calibration.files import calibrated, calibrated_elsewhere, check_target, write_profile
    from moesim.errors import SpecError
    from moesim.live.execute import USUAL
    from moesim.live.scenario import crowded
    from moesim.report.calibration_table import calibration_tables

    ranks = ranks or (2 if device == "cpu" else 1)
    settings = Settings(device, ranks, backend or USUAL[device], dtype, model, seconds)
    if plan_only:
        if measured:
            raise SpecError("has been planned already", field="--measured")
        _write_plans(settings, out or Path("calibration"))
        return
    if out is not None:
        check_target(out)
    if measured:
        profile, found = calibrated_elsewhere(measured, out)
    else:
        if device == "cpu" and (crowd := crowded(ranks)):
            tell(f"moesim: note: {crowd}")
        with told_when_interrupted(), progress("measuring", 1):
            profile, found = calibrated(settings, out)
    if out is not None:
        write_profile(profile, out)
    show(found, lambda: calibration_tables(found), as_json, None)
    if out is not None:
        tell(f"profile: {out}")


def _write_plans(settings: Settings, folder: Path) -> None:
    from moesim.calibration.design import write_spec
    from moesim.live.launch import torchrun
    from moesim.output import whole_folder

    with whole_folder(folder) as part:
        write_spec(settings, part)
    say(torchrun(settings.ranks, "executor.measuring.microbench", [folder / "spec.json", "-o", "OUT"]))
