"""Every reader of the program, with a small valid file or folder that it reads."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from executor.measuring.spec import Spec
from executor.plan.plan_file import read_plan
from moesim.analysis.execution_file import ExecutionResult
from moesim.analysis.result_file import Comparison, Result
from moesim.analysis.validation_file import ValidationResult
from moesim.calibration.design import Settings, read_settings
from moesim.calibration.machine import Machine
from moesim.deployment.deployment import deploy
from moesim.live.execute import read_execution
from moesim.live.plan import write_plan
from moesim.report.folder import rebuild_report
from moesim.spec.generator_file import read_generator
from moesim.spec.hf_config import read_hf_config
from moesim.spec.presets import preset_source
from moesim.spec.scenario import load_scenario
from placement.files.reading import load_placement
from placement.files.target import Target
from placement.files.writing import FORMATS, export
from placement.problem.placement import Placement
from tests.moesim.published_configs import PUBLISHED
from tests.moesim.report_example import example_comparison, example_run
from tests.moesim.test_execution_report import RUN, executed
from tests.moesim.tiny import tiny_scenario, write_scenario
from tests.moesim.validation_example import example_validation
from tests.traces import test_interop_fuzz, test_reader_fuzz
from traces.base.errors import MoesimError
from traces.interop import detect, importer, open_source
from traces.interop.hints import Hints
from traces.interop.recording import Recording
from traces.sample import SAMPLE_GENERATOR
from traces.timeline import read_timeline, read_work, write_timeline, write_work
from traces.trace_file import TraceFile

HINTS = (Hints(), Hints(experts=8), test_interop_fuzz.HINTS)


@dataclass(frozen=True)
class Reader:
    """What reads a file or folder.

    Attributes:
        write: puts a valid file, or several, into a folder.
        files: those of them to mutate, one each time; empty = all.
        read: reads what stands in the folder.
        share: mutations of it for one of the others: slow ones get fewer.
    """

    write: Callable[[Path], Any]
    read: Callable[[Path], Any]
    files: tuple[str, ...] = ()
    share: float = 1.0


def _foreign(layout: str, file: str, folder: Path) -> None:
    path = folder / file
    source = path.parent if "/" in file else path
    detect(source)
    for hints in HINTS[:-1]:  # what is known of the model leads to other checks
        with contextlib.suppress(MoesimError):
            _opened(layout, source, hints)
    _opened(layout, source, HINTS[-1])


def _opened(layout: str, source: Path, hints: Hints) -> None:
    opened = importer(layout).open(source, hints)
    if isinstance(opened, Recording):
        opened.read()


def _in_folder(read: Callable[[Path], Any], file: str, folder: Path) -> None:
    read(folder / file)


def _any(file: str, folder: Path) -> None:
    opened = open_source(folder / file, HINTS[1])
    if isinstance(opened, TraceFile):
        with opened:
            opened.read()


def _write_foreign(file: str, write: Callable[[Path], None], folder: Path) -> None:
    (folder / file).parent.mkdir(exist_ok=True)
    write(folder / file)


def _recordings() -> dict[str, Reader]:
    found = {}
    for name, (layout, file, write) in test_interop_fuzz.LAYOUTS.items():
        found[name] = Reader(partial(_write_foreign, file, write), partial(_foreign, layout, file), (file,))
    for name, (file, write, read) in test_reader_fuzz.READERS.items():
        found[name] = Reader(partial(_write_foreign, file, write), partial(_in_folder, read, file))
        found[f"{name}, by content"] = Reader(partial(_write_foreign, file, write), partial(_any, file))
    return found


_ROWS = [[0, 1, 2, 3, 4, 0], [4, 3, 2, 1, 0, 4], [2, 1, 2, 0, 4, 3]]
_PLACEMENT = Placement(np.array(_ROWS), np.array([0, 0, 1, 1, 2, 2]), 5, 3, (0, 2, 3), "by hand")
_TARGET = Target(experts=5, gpus=3, layers=(0, 2, 3), hidden_layers=4)


def _write_placement(name: str, file: str, folder: Path) -> None:
    export(_PLACEMENT, folder / file, name, hidden_layers=4)


def _read_placement(path: Path) -> Placement:
    return load_placement(path, _TARGET)


def _placements() -> dict[str, Reader]:
    found = {}
    for name in FORMATS:
        file = "p.yaml" if name == "trtllm" else "p.json"
        found[f"placement, {name}"] = Reader(
            partial(_write_placement, name, file), partial(_in_folder, _read_placement, file)
        )
    return found


def _write_config(name: str, folder: Path) -> None:
    published = PUBLISHED[name]
    (folder / "config.json").write_text(json.dumps(published.config))
    if published.beside is not None:
        (folder / "hf_quant_config.json").write_text(json.dumps(published.beside))


def _configs() -> dict[str, Reader]:
    # One mutation of each for one of any other file: there are many.
    return {
        f"config, {name}": Reader(
            partial(_write_config, name), lambda folder: read_hf_config(folder / "config.json"), share=0.3
        )
        for name in PUBLISHED
    }


def _write_scenario(folder: Path) -> None:
    write_scenario(
        folder,
        tiny_scenario(
            placement={"solver": "greedy", "slots": 12},
            routing={"policy": "drop", "capacity_factor": 1.25},
            faults=[{"gpu": 3, "clock": 0.8}],
            seed=3,
        ),
    )


def _write_profile(folder: Path) -> None:
    write_scenario(folder, tiny_scenario(profile="profile.yaml"))
    profile = preset_source("profiles", "generic").value
    (folder / "profile.yaml").write_text(yaml.safe_dump(profile, sort_keys=False))


def _scenario(folder: Path) -> None:
    load_scenario(str(folder / "scenario.yaml")).to_yaml()


def _deployed(folder: Path) -> None:
    deploy(load_scenario(str(folder / "scenario.yaml")))


def _write_plan(folder: Path) -> None:
    _write_scenario(folder)
    write_plan(deploy(load_scenario(str(folder / "scenario.yaml"))), folder / "plan")
    (folder / "scenario.yaml").unlink()


def _write_json(file: str, content: dict[str, Any], folder: Path) -> None:
    (folder / file).write_text(json.dumps(content))


def _write_run(folder: Path) -> None:
    result, timeline, work = example_run(layers=2, gpus=2, steps=1)
    _write_json("result.json", result, folder)
    write_timeline(timeline, folder / "timeline.parquet")
    write_work(work, folder / "work.parquet")


def _write_whatif(folder: Path) -> None:
    _write_json("whatif.json", example_comparison(example_run(layers=2, gpus=2, steps=1)[0]), folder)


def _write_validation(folder: Path) -> None:
    result, measured, simulated = example_validation(layers=2, steps=1, repeats=2)
    _write_json("validation.json", result, folder)
    write_timeline(measured, folder / "measured.parquet")
    write_timeline(simulated, folder / "simulated.parquet")


def _write_execution(folder: Path) -> None:
    _, execution, result = executed(folder)
    _write_json("execution.json", result.plain(), folder)
    write_timeline(execution.timeline, folder / "timeline.parquet")


_RUN = {"format": "moesim.run/1", **RUN}
_PEAK = {"flops": 1e12, "bandwidth": 1e11, "launch_s": 1e-6, "exchange_s": 1e-5}
_MACHINE = {"kind": "cpu", "device": "a core", "memory": 1 << 30, "sms": 1, "torch": "2", "peaks": [_PEAK]}
_SPEC = {"format": "moesim.microbench/1", "plans": ["a", "b"], **asdict(Settings(memory=1 << 30))}


def _write_execution_folder(folder: Path) -> None:
    _, timeline, work = example_run(layers=2, gpus=2, steps=1)
    _write_json("run.json", _RUN, folder)
    write_timeline(timeline, folder / "timeline.parquet")
    write_work(work, folder / "work.parquet")


READERS: dict[str, Reader] = {
    **_recordings(),
    **_placements(),
    **_configs(),
    "timeline": Reader(
        _write_run, lambda folder: read_timeline(folder / "timeline.parquet"), ("timeline.parquet",)
    ),
    "work": Reader(_write_run, lambda folder: read_work(folder / "work.parquet"), ("work.parquet",)),
    "generator": Reader(
        lambda folder: (folder / "g.yaml").write_bytes(SAMPLE_GENERATOR.read_bytes()),
        lambda folder: read_generator(folder / "g.yaml"),
        share=0.2,
    ),
    "scenario": Reader(_write_scenario, _scenario),
    "profile": Reader(_write_profile, _scenario, ("profile.yaml",)),
    "deployment": Reader(_write_scenario, _deployed, share=0.3),
    "plan": Reader(_write_plan, lambda folder: read_plan(folder / "plan")),
    "result": Reader(_write_run, lambda folder: Result.read(folder / "result.json"), ("result.json",)),
    "what-if": Reader(_write_whatif, lambda folder: Comparison.read(folder / "whatif.json")),
    "validation": Reader(
        _write_validation,
        lambda folder: ValidationResult.read(folder / "validation.json"),
        ("validation.json",),
    ),
    "execution": Reader(
        _write_execution, lambda folder: ExecutionResult.read(folder / "execution.json"), ("execution.json",)
    ),
    "report": Reader(_write_run, rebuild_report, share=0.1),
    "report, what-if": Reader(_write_whatif, rebuild_report, share=0.1),
    "report, validation": Reader(_write_validation, rebuild_report, share=0.1),
    "report, execution": Reader(
        _write_execution, rebuild_report, ("execution.json", "timeline.parquet"), share=0.1
    ),
    "executor's run": Reader(_write_execution_folder, read_execution),
    "executor's machine": Reader(
        partial(_write_json, "machine.json", {"format": "moesim.machine/1", **_MACHINE}),
        lambda folder: Machine.read(folder / "machine.json"),
    ),
    "executor's specification": Reader(
        partial(_write_json, "spec.json", _SPEC), lambda folder: Spec.read(folder / "spec.json")
    ),
    "settings": Reader(
        partial(_write_json, "spec.json", _SPEC), lambda folder: read_settings(folder / "spec.json")
    ),
}
