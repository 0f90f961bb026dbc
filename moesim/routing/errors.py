"""What can go wrong with a routing policy; the root of the tree is :mod:`traces.base.errors`."""

from __future__ import annotations

from traces.base.errors import MoesimError


class PolicyError(MoesimError):
    """A routing policy whose parameters or inputs do not suffice."""
