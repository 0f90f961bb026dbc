"""How many of something each rank has: one number, a number for each rank, or a distribution."""

from __future__ import annotations

import math
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_serializer, model_validator

from moesim.spec.base import Index, Number, Strict, fault

MOST = 1 << 24
"""Largest number of tokens that anything here may be."""


class LogNormal(Strict):
    """A log-normal distribution by its mean and the standard deviation of its logarithm."""

    mean: Annotated[Number, Field(gt=0, le=MOST)]
    sigma: Annotated[Number, Field(ge=0, le=5)]


class Amount(Strict):
    """Tokens, written as ``128``, ``[96, 128, …]`` (one for each rank), or a distribution to draw from.

    ``{uniform: [64, 256]}`` draws whole numbers, both ends included; ``{lognormal: {mean: 2000, sigma: 1}}``
    rounds to them.
    """

    each: Index | None = None
    ranks: tuple[Index, ...] | None = None
    uniform: tuple[Index, Index] | None = None
    lognormal: LogNormal | None = None

    @model_validator(mode="before")
    @classmethod
    def _written_short(cls, value: Any) -> Any:
        if isinstance(value, Amount | dict):
            return value
        if isinstance(value, list | tuple):
            return {"ranks": value}
        if isinstance(value, bool) or not isinstance(value, int):
            raise fault("must be a whole number, a list with one for each rank, or a distribution", got=value)
        if not 0 <= value <= MOST:
            raise fault(f"must be from 0 to {MOST}", got=value)
        return {"each": value}

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise fault(f"must be given in exactly one way: {', '.join(type(self).model_fields)}", got=given)
        largest = max(self.ranks or (self.each or 0,))
        if largest > MOST:
            raise fault(f"must be at most {MOST}", got=largest)
        if self.uniform is not None and not self.uniform[0] <= self.uniform[1] <= MOST:
            raise fault(f"must ascend, up to {MOST}", "uniform", got=list(self.uniform))
        return self

    @model_serializer
    def _short(self) -> Any:
        if self.each is not None:
            return self.each
        if self.ranks is not None:
            return list(self.ranks)
        if self.uniform is not None:
            return {"uniform": list(self.uniform)}
        assert self.lognormal is not None  # one of the four is there
        return {"lognormal": self.lognormal.model_dump()}

    def draw(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """``count`` values of a distribution, or ``count`` times the one number."""
        if self.uniform is not None:
            return rng.integers(self.uniform[0], self.uniform[1], count, endpoint=True)
        if self.lognormal is not None:
            # The mean of exp(N(µ, σ²)) is exp(µ + σ²/2).
            mu = math.log(self.lognormal.mean) - self.lognormal.sigma**2 / 2
            drawn = np.exp(rng.normal(mu, self.lognormal.sigma, count))
            return np.minimum(np.rint(drawn), MOST).astype(np.int64)
        assert self.each is not None  # a list has no order to draw in: use per_rank
        return np.full(count, self.each, np.int64)

    def per_rank(self, ranks: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """One value for each rank."""
        if self.ranks is not None:
            return np.array(self.ranks, np.int64)
        return self.draw(ranks, rng)
