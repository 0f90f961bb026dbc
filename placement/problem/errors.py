"""Errors of the placement floor."""

from __future__ import annotations

from traces.base.errors import MoesimError


class PlacementError(MoesimError):
    """A placement that breaks its format, or a problem that no placement satisfies."""
