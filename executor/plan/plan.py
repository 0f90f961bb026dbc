"""A plan: all that a real run knows.

Axes: N steps, T tokens of all steps in the order they run, L MoE layers, K experts per token, E logical
experts, S slots, R most replicas of an expert, G ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moesim.routing.candidates import candidates
from moesim.routing.copies import Copies
from moesim.routing.halves import first_half_T
from moesim.routing.policy import Batch, Candidates

DTYPES = ("fp32", "bf16", "fp16")
OVERLAPS = ("shared_expert", "two_batch")


@dataclass(frozen=True)
class Kind:
    """A kind of experts, and the width of their inner vector."""

    name: str
    width: int


@dataclass(frozen=True)
class MoeShape:
    """The MoE layers of a model, all of one shape but for the width of their experts.

    Attributes:
        hidden, width: of a token's vector, and of an expert's inner one, the widest one's where they differ.
        gated: whether an expert is down(silu(gate x) · up x), rather than down(silu(up x)).
        experts, top_k: logical experts of a layer, and how many of them a token visits.
        shared_width: inner width of the expert that every token visits at home; 0 without one.
        layers: true indices in the model, ascending.
        kinds: kinds of experts of several widths; none where all are of ``width``.
        kind_LE: the kind of each expert of each layer, an index into ``kinds``.
    """

    name: str
    hidden: int
    width: int
    gated: bool
    experts: int
    top_k: int
    shared_width: int
    layers: tuple[int, ...]
    kinds: tuple[Kind, ...] = ()
    kind_LE: tuple[tuple[int, ...], ...] = ()

    def width_of(self, layer: int, expert: int) -> int:
        """The inner width of a slot of ``layer`` (true index) that holds ``expert``, or none (-1).

        An empty slot is as wide as the others where all experts are equally wide, and else 0.
        """
        if not self.kinds:
            return self.width
        return 0 if expert < 0 else self.kinds[self.kind_LE[self.layers.index(layer)][expert]].width


@dataclass(frozen=True)
class Others:
    """Scores of C experts of each token, those that it chose among them.

    Attributes:
        ids_TLC, scores_TLC: int16 and float32, as the trace has them.
        logits: whether the scores are logits.
    """

    ids_TLC: npt.NDArray[np.int16]
    scores_TLC: npt.NDArray[np.float32]
    logits: bool

    def of(self, tokens: npt.NDArray[np.int64]) -> tuple[Candidates, ...]:
        """Those of some tokens as policies see them, layer by layer."""
        ids_LTC, scores_LTC = (
            np.ascontiguousarray(array[tokens].transpose(1, 0, 2))
            for array in (self.ids_TLC, self.scores_TLC)
        )
        pairs = zip(ids_LTC, scores_LTC, strict=True)
        return tuple(candidates(ids_TC, scores_TC, logits=self.logits) for ids_TC, scores_TC in pairs)


@dataclass(frozen=True)
class StepRouting:
    """What the router chose in one step, or in one of its micro-batches, before any policy.

    Attributes:
        number: of the step, from 0; of micro-batches where steps have two.
        ids_LTK: int16, logical experts, contiguous.
        weights_LTK: float32 gate weights, or None where the trace has none.
        offsets_G: int64 [G + 1]; tokens offsets_G[g] to offsets_G[g + 1] are at home on rank g.
        others: candidates of each layer, or None without.
        category_T: int16, the category of each token's request, or None without.
    """

    number: int
    ids_LTK: npt.NDArray[np.int16]
    weights_LTK: npt.NDArray[np.float32] | None
    offsets_G: npt.NDArray[np.int64]
    others: tuple[Candidates, ...] | None = None
    category_T: npt.NDArray[np.int16] | None = None


@dataclass(frozen=True)
class Plan:
    """A run to execute.

    Attributes:
        ranks, ranks_per_node: rank g stands in node g // ranks_per_node; nodes are whole.
        dtype: of weights and activations, on the wire too.
        mode, padded: what counts as a copy of a token, and whether all pairs send as many as the fullest.
        replicas: how a token chooses among the replicas of its expert.
        routing: the policy or a list of them, as a scenario writes it.
        offsets_NG: int64 [N, G + 1]; tokens offsets_NG[n, g] to offsets_NG[n, g + 1] are those of step n
            that are at home on rank g.
        ids_TLK, weights_TLK: int16 and float32 (or None): what the router chose.
        slot_expert_LS, slot_gpu_S: int16 (-1 is empty) and int32: the placement.
        count_LE, slots_LER: int32: how many slots hold each expert, and which, ascending.
        others: candidates of all tokens where a policy needs them.
        category_T: int16, the category of each token's request where a policy needs it, an index into
            ``categories`` or -1.
        overlap: what runs at the same time, of ``OVERLAPS``: a dispatch beside the shared expert, two
            micro-batches that compute and communicate in turn.
    """

    name: str
    model: MoeShape
    ranks: int
    ranks_per_node: int
    dtype: str
    mode: str
    padded: bool
    replicas: str
    routing: Mapping[str, Any] | Sequence[Any]
    seed: int
    offsets_NG: npt.NDArray[np.int64]
    ids_TLK: npt.NDArray[np.int16]
    weights_TLK: npt.NDArray[np.float32] | None
    slot_expert_LS: npt.NDArray[np.int16]
    slot_gpu_S: npt.NDArray[np.int32]
    count_LE: npt.NDArray[np.int32]
    slots_LER: npt.NDArray[np.int32]
    others: Others | None = None
    category_T: npt.NDArray[np.int16] | None = None
    categories: tuple[str, ...] = ()
    overlap: tuple[str, ...] = ()

    @property
    def copies(self) -> Copies:
        """The placement as routing sees it."""
        return Copies(self.count_LE, self.slots_LER, self.slot_gpu_S, self.ranks, self.ranks_per_node)

    @property
    def steps(self) -> int:
        """Forward passes."""
        return len(self.offsets_NG)

    def micro_batches(self, step: int) -> tuple[StepRouting, ...]:
        """The routing of one step, layer by layer: of both its micro-batches where two overlap."""
        first, last = self.offsets_NG[step, [0, -1]].tolist()
        row_T, offsets_G = np.arange(first, last), self.offsets_NG[step] - first
        if "two_batch" not in self.overlap:
            return (self._routing(step, row_T, offsets_G),)
        first_T = first_half_T(offsets_G)
        return tuple(
            self._routing(2 * step + half, row_T[half_T], np.append(0, np.cumsum(half_T))[offsets_G])
            for half, half_T in enumerate((first_T, ~first_T))
        )

    def _routing(
        self, number: int, row_T: npt.NDArray[np.int64], offsets_G: npt.NDArray[np.int64]
    ) -> StepRouting:
        """Of some of the tokens of all steps."""
        weights_TLK = self.weights_TLK
        return StepRouting(
            number,
            np.ascontiguousarray(self.ids_TLK[row_T].transpose(1, 0, 2)),
            None if weights_TLK is None else np.ascontiguousarray(weights_TLK[row_T].transpose(1, 0, 2)),
            offsets_G,
            None if self.others is None else self.others.of(row_T),
            None if self.category_T is None else self.category_T[row_T],
        )

    def batches(self, step: StepRouting) -> Iterator[Batch]:
        """What policies see of each layer of a step."""
        for row, layer in enumerate(self.model.layers):
            yield Batch(
                step.ids_LTK[row],
                None if step.weights_LTK is None else step.weights_LTK[row],
                step.offsets_G,
                self.model.experts,
                None if step.others is None else step.others[row],
                self.copies.held(row),
                layer,
                step.number * len(self.model.layers) + row,
                step.category_T,
                self.categories,
            )

    def local_slots(self, rank: int) -> npt.NDArray[np.int64]:
        """Slots that a rank holds, ascending."""
        return np.flatnonzero(self.slot_gpu_S == rank)
