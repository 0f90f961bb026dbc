"""Who holds up each layer, how often, and why."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.analysis.cube import Cube
from moesim.analysis.culprit import Cause, Straggler
from moesim.simulation.rebalancing import Move, expert_N
from placement.problem.placement import Placement
from traces.timeline import PHASES, Timeline, WorkTable

# Below this part of the layer's own time a straggler is not worth a name.
_NEGLIGIBLE = 0.01


def stragglers(
    timeline: Timeline,
    slots: WorkTable,
    placement: Placement,
    faulty: Collection[int] = (),
    moves: Sequence[Move] = (),
) -> list[Straggler]:
    """For each MoE layer the rank that is most often the last where it counts, and the cause.

    The placement is that of the first step; ``moves`` change it.

    Last to enter the dispatch if most of what ranks wait for each other is lost before it, else last to
    finish its experts; of equal ones a ``faulty`` rank, then the lowest.
    """
    cube = Cube.of(timeline)
    seconds_WLG = cube.seconds("experts")
    end_WLG = cube.values("experts", timeline.end_s_N)
    load_WLG = cube.values("experts", timeline.assignments_N)
    arrival_WLG = cube.values("dispatch", timeline.end_s_N)
    active_WLG = cube.active_slots(slots, placement.slot_gpu_S)
    wait_WLG = cube.seconds("wait")
    after_WLG = cube.values("combine", timeline.start_s_N).max(axis=-1, keepdims=True) - end_WLG
    # Where only the MoE part of the layers runs, they begin with the router.
    attends = (timeline.phase_N == PHASES.index("attention")).any()
    begin_WLG = cube.values("attention" if attends else "router", timeline.start_s_N)
    before_WLG = np.add.reduce([cube.seconds(phase) for phase in ("attention", "router", "shared_expert")])
    layer_s_L = (end_WLG.max(axis=-1) - begin_WLG.min(axis=-1)).mean(axis=0)
    tokens_LGE = _gpu_expert_tokens(cube, slots, placement, moves)
    preferred_G = np.array(sorted(range(cube.ranks), key=lambda rank: (rank not in faulty, rank)))

    found = []
    for i, (layer, tokens_GE) in enumerate(zip(cube.layers.tolist(), tokens_LGE, strict=True)):
        lost_s = float(wait_WLG[:, i].mean())
        negligible = lost_s < _NEGLIGIBLE * layer_s_L[i]
        early = not negligible and float(after_WLG[:, i].mean()) < lost_s / 2
        last_WG = (begin_WLG + before_WLG)[:, i] if early else end_WLG[:, i]
        last_W = preferred_G[last_WG[:, preferred_G].argmax(axis=-1)]
        rank = int(np.bincount(last_W).argmax())
        when = np.flatnonzero(last_W == rank)
        last_when = last_W[when]
        late = _excess(arrival_WLG[when, i], last_when), _excess(seconds_WLG[when, i], last_when)
        ratio = [_ratio(values[when, i], rank) for values in (load_WLG, active_WLG, seconds_WLG)]
        cause: Cause
        if negligible:
            cause = "none"
        elif early:
            begun, worked = (_excess(each_WLG[:, i], last_W) for each_WLG in (begin_WLG, before_WLG))
            # After a dense layer nobody comes late from a combine.
            cause = "network" if begun > worked and layer - 1 in cube.layers else "attention"
        elif late[0] > late[1]:
            cause = "network"
        else:
            cause = "weights" if _weights_explain(*ratio) else "tokens"
        if cause != "none" and rank in faulty and (late[0] > late[1] or ratio[2] > ratio[0]):
            cause = "hardware"
        own_E = tokens_GE[rank]
        hottest = int(own_E.argmax())
        found.append(
            Straggler(
                layer=layer,
                rank=rank,
                share=len(when) / cube.steps,
                load=ratio[0],
                time=ratio[2],
                lost_s=lost_s,
                cause=cause,
                expert=hottest,
                expert_share=float(own_E[hottest] / max(own_E.sum(), 1.0)),
                expert_load=float(own_E[hottest] * cube.ranks / max(tokens_GE.sum(), 1.0)),
            )
        )
    return found


class Slowest(NamedTuple):
    """Of a layer of a real run: the rank whose experts take longest, and how far above the mean rank's."""

    layer: int
    rank: int
    lost_s: float
    cause: str = "experts"


def slowest(timeline: Timeline) -> list[Slowest]:
    """For each MoE layer of the first repeat."""
    first = timeline.select(timeline.repeat_N == timeline.repeat_N.min())
    if not (first.phase_N == PHASES.index("experts")).any():
        return []
    cube = Cube.of(first)
    seconds_LG = cube.seconds("experts").sum(axis=0)
    lost_L = seconds_LG.max(axis=1) - seconds_LG.mean(axis=1)
    rank_L = np.argmax(seconds_LG, axis=1)
    return [*map(Slowest, cube.layers.tolist(), rank_L.tolist(), lost_L.tolist())]


def _weights_explain(load: float, active: float, time: float) -> bool:
    """Whether activated slots rather than assignments make a rank slow; all relative to the mean rank."""
    return active - 1 >= (time - 1) / 2 and abs(active - time) < abs(load - time)


def _excess(values_WG: NDArray[np.float64], rank_W: NDArray[np.intp]) -> float:
    """How far the named rank of each step lies above the mean over ranks, on average."""
    own_W = np.take_along_axis(values_WG, rank_W[:, None], axis=1)[:, 0]
    return float((own_W - values_WG.mean(axis=1)).mean())


def _ratio(values_WG: NDArray[np.float64], rank: int) -> float:
    """The rank's value over the mean over ranks; 1 where nothing was done."""
    mean = float(values_WG.mean())
    return float(values_WG[:, rank].mean()) / mean if mean > 0 else 1.0


def _gpu_expert_tokens(
    cube: Cube, slots: WorkTable, placement: Placement, moves: Sequence[Move]
) -> Iterator[NDArray[np.float64]]:
    """[G, E] tokens of each expert on each GPU over all steps, layer by layer."""
    row_N = np.searchsorted(cube.layers, slots.layer_N)
    held_N = expert_N(placement, moves, slots.step_N, row_N, slots.destination_N)
    cell_N = placement.slot_gpu_S[slots.destination_N].astype(np.int64) * placement.experts + held_N
    by_layer_N = np.argsort(row_N, kind="stable")
    for of_layer_N in np.split(by_layer_N, np.searchsorted(row_N[by_layer_N], range(1, len(cube.layers)))):
        cells = placement.gpus * placement.experts
        tokens = np.bincount(cell_N[of_layer_N], slots.count_N[of_layer_N], minlength=cells)
        yield tokens.astype(np.float64).reshape(placement.gpus, placement.experts)
