"""What a placement is judged by: one sum of costs, of which any may be zero."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from placement.problem.errors import PlacementError


@dataclass(frozen=True)
class Objective:
    """Cost of one layer, to be made small; the cost of a placement is the sum over its layers.

    ::

        over windows( max over GPUs( (per_token · tokens + per_active · active experts) / speed )
                      + per_copy · copies across nodes )
        + per_move · moved copies

    ``Objective()`` is the balance of tokens: the largest load of a GPU, in tokens. ``per_token`` in
    seconds per token and ``per_active`` in seconds per activated expert make it seconds: decoding reads
    the weights of each expert that got a token, whatever their number (METRO, arXiv 2512.09277).
    ``Objective(per_token=0, per_copy=1)`` counts copies across nodes alone.

    Attributes:
        per_token: cost of one token (assignment) on a GPU of speed 1.
        per_active: cost of one expert that gets at least one token of a batch, on a GPU of speed 1.
        per_copy: cost of one token sent to another node. All of a window's copies are added up, so the
            figure has to allow for how many links share them.
        per_move: cost of one expert copy that is not where the previous placement has it.
        worst_window: take the worst window instead of the mean over windows.

    Raises:
        PlacementError: a cost is negative or not finite, or all that depend on loads are zero.
    """

    per_token: float = 1.0
    per_active: float = 0.0
    per_copy: float = 0.0
    per_move: float = 0.0
    worst_window: bool = False

    def __post_init__(self) -> None:
        for field in fields(self)[:4]:
            cost = getattr(self, field.name)
            if isinstance(cost, bool) or not isinstance(cost, int | float):
                raise PlacementError("must be a number", field=f"objective.{field.name}", got=cost)
            if not (math.isfinite(cost) and cost >= 0):
                raise PlacementError(
                    "must be finite and not negative", field=f"objective.{field.name}", got=cost
                )
        if self.per_token == self.per_active == self.per_copy == 0:
            raise PlacementError(
                "needs a cost above 0 per token, per active expert or per copy", field="objective"
            )
