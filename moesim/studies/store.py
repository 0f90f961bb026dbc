"""Finished results kept in a folder, so that a what-if goes on where it was interrupted."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from moesim import __version__
from moesim.analysis.result_file import Result
from moesim.deployment.reading import load_trace
from moesim.errors import MoesimError, OutputError
from moesim.routing.policies import policies_from
from moesim.spec.scenario import Scenario
from traces.base.door import open_file
from traces.base.files import write_text
from traces.routing import RoutingTrace


class Store:
    """A folder with one ``result.json`` for each simulated scenario, named by all that determines it.

    The folder is made with the first result, so that refused input leaves nothing behind.
    """

    def __init__(self, folder: Path, samples: int = 0) -> None:
        """``samples``: how many profiles are drawn for the intervals of each result."""
        self._folder, self._samples = folder, samples
        self._trace: RoutingTrace | None = None
        self._digest = ""

    def find(self, scenario: Scenario) -> Result | None:
        """The stored result; None if there is none, or what is there is damaged or of something else."""
        path = self._path(scenario)
        if not path.exists():
            return None
        try:
            found = Result.read(path)
        except MoesimError:
            return None
        same = found.scenario == scenario.resolved() and found.provenance.get("moesim") == __version__
        return found if same else None

    def keep(self, scenario: Scenario, result: Result) -> None:
        """Store a result, whole or not at all.

        Raises:
            OutputError: the folder cannot be written.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot be written: {error.strerror or error}", file=self._folder) from error
        write_text(self._path(scenario), json.dumps(result.plain(), allow_nan=False))

    def _path(self, scenario: Scenario) -> Path:
        parts = {
            "scenario": scenario.resolved(),
            "trace": self._trace_digest(scenario),
            "placement": _content(scenario.placement.file),
            "policies": _modules(scenario),
            "version": __version__,
            # Older points, without intervals, are still found where none are asked for.
            **({"samples": self._samples} if self._samples else {}),
        }
        key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
        return self._folder / f"{key}.json"

    def _trace_digest(self, scenario: Scenario) -> str:
        """Hash of the trace's content; points mostly share one trace, which is hashed once."""
        trace = load_trace(scenario)
        if trace is not self._trace:
            self._trace, self._digest = trace, trace.digest()
        return self._digest


def _modules(scenario: Scenario) -> list[str | None]:
    """Hash of the module of each policy: users change their own, of which the scenario has only the name."""
    modules = (sys.modules[type(policy).__module__] for policy in policies_from(scenario.routing))
    return [_content(getattr(module, "__file__", None)) for module in modules]


def _content(file: str | None) -> str | None:
    """Hash of a file; None where there is none, which the simulation will refuse."""
    if file is None:
        return None
    try:
        stream = open_file(file, "a file", MoesimError, empty=True)
    except MoesimError:
        return None
    with stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
