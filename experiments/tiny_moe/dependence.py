"""What the router looks at: the byte, its surroundings, or neither.

Two tokens of the same byte, at random places of the text, have more experts in common than two tokens at
random, as far as the byte decides. The rest of what decides is context.

Axes: T tokens, L MoE layers, K experts per token.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from rich.table import Table

from traces.full_statistics import FullStatistics, full_statistics
from traces.routing import RoutingTrace

Integers = npt.NDArray[np.integer]


@dataclass(frozen=True)
class Similarity:
    """Mean Jaccard similarity of the experts of two tokens in a layer: those in both over those in either."""

    layer: int
    same_byte: float
    at_random: float


def similarity(trace: RoutingTrace, byte_T: Integers, seed: int = 0) -> list[Similarity]:
    """For each layer, every token beside another one of its byte, and beside any other one.

    Args:
        byte_T: the byte that each token of the trace reads.
        seed: of who is beside whom.
    """
    rng = np.random.default_rng(seed)
    same_T, any_T = _partners(byte_T, rng), _partners(np.zeros_like(byte_T), rng)
    return [
        Similarity(layer, _jaccard(ids_TK, same_T), _jaccard(ids_TK, any_T))
        for layer, ids_TK in zip(trace.meta.layers, trace.ids_TLK.transpose(1, 0, 2), strict=True)
    ]


def _partners(kind_T: Integers, rng: np.random.Generator) -> Integers:
    """For each token another one of its kind; itself where it is the only one.

    Tokens of a kind stand in a random circle, each beside the next one.
    """
    order_T = rng.permutation(len(kind_T))
    order_T = order_T[np.argsort(kind_T[order_T], kind="stable")]
    kinds_T = kind_T[order_T]
    last_N = np.append(np.flatnonzero(kinds_T[1:] != kinds_T[:-1]), len(kinds_T) - 1)
    next_T = np.roll(order_T, -1)
    next_T[last_N] = order_T[np.append(0, last_N[:-1] + 1)]
    partner_T = np.empty_like(order_T)
    partner_T[order_T] = next_T
    return partner_T


def _jaccard(ids_TK: Integers, partner_T: Integers) -> float:
    """Mean over the tokens that have a partner."""
    others = partner_T != np.arange(len(partner_T))
    ids_TK, other_TK = ids_TK[others], ids_TK[partner_T[others]]
    common_T = (ids_TK[:, :, None] == other_TK[:, None, :]).sum(axis=(1, 2))
    return float((common_T / (2 * ids_TK.shape[1] - common_T)).mean())


def dependence_tables(trace: RoutingTrace, byte_T: Integers) -> list[Table]:
    """What decides in each layer, and how the loads of the domains differ."""
    found: FullStatistics = full_statistics(trace)
    layers = Table(title="experts in common, Jaccard similarity", title_justify="left")
    for column in ("layer", "tokens of the same byte", "tokens at random", "ratio", "load: max / mean"):
        layers.add_column(column, justify="right")
    for row, base in zip(similarity(trace, byte_T), found.base.layers, strict=True):
        layers.add_row(
            str(row.layer),
            f"{row.same_byte:.3f}",
            f"{row.at_random:.3f}",
            f"{row.same_byte / row.at_random:.2f}",
            f"{base.max_over_mean:.2f}",
        )
    domains = Table(title="loads of the domains, mean over layers", title_justify="left")
    for column in ("domain", "max / mean", "differs from the rest", "by chance"):
        domains.add_column(column, justify="left" if column == "domain" else "right")
    for part in found.categories:
        domains.add_row(
            part.name, f"{part.max_over_mean:.2f}", f"{part.distance or 0:.1%}", f"{part.by_chance or 0:.1%}"
        )
    return [layers, domains]
