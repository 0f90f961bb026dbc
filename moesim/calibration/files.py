"""A calibration from settings to its file."""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from moesim.calibration.assembly import assemble
from moesim.calibration.calibrate import Calibration, calibrate, fit_measured
from moesim.calibration.design import Settings
from moesim.errors import OutputError
from moesim.output import check_file
from moesim.spec.profile import Profile
from traces.base.files import write_text


def calibrated(settings: Settings, out: Path | None = None) -> tuple[Profile, dict[str, Any]]:
    """Measure this machine: its profile, and what ``moesim calibrate --json`` prints.

    Args:
        out: the file that the profile is named after.

    Raises:
        MoesimError: a setting is at fault, the ranks failed, or the machine was too noisy.
    """
    return _found(calibrate(settings), settings, out)


def calibrated_elsewhere(folders: Sequence[Path], out: Path | None = None) -> tuple[Profile, dict[str, Any]]:
    """The same of what ``executor.measuring.microbench`` wrote into folders on another machine.

    Raises:
        MoesimError: a folder is not what a calibration asked for, or that machine was too noisy.
    """
    settings, done = fit_measured(folders)
    return _found(done, settings, out)


def _found(done: Calibration, settings: Settings, out: Path | None) -> tuple[Profile, dict[str, Any]]:
    profile = profile_of(done, settings, command_line(settings), "calibrated" if out is None else out.stem)
    return profile, {
        "format": "moesim.calibration/1",
        "profile": profile.model_dump(mode="json"),
        "quantities": [asdict(line) for line in done.quantities(settings.dtype)],
        "quality": {what: asdict(quality) for what, quality in done.quality.items()},
    }


def profile_of(done: Calibration, settings: Settings, command: str, name: str = "calibrated") -> Profile:
    """What was found, as the profile of today that ``command`` makes."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return assemble(done, settings, name=name, command=command, date=today)


def command_line(settings: Settings) -> str:
    """The command that repeats a calibration.

    >>> command_line(Settings(model="mixtral-8x7b"))
    'moesim calibrate --device cpu --ranks 2 --backend loop --dtype fp32 --seconds 60 --model mixtral-8x7b'
    """
    given = [
        *("--device", settings.device),
        *("--ranks", str(settings.ranks)),
        *("--backend", settings.backend),
        *("--dtype", settings.dtype),
        *("--seconds", f"{settings.seconds:g}"),
        *(() if settings.model is None else ("--model", settings.model)),
    ]
    return shlex.join(["moesim", "calibrate", *given])


def check_target(file: Path) -> None:
    """Refuse a file that could not be written, before a minute of measuring.

    Raises:
        OutputError: it cannot be written, or is not named as YAML.
    """
    check_file(file)
    if file.suffix not in (".yaml", ".yml"):
        raise OutputError("must end in .yaml, by which a profile is known", file=file)


def write_profile(profile: Profile, file: Path) -> None:
    """Write it as YAML that ``load_profile`` reads.

    Raises:
        OutputError: the file cannot be written.
    """
    plain = profile.model_dump(mode="json", exclude_none=True)
    write_text(file, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=110))
