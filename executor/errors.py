"""What can go wrong with a real run; the root of the tree is :mod:`traces.errors`."""

from __future__ import annotations

from traces.errors import MoesimError


class PlanError(MoesimError):
    """A plan that breaks its format, or does not fit where it is asked to run."""


class RankError(MoesimError):
    """A rank that failed while the plan ran: no fault of the input."""

    exit_code = 1
