"""Hardware that is slower than it should be."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from moesim.spec.base import Index, Number, Part, Strict, fault


class Fault(Strict):
    """One device that runs at a part of its speed, from a time on; or kernels whose duration jitters.

    ``{gpu: 3, clock: 0.8}``: arithmetic of GPU 3 at 80 %; its memory is not slowed.
    ``{nic: 5, bandwidth: 0.5, from_s: 0.1}``: the NIC of GPU 5 at half its bandwidth, from 0.1 s on.
    ``{nvlink: 2, bandwidth: 0.25}``: the NVLink port of GPU 2.
    ``{jitter: 0.02}`` or ``{gpu: 3, jitter: 0.1}``: every kernel (of GPU 3) takes exp(σ·z) times as long,
    z standard normal, drawn from the scenario's seed.
    """

    gpu: Index | None = None
    nic: Index | None = None
    nvlink: Index | None = None
    clock: Part | None = None
    bandwidth: Part | None = None
    jitter: Annotated[Number, Field(gt=0, le=2)] | None = None
    from_s: Annotated[Number, Field(ge=0, le=1e9)] = 0.0

    @model_validator(mode="after")
    def _names_one_device_and_one_effect(self) -> Self:
        devices = [name for name in ("gpu", "nic", "nvlink") if getattr(self, name) is not None]
        effects = [name for name in ("clock", "bandwidth", "jitter") if getattr(self, name) is not None]
        if len(effects) != 1:
            raise fault("must have exactly one of clock, bandwidth and jitter", got=effects)
        wanted = {"clock": (["gpu"],), "bandwidth": (["nic"], ["nvlink"]), "jitter": ([], ["gpu"])}[
            effects[0]
        ]
        if devices not in wanted:
            ways = " or ".join(way[0] if way else "no device" for way in wanted)
            raise fault(f"names no device that {effects[0]} fits: {ways}", got=devices)
        if self.jitter is not None and self.from_s:
            raise fault("jitter is there from the start", "from_s", got=self.from_s)
        return self

    @property
    def device(self) -> int | None:
        """The rank of the device; None for all GPUs."""
        for rank in (self.gpu, self.nic, self.nvlink):
            if rank is not None:
                return rank
        return None
