"""A step's work spread evenly over the GPUs, one cause of unevenness after another: homes, experts, traffic.

Axes: L MoE layers, G GPUs, S slots, C kinds of experts. Counts become float64, for means are fractions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moesim.dispatch.count import padded
from moesim.dispatch.work import Counts
from moesim.hardware.kernels import Kernels
from moesim.simulation.part import Attended, Home, Part

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Pairs:
    """Which pairs of GPUs are alike for a hop: those of a node, and those of two nodes.

    Attributes:
        gpus: G.
        gpus_per_node: P; GPU g stands in node g // P.
        relayed: whether copies for another node go to the rail mate there, and to no other GPU.
    """

    gpus: int
    gpus_per_node: int
    relayed: bool

    def classes(self) -> list[NDArray[np.bool_]]:
        """[G, G] each."""
        node_G, rail_G = np.divmod(np.arange(self.gpus), self.gpus_per_node)
        same_GG = node_G[:, None] == node_G[None, :]
        other_GG = ~same_GG & (rail_G[:, None] == rail_G[None, :]) if self.relayed else ~same_GG
        return [same_GG & ~np.eye(self.gpus, dtype=bool), other_GG]


@dataclass(frozen=True)
class EvenHomes:
    """Tokens, keys and logits that every rank has the mean of."""

    uneven: Home

    @property
    def tokens_G(self) -> FloatArray:
        """Tokens at home on each rank."""
        return mean_G(self.uneven.tokens_G)

    @property
    def last_G(self) -> FloatArray:
        """Tokens of each rank whose logits are asked for."""
        return mean_G(self.uneven.last_G)

    @property
    def prefilling_G(self) -> FloatArray:
        """Tokens of each rank that are of chunks."""
        return mean_G(self.uneven.prefilling_G)

    def keys_G(self, attended: Attended, *, prefill: bool) -> FloatArray:
        """Keys that each rank's tokens attend to, summed."""
        return mean_G(self.uneven.keys_G(attended, prefill=prefill))


@dataclass(frozen=True, kw_only=True)
class EvenExperts(Part):
    """A part whose experts have the same to do on every GPU.

    Attributes:
        rows_LC: assignments of each GPU to experts of each kind.
        active_LC: slots of each GPU that share them evenly.
    """

    rows_LC: FloatArray
    active_LC: FloatArray

    def experts_s(self, kernels: Kernels, slot_gpu_S: NDArray[np.int32]) -> FloatArray:
        """[L, G] seconds of the experts' kernels; every GPU takes the same."""
        seconds_L1 = kernels.even_experts(self.rows_LC, self.active_LC)[:, None]
        return np.repeat(seconds_L1, len(self.tokens.tokens_G), axis=1)


def even_homes(part: Part, pairs: Pairs) -> Part:
    """Every GPU the mean of home tokens and keys, and copies as if so many had left each GPU.

    Rows of the copies are scaled to the mean home, then each class of pairs to its old total; a rank
    without tokens gets the mean row. Where tokens are not at home, their copies stay as they are.
    """
    tokens_G, work = part.tokens.tokens_G, part.work
    part = replace(part, tokens=EvenHomes(part.tokens))
    if work.returned_LGG is not None or not tokens_G.any() or (tokens_G == tokens_G[0]).all():
        return part
    scale_G = tokens_G.mean() / np.where(tokens_G, tokens_G, np.inf)
    before_LGG = work.sent_LGG if work.asked_LGG is None else work.asked_LGG
    empty_LG = np.broadcast_to(tokens_G == 0, before_LGG.shape[:2])
    sent_LGG = _scaled(before_LGG, np.broadcast_to(scale_G, before_LGG.shape[:2]), empty_LG, pairs)
    _, other_GG = pairs.classes()
    # An entry GPU relays as much more as comes to it from other nodes.
    fed_LG, was_LG = ((copies_LGG * other_GG).sum(axis=1) for copies_LGG in (sent_LGG, before_LGG))
    idle_LG = was_LG == 0
    grown_LG = fed_LG / np.where(idle_LG, np.inf, was_LG)
    relayed_LGG = _scaled(work.relayed_LGG, grown_LG, idle_LG & (fed_LG > 0), pairs)
    if work.asked_LGG is not None:
        return replace(part, work=padded(replace(work, asked_LGG=sent_LGG)))
    return replace(part, work=replace(work, sent_LGG=sent_LGG, relayed_LGG=relayed_LGG))


def even_experts(part: Part, kinds: int) -> EvenExperts:
    """Every GPU the mean of distinct tokens, assignments and active slots, its rows even over these slots."""
    work, gpus = part.work, len(part.tokens.tokens_G)
    kind_LS = np.zeros(work.tokens_LS.shape, np.int16) if part.kind_LS is None else part.kind_LS
    own_LSC = work.tokens_LS[:, :, None] * (kind_LS[:, :, None] == np.arange(kinds))
    return EvenExperts(
        part.tokens,
        replace(work, served_LG=mean_G(work.served_LG), unique_LG=mean_G(work.unique_LG)),
        part.kind_LS,
        rows_LC=own_LSC.sum(axis=1) / gpus,
        active_LC=(own_LSC > 0).sum(axis=1) / gpus,
    )


def even_traffic(part: EvenExperts, pairs: Pairs) -> EvenExperts:
    """Copies of each hop the mean over pairs that are alike; padded pairs send the mean of what was asked."""
    work, classes = part.work, pairs.classes()
    if work.asked_LGG is not None:
        apart_GG = ~np.eye(pairs.gpus, dtype=bool)
        return replace(part, work=replace(work, sent_LGG=_mean_of(work.asked_LGG, [apart_GG])))
    returned_LGG = work.returned_LGG
    return replace(
        part,
        work=replace(
            work,
            sent_LGG=_mean_of(work.sent_LGG, classes),
            relayed_LGG=_mean_of(work.relayed_LGG, classes),
            returned_LGG=None if returned_LGG is None else _mean_of(returned_LGG, classes),
        ),
    )


def even_routing(part: EvenExperts, slots_LC: FloatArray) -> EvenExperts:
    """The same after a router that chooses all experts equally often, with every slot that this fills.

    Args:
        slots_LC: slots of each kind on a GPU.
    """
    share_LC = slots_LC / slots_LC.sum(axis=1, keepdims=True)
    rows_LC = part.rows_LC.sum(axis=1, keepdims=True) * share_LC
    return replace(part, rows_LC=rows_LC, active_LC=np.minimum(slots_LC, rows_LC))


def fewest_slots(part: EvenExperts) -> EvenExperts:
    """The same with the fewest active slots that the assignments allow: a token visits an expert once."""
    tokens = max(1.0, float(part.tokens.tokens_G.sum()))
    return replace(part, active_LC=np.ceil(part.rows_LC / tokens))


def mean_G(values_XG: Counts) -> FloatArray:
    """The mean over the last axis, everywhere on it."""
    means: FloatArray = np.broadcast_to(values_XG.mean(axis=-1, keepdims=True), values_XG.shape)
    return means


def _scaled(
    copies_LGG: Counts, scale_LG: FloatArray, empty_LG: NDArray[np.bool_], pairs: Pairs
) -> FloatArray:
    """Rows times a factor, those that were empty the mean of the others, and the old total of each class."""
    scaled_LGG = copies_LGG * scale_LG[:, :, None]
    for alike_GG in pairs.classes():
        filled_LGG = alike_GG & ~empty_LG[:, :, None]
        own_L11 = np.where(filled_LGG, scaled_LGG, 0.0).sum(axis=(1, 2), keepdims=True)
        mean_L11 = own_L11 / np.maximum(filled_LGG.sum(axis=(1, 2), keepdims=True), 1)
        scaled_LGG = np.where(alike_GG & empty_LG[:, :, None], mean_L11, scaled_LGG)
        was_L11, now_L11 = (
            np.where(alike_GG, each_LGG, 0.0).sum(axis=(1, 2), keepdims=True)
            for each_LGG in (copies_LGG, scaled_LGG)
        )
        scaled_LGG = np.where(alike_GG, scaled_LGG * (was_L11 / np.where(now_L11, now_L11, 1.0)), scaled_LGG)
    return scaled_LGG


def _mean_of(copies_LGG: Counts, classes: list[NDArray[np.bool_]]) -> FloatArray:
    """[L, G, G]: in each class the mean of its pairs."""
    even_LGG = np.zeros(copies_LGG.shape)
    for alike_GG in classes:
        if alike_GG.any():
            even_LGG[:, alike_GG] = copies_LGG[:, alike_GG].mean(axis=1, keepdims=True)
    return even_LGG
