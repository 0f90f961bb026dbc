"""What a routing policy gets, what it gives back, and what it may ask for."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt

from moesim.routing.counters import count, count_in_place
from moesim.routing.errors import PolicyError

NO_EXPERT = -1
"""In ``ids_TK``: this place of the token has no expert."""

Need = Literal["weights", "candidates", "placement", "categories"]

_NEEDS: dict[Need, tuple[str, str]] = {
    "weights": ("gate weights", "record the trace with weights"),
    "candidates": ("the scores of more experts than were chosen", "record the trace with candidates"),
    "placement": ("the placement", "apply it where experts are placed on GPUs"),
    "categories": ("the categories of requests", "record the trace with categories"),
}
"""In words, and how to come by them."""


@dataclass(frozen=True)
class Candidates:
    """The best experts of each token, those that it chose among them, as :mod:`.candidates` makes them.

    Attributes:
        ids_TC: int16 [T, C], C-contiguous, distinct within a token; C > K.
        scores_TC: float32 [T, C], C-contiguous, the router's scores as shares that sum to 1 within a token,
            descending.
    """

    ids_TC: npt.NDArray[np.int16]
    scores_TC: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Held:
    """Which GPU holds which expert. GPU g is home rank g.

    Attributes:
        gpus_EG: bool [E, G], C-contiguous: whether a slot of GPU g holds expert e; at least one does.
        node_G: int32 [G], the node of each GPU.
    """

    gpus_EG: npt.NDArray[np.bool_]
    node_G: npt.NDArray[np.int32]


@dataclass(frozen=True)
class Batch:
    """The routing of one MoE layer in one step: as the router chose it, or as an earlier policy left it.

    Not validated here: it is cut from a trace, which is validated where it is read.

    Attributes:
        ids_TK: int16 [T, K], C-contiguous, experts of each token, distinct within a token; −1 for none.
        weights_TK: float32 [T, K], C-contiguous, gate weights without NaN (ignored where the id is −1);
            None where the trace has none.
        offsets_G: int64 [G + 1], ascending from 0 to T: rows offsets[g] to offsets[g + 1] have their home
            on rank g.
        experts: E, logical experts of the layer.
        candidates: what the router thought of more experts; None where the trace does not say.
        held: where the experts are; None where they have no place.
        layer: true index of the layer in the model.
        draw: another number for each layer of each step, the same in every run: what a policy that draws
            seeds its randomness with, beside a seed of its own.
        category_T: int16 [T], the category of each token's request, an index into ``categories``,
            −1 = unknown; None where the trace has none.
        categories: their names.
        top_k: experts that the router chose for each token, whatever earlier policies made of them; 0 stands
            for the K of ``ids_TK``.
    """

    ids_TK: npt.NDArray[np.int16]
    weights_TK: npt.NDArray[np.float32] | None
    offsets_G: npt.NDArray[np.int64]
    experts: int
    candidates: Candidates | None = None
    held: Held | None = None
    layer: int = 0
    draw: int = 0
    category_T: npt.NDArray[np.int16] | None = None
    categories: tuple[str, ...] = ()
    top_k: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "top_k", self.top_k or self.ids_TK.shape[1])


@dataclass(frozen=True)
class Outcome:
    """The routing that a policy made of a batch, and what it did to it, counted in assignments.

    ``wished = kept + rerouted + dropped``, and ``kept + rerouted + added`` assignments are served. How they
    are told apart stands in :mod:`moesim.routing.counters`.

    Attributes:
        ids_TK: int16 [T, K'], distinct within a token, −1 where there is no assignment (any more). K' may
            differ from K.
        weights_TK: float32 [T, K'], what each output is weighted with, or None; meaningless where the id
            is −1.
        wished: assignments of the batch.
        kept: of these, those that go to the expert they asked for.
        rerouted: of these, those that go to another expert.
        dropped: of these, those that go nowhere.
        added: assignments that the batch did not ask for.
        gate_mass: sum of the gate weights of the wished assignments; None without weights.
        gate_mass_lost: the same for the dropped ones.
        room: most assignments that all experts together can get under the policy's limits; None without a
            limit. The effective capacity factor is room / wished.
    """

    ids_TK: npt.NDArray[np.int16]
    weights_TK: npt.NDArray[np.float32] | None
    wished: int
    kept: int
    rerouted: int
    dropped: int
    added: int
    gate_mass: float | None
    gate_mass_lost: float | None
    room: int | None = None


@dataclass(frozen=True)
class Cost:
    """What a policy does on a GPU beside the router: how often its kernels go over which table.

    Each pass is a kernel of its own, which reads or writes its table once.

    Attributes:
        assignments: passes over [T, K] ids and weights.
        candidates: passes over [T, E] scores.
        exchanges: collectives in which every rank tells all others E numbers.
    """

    assignments: int = 0
    candidates: int = 0
    exchanges: int = 0


class Policy(Protocol):
    """A rule that changes routing. Implementations are frozen dataclasses whose fields are its parameters.

    A parameter that the model limits says so in its metadata (``moesim.routing.parameters``). A policy after
    which a token may have more experts than it chose has ``widens = True``.
    """

    name: ClassVar[str]
    """Its key in the dictionary of policies."""

    @property
    def needs(self) -> frozenset[Need]:
        """What it needs beside the chosen experts."""

    @property
    def cost(self) -> Cost:
        """An estimate of its own work."""

    def apply(self, batch: Batch) -> Outcome:
        """The routing after this policy; ``batch`` stays as it is.

        Raises:
            PolicyError: the batch lacks what the policy needs.
        """


def known_needs(*, weights: bool, candidates: bool, categories: bool) -> frozenset[Need]:
    """What policies may ask for where their tokens are placed, and what else is there."""
    known: dict[Need, bool] = {
        "weights": weights,
        "candidates": candidates,
        "placement": True,
        "categories": categories,
    }
    return frozenset(need for need, there in known.items() if there)


def check_needs(policies: Iterable[Policy], known: Collection[Need]) -> None:
    """Refuse policies that need what is not known.

    Raises:
        PolicyError: naming what it needs, and the way out.
    """
    for policy in policies:
        for need in _NEEDS:
            if need in policy.needs and need not in known:
                raise _lacks(policy, need)


def weights_of(batch: Batch, policy: Policy) -> npt.NDArray[np.float32]:
    """The gate weights, which ``policy`` needs.

    Raises:
        PolicyError: the batch has none.
    """
    if batch.weights_TK is None:
        raise _lacks(policy, "weights")
    return batch.weights_TK


def candidates_of(batch: Batch, policy: Policy) -> Candidates:
    """The candidates, which ``policy`` needs.

    Raises:
        PolicyError: the batch has none.
    """
    if batch.candidates is None:
        raise _lacks(policy, "candidates")
    return batch.candidates


def held_of(batch: Batch, policy: Policy) -> Held:
    """Where experts are, which ``policy`` needs.

    Raises:
        PolicyError: the batch does not say.
    """
    if batch.held is None:
        raise _lacks(policy, "placement")
    return batch.held


def categories_of(batch: Batch, policy: Policy) -> npt.NDArray[np.int16]:
    """The category of each token's request, which ``policy`` needs.

    Raises:
        PolicyError: the batch has none.
    """
    if batch.category_T is None:
        raise _lacks(policy, "categories")
    return batch.category_T


def _lacks(policy: Policy, need: Need) -> PolicyError:
    what, way_out = _NEEDS[need]
    rule = f"policy {policy.name} needs {what}, which are not known here: {way_out}, or name another policy"
    return PolicyError(rule, field="routing.policy", got=policy.name)


def outcome(
    batch: Batch,
    ids_TK: npt.NDArray[np.int16],
    weights_TK: npt.NDArray[np.float32] | None,
    room: int | None = None,
    *,
    in_place: bool = False,
) -> Outcome:
    """What became of each assignment of ``batch`` now that its tokens visit ``ids_TK``.

    Args:
        in_place: whether all that is new stands where what it stands for stood, as
            :func:`moesim.routing.counters.count_in_place` has it: counted faster.
    """
    found = (count_in_place if in_place else count)(batch.ids_TK, ids_TK, batch.weights_TK)
    return Outcome(
        ids_TK=ids_TK,
        weights_TK=weights_TK,
        wished=found.kept + found.rerouted + found.dropped,
        kept=found.kept,
        rerouted=found.rerouted,
        dropped=found.dropped,
        added=found.added,
        gate_mass=found.mass,
        gate_mass_lost=found.mass_lost,
        room=room,
    )
