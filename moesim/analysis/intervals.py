"""90 % intervals: the same counted steps at the prices of many profiles, as likely as the one asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from moesim.analysis.result_file import Attribution, Intervals, Result
from moesim.errors import SpecError
from moesim.spec.profile import Profile

FEWEST: Final = 10
MOST: Final = 1000
"""Draws: with fewer the ends of an interval say nothing, with more they hardly move."""

_ENDS: Final = (5, 95)


def drawn_profiles(profile: Profile, samples: int) -> list[Profile]:
    """As many profiles as are asked for; none where no intervals are.

    Raises:
        SpecError: too few draws or too many, or the profile does not say how far it may be off.
    """
    check_samples(samples)
    if not samples:
        return []
    if not profile.uncertainty:
        raise SpecError(
            f"the profile {profile.name} does not say how far its figures may be off: leave --samples out, "
            "or give it `uncertainty`, as docs/hardware.md says",
            file="--samples",
            got=samples,
        )
    return profile.draws(samples)


def check_samples(samples: int) -> None:
    """Refuse a number of draws that no run takes.

    Raises:
        SpecError: too few or too many.
    """
    if samples and not FEWEST <= samples <= MOST:
        raise SpecError(f"must be 0, or {FEWEST} to {MOST}", file="--samples", got=samples)


def intervals(terms_D: Sequence[Attribution], tokens_per_step: float) -> Intervals:
    """What the draws say of a run.

    Args:
        terms_D: of a mean step with each of the profiles.
        tokens_per_step: of all ranks together.
    """
    step_s_D = [terms.step_s for terms in terms_D]
    names = [name.removesuffix("_s") for name, cost_s in terms_D[0] if cost_s is not None]
    return Intervals(
        samples=len(terms_D),
        step_time_s=ends(step_s_D),
        tokens_per_s=ends([tokens_per_step / step_s for step_s in step_s_D]),
        attribution={f"{name}_s": ends([terms.seconds(name) for terms in terms_D]) for name in names},
        drawn_step_s=step_s_D,
    )


def ends(values_D: Sequence[float]) -> list[float]:
    """The quantiles between which nine of ten draws lie."""
    found: list[float] = np.percentile(values_D, _ENDS).tolist()
    return found


def drawn_tokens_per_s(result: Result) -> NDArray[np.float64]:
    """[D]: of each draw."""
    found = result.intervals
    assert found is not None  # whoever compares draws has asked for them
    tokens = result.metrics.tokens_per_s * result.metrics.step_time_s.mean
    return tokens / np.array(found.drawn_step_s, np.float64)


def faster_shares(results: Sequence[Result]) -> list[list[float]]:
    """[R][R]: the share of draws in which the row's run serves more tokens a second than the column's."""
    rate_RD = np.array([drawn_tokens_per_s(result) for result in results])
    shares: list[list[float]] = (rate_RD[:, None] > rate_RD[None]).mean(axis=-1).tolist()
    return shares
