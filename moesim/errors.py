"""Every error that a user can cause, in one tree.

::

    MoesimError                 exit code 2: the input is at fault
    ├── TraceError              traces: a routing trace
    ├── LoadTableError          traces: a table of expert loads
    ├── TimelineError           traces: a timeline or work file
    ├── OutputError             traces: a result that cannot be written
    ├── PlacementError          placement: a placement, or a problem without one
    ├── SpecError               moesim.spec: a YAML file, preset or option
    │   └── UnitError           moesim.units: a quantity with a wrong or missing unit
    ├── MemoryFitError          moesim.simulation: the model does not fit the GPUs
    ├── CalibrationError        moesim.calibration: measurements that no profile follows from; exit code 1
    ├── PolicyError             moesim.routing: a policy that lacks what it needs
    ├── PlanError               executor: a plan, or one that does not fit where it is to run
    ├── RankError               executor: a rank that failed; exit code 1
    └── ExecutionError          moesim.execution: a real run that did not end well; mostly exit code 1

Only ``moesim.commands.cli`` turns them into a line and an exit code.
"""

from __future__ import annotations

from collections.abc import Sequence

from moesim.routing.errors import PolicyError
from placement.problem.errors import PlacementError
from traces.base.errors import LoadTableError, MoesimError, OutputError, TimelineError, TraceError


class SpecError(MoesimError):
    """A specification (YAML file, preset, or option) that is malformed or contradicts itself."""


class UnitError(SpecError):
    """A quantity whose unit is missing, unknown, or of another dimension."""


class MemoryFitError(MoesimError):
    """The model, its KV cache and its buffers need more memory than a GPU has."""


class CalibrationError(MoesimError):
    """Measurements from which no profile follows: no fault of the input."""

    exit_code = 1


class ExecutionError(MoesimError):
    """A real run that could not start, or did not end well."""

    def __init__(self, rule: str, *, exit_code: int = 1, log: Sequence[str] = ()) -> None:
        super().__init__(rule)
        self.exit_code, self.log = exit_code, log


__all__ = [
    "CalibrationError",
    "ExecutionError",
    "LoadTableError",
    "MemoryFitError",
    "MoesimError",
    "OutputError",
    "PlacementError",
    "PolicyError",
    "SpecError",
    "TimelineError",
    "TraceError",
    "UnitError",
]
