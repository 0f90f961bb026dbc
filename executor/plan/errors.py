"""What can go wrong with a real run; the root of the tree is :mod:`traces.base.errors`."""

from __future__ import annotations

from traces.base.errors import MoesimError


class PlanError(MoesimError):
    """A plan that breaks its format, or does not fit where it is asked to run."""


class RankError(MoesimError):
    """A rank that failed while the plan ran: no fault of the input."""

    exit_code = 1
