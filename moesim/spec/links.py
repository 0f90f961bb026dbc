"""What the transfer kernels of a dispatch mode reach: shares of links, rates, and what no byte explains."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import model_validator

from moesim.spec.base import Count, Index, Many, Strict, fault
from moesim.spec.uncertainty import Rate, Seconds, Share

_NEAR = 4
"""Where one number says what was fitted: so many times more or fewer tokens are near enough."""


class Links(Strict):
    """What the transfer kernels of one dispatch mode reach.

    A collective takes its floor; then its bytes over links, of which ``rate`` of each multiprocessor may let
    less through than the shares would; then what the busiest multiprocessor has more to do than the others.

    Attributes:
        nvlink, nic: shares of the links' bandwidths.
        rate: bytes per second that each of the ``sms`` multiprocessors sends, and as many that it receives;
            None where they never limit.
        spread: of c copies for each multiprocessor, the busiest one handles ``spread`` · √c more: copies
            fall on them as chance has it. Needs ``rate``.
        fixed: seconds of each dispatch, and of each combine unless ``fixed_combine`` says other, that no
            byte explains: launches, barriers, the exchange of counts between kernels.
        fixed_combine: those of a combine.
        grows: further seconds of both for each doubling of the nodes.
        counts: further seconds of each dispatch, in which counts are exchanged before rows.
        host: seconds of each dispatch in which GPUs idle because the host waits for those counts before it
            can launch what follows.
        arrange: share of the memory bandwidth at which served rows are read and written once more: after a
            dispatch into expert order, before a combine back. None where the transfer kernels hide it.
        align: rows to which each slot's are padded for the experts' grouped GEMMs: 128 in the contiguous
            layout of DeepGEMM, for which high-throughput kernels can lay tokens out; 1 in its masked layout,
            that of low-latency kernels, where tiles without a row are skipped.
        sms: multiprocessors that the transfer kernels occupy, which others beside them lack.
        fitted_tokens: tokens a GPU on which these were fitted, from and to; or one number, near which.
        fitted_gpus: GPUs of the groups on which they were fitted, from and to.
    """

    nvlink: Share
    nic: Share
    rate: Rate | None = None
    spread: Many = 0.0
    fixed: Seconds = 0.0
    fixed_combine: Seconds | None = None
    grows: Seconds = 0.0
    counts: Seconds = 0.0
    host: Seconds = 0.0
    arrange: Share | None = None
    align: Count = 1
    sms: Index = 0
    fitted_tokens: Count | tuple[Count, Count] | None = None
    fitted_gpus: tuple[Count, Count] | None = None

    @model_validator(mode="after")
    def _multiprocessors_carry(self) -> Self:
        if self.rate is not None and not self.sms:
            raise fault("is that of each multiprocessor: needs sms, their number", "rate", got=self.rate)
        if self.spread and self.rate is None:
            raise fault("needs the rate of a multiprocessor", "spread", got=self.spread)
        return self

    @model_validator(mode="after")
    def _ranges_ascend(self) -> Self:
        for name in ("fitted_tokens", "fitted_gpus"):
            found = getattr(self, name)
            if isinstance(found, tuple) and found[0] > found[1]:
                raise fault("must ascend", name, got=list(found))
        return self

    def bandwidth(self, share: float, line: float) -> float:
        """Bytes per second of a link: a share of the line, or what the multiprocessors carry."""
        return share * line if self.rate is None else min(share * line, self.sms * self.rate)

    def over(self, nodes: int) -> Links:
        """The same with the floors that a group over so many nodes has."""
        if not self.grows:
            return self
        more = self.grows * math.log2(nodes)
        back = self.floor_s("combine") + more
        return self.model_copy(update={"fixed": self.fixed + more, "fixed_combine": back, "grows": 0.0})

    def alone(self) -> Links:
        """The same for a single GPU, whose collectives are none."""
        return self.model_copy(update={"fixed": 0.0, "fixed_combine": 0.0, "counts": 0.0, "host": 0.0})

    def floor_s(self, phase: Literal["dispatch", "combine"]) -> float:
        """Seconds of a dispatch or a combine that moves nothing, the host's apart."""
        if phase == "combine":
            return self.fixed if self.fixed_combine is None else self.fixed_combine
        return self.fixed + self.counts

    def beyond(self, tokens: float, gpus: int) -> str:
        """What these were fitted on, where ``tokens`` a GPU on ``gpus`` GPUs lie outside; else empty."""
        seen, groups = self.fitted_tokens, self.fitted_gpus
        least, most = (seen / _NEAR, seen * _NEAR) if isinstance(seen, int) else seen or (0, math.inf)
        fewest, largest = groups or (1, math.inf)
        if least <= tokens <= most and fewest <= gpus <= largest:
            return ""
        parts = [] if seen is None else [f"{_range(seen)} tokens a GPU"]
        return " and ".join(parts if groups is None else [*parts, f"{_range(groups)} GPUs"])


def _range(found: int | tuple[int, int]) -> str:
    """1 to 4,096; one number where both ends are the same.

    >>> _range((1, 4096)), _range((16, 16)), _range(128)
    ('1 to 4,096', '16', 'about 128')
    """
    if isinstance(found, int):
        return f"about {found:,}"
    least, most = found
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"
