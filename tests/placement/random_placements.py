"""Random valid placements for property tests."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from placement.problem.placement import EMPTY, Placement


@st.composite
def placements(draw: st.DrawFn) -> Placement:
    """Any valid placement of a few experts: slots in any GPU order, some empty, GPUs with none."""
    experts = draw(st.integers(1, 6))
    gpus = draw(st.integers(1, 4))
    layers = sorted(draw(st.sets(st.integers(0, 99), min_size=1, max_size=3)))
    extra = draw(st.integers(0, 6))
    rows = []
    for _ in layers:
        filling = draw(st.lists(st.integers(EMPTY, experts - 1), min_size=extra, max_size=extra))
        rows.append(draw(st.permutations([*range(experts), *filling])))
    slots = experts + extra
    slot_gpu = draw(st.lists(st.integers(0, gpus - 1), min_size=slots, max_size=slots))
    return Placement(
        np.array(rows),
        np.array(slot_gpu),
        experts,
        gpus,
        tuple(layers),
        draw(st.sampled_from(["", 'é, "x"'])),
    )
