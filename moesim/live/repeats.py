"""Timelines of one plan that was run several times, as the repeats of one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from traces.timeline import Timeline


def join_repeats(timelines: Sequence[Timeline]) -> Timeline:
    """The repeats of all timelines, numbered on from one to the next; each keeps its own clock."""
    numbered, first = [], 0
    for timeline in timelines:
        numbered.append(dataclasses.replace(timeline, repeat_N=timeline.repeat_N + np.int32(first)))
        first = int(numbered[-1].repeat_N.max(initial=first - 1)) + 1
    names = [field.name for field in dataclasses.fields(Timeline) if field.name != "run"]
    columns = {name: np.concatenate([getattr(part, name) for part in numbered]) for name in names}
    return Timeline(timelines[0].run, **columns)
