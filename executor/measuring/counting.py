"""Counting what really arrives: the same dispatch and combine, but what travels says who sent it.

Every row holds, in place of a token's vector, five numbers: 1, the rank that held the token before the layer,
the token's number in its step; and, stamped anew by each sender, that sender and whether it relays the row.
Experts return what they get and every weight is 1, so that combine must give each token its own first three
numbers times the slots that serve it.

Axes: T tokens, A assignments, C copies, N rows of a table, Z local slots.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from threading import local
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from executor.dispatch.hop import Hop
from executor.dispatch.modes import dispatcher
from executor.dispatch.routing import LayerRouting, RoutedStep, route
from executor.dispatch.transport import Groups, Transport
from executor.layer.lanes import Lane, Stages, in_turn, lane
from executor.layer.moe_layer import TORCH_DTYPES, MoELayer
from executor.layer.spans import NoSpan, Span, Where
from executor.plan.errors import RankError
from executor.plan.plan import Plan, StepRouting
from traces.timeline import HOPS, PHASES, WorkTable

_TOKEN, _SENDER, _RELAYED, _COLUMNS = 2, 3, 4, 5

# What a row of a work table is about: step, layer, phase, hop, source, destination.
_Key = tuple[int, int, int, int, int, int]


def count_plan(plan: Plan, groups: Groups, device: torch.device | str = "cpu") -> WorkTable:
    """Send every layer of a plan through its dispatch mode, and count what arrives at this rank.

    Called by all ranks at once; :func:`join_work` makes one table of theirs.

    Raises:
        RankError: what arrived is not what was sent.
    """
    counted = Counted(groups.rank)
    dispatch = dispatcher(plan.mode, groups, plan.slot_gpu_S, counted, padded=plan.padded, device=device)
    slot_Z, early = plan.local_slots(groups.rank), "shared_expert" in plan.overlap

    def batch(step: int, part: StepRouting, own: Lane) -> Stages[None]:
        routed = route(plan, part).with_unit_weights()
        for row, layer in enumerate(plan.model.layers):
            experts = _CountedExperts(counted, slot_Z, routed.slot_LTK[row])
            moe_layer = MoELayer(_follow, dispatch, counted, experts, spans=counted, early_dispatch=early)
            routing, where = routed.layer(row, groups.rank, device), Where(step=step, layer=layer)
            y_T5 = yield from moe_layer.stages(_tokens(routing, groups.rank), routing, where, own)
            _check_sums(y_T5.cpu().numpy(), routed, row, groups.rank)

    with lane(plan.overlap, torch.device(device)) as own:
        for step in range(plan.steps):
            in_turn([batch(step, part, own) for part in plan.micro_batches(step)])
    return counted.table(plan.model.hidden * TORCH_DTYPES[plan.dtype].itemsize)


def join_work(tables: Sequence[WorkTable]) -> WorkTable:
    """The tables of all ranks as one, by step, layer, phase, hop, source and destination."""
    columns = {
        column.name: np.concatenate([getattr(table, column.name) for table in tables])
        for column in fields(WorkTable)
    }
    order_N = np.lexsort([columns[column.name] for column in reversed(fields(WorkTable))])
    return WorkTable(**{name: values_N[order_N] for name, values_N in columns.items()})


class Counted(Transport):
    """Moves rows, and counts those that arrive from other ranks; as a clock it learns the phase.

    Collectives and kernels may run in threads of their own, of which each has its phase.
    """

    def __init__(self, rank: int) -> None:
        super().__init__()
        self._rank = rank
        self._found: Counter[_Key] = Counter()
        self.now = local()

    def phase(self, name: str, where: Where) -> Span:
        """What the thread that enters it does belongs to this phase."""
        return _CountedPhase(self.now, (where.step, where.layer, PHASES.index(name)))

    def there(self, hop: Hop, rows_CH: Tensor) -> Tensor:
        """Stamp the rows with this rank, send them, and count by the stamps of others."""
        rows_CH[:, _SENDER] = self._rank
        rows_CH[:, _RELAYED] = _relayed_C(hop)
        rows_DH = super().there(hop, rows_CH)
        self._count(rows_DH, rows_DH[:, _RELAYED])
        return rows_DH

    def back(self, hop: Hop, rows_DH: Tensor) -> Tensor:
        """The same; a sum that returns was relayed if the copy was."""
        rows_DH[:, _SENDER] = self._rank
        rows_CH = super().back(hop, rows_DH)
        self._count(rows_CH, _relayed_C(hop))
        return rows_CH

    def serve(self, slot: int, rows: int) -> None:
        """Count the rows that a slot got."""
        self._found[*self.now.at, HOPS.index("first"), -1, slot] += rows

    def table(self, copy_bytes: int) -> WorkTable:
        """What was counted, by what it is about."""
        keys = sorted(key for key, count in self._found.items() if count)
        key_N6 = np.array(keys, np.int64).reshape(-1, 6)
        count_N = np.array([self._found[key] for key in keys], np.int64)
        step_N, layer_N, phase_N, hop_N, source_N, destination_N = key_N6.T
        return WorkTable(
            step_N.astype(np.int32),
            layer_N.astype(np.int32),
            phase_N.astype(np.int8),
            hop_N.astype(np.int8),
            source_N.astype(np.int32),
            destination_N.astype(np.int32),
            count_N,
            np.where(source_N < 0, 0, count_N * copy_bytes),
        )

    def _count(self, rows_XH: Tensor, relayed_X: Tensor) -> None:
        stamps_X2 = torch.stack([rows_XH[:, _SENDER], relayed_X.to(rows_XH.dtype)], dim=1)
        for (sender, relayed), count in Counter(map(tuple, stamps_X2.long().tolist())).items():
            if sender != self._rank:
                self._found[*self.now.at, relayed, sender, self._rank] += count


@dataclass(frozen=True)
class _CountedPhase(NoSpan):
    """Tells the thread where it is: step, layer, phase."""

    now: local
    at: tuple[int, int, int]

    def __enter__(self) -> Self:
        self.now.at = self.at
        return self


@dataclass(frozen=True)
class _CountedExperts:
    """Returns its rows, and counts them; each must be of a token that has chosen its slot.

    Attributes:
        slot_Z: the local slots.
        slot_TK: the slots of every token of the step.
    """

    counted: Counted
    slot_Z: npt.NDArray[np.int64]
    slot_TK: npt.NDArray[np.int16]

    def __call__(self, rows_AH: Tensor, count_Z: Tensor) -> Tensor:
        counts = count_Z.tolist()
        slot_A = np.repeat(self.slot_Z, counts)
        token_A = rows_AH[:, _TOKEN].long().cpu().numpy()
        if len(slot_A) != len(token_A) or not (self.slot_TK[token_A] == slot_A[:, None]).any(axis=1).all():
            raise RankError("a slot was given a token that has not chosen it", field="dispatch", got=counts)
        for slot, count in zip(self.slot_Z.tolist(), counts, strict=True):
            self.counted.serve(slot, count)
        return rows_AH


def _follow(x_TH: Tensor, routing: LayerRouting | None) -> LayerRouting:
    """A router that costs nothing."""
    assert routing is not None  # the counting run always has one
    return routing


def _tokens(routing: LayerRouting, rank: int) -> Tensor:
    """[T, 5]: what stands for the tokens that a rank holds."""
    one_T = torch.ones(len(routing.token_T), dtype=torch.float64, device=routing.token_T.device)
    none_T = torch.zeros_like(one_T)
    return torch.stack([one_T, one_T * rank, one_T * routing.token_T, none_T, none_T], dim=1)


def _relayed_C(hop: Hop) -> Tensor:
    """bool: which of the rows that a rank sends in a hop are not of its own tokens; padding is its own."""
    relayed_C = (hop.row_C < hop.own[0]) | (hop.row_C >= hop.own[1])
    if hop.place_C is None:
        return relayed_C
    return relayed_C.new_zeros(sum(hop.sends)).index_copy_(0, hop.place_C, relayed_C)


def _check_sums(y_T5: npt.NDArray[np.float64], routed: RoutedStep, row: int, rank: int) -> None:
    """That each token here after a layer got back what it sent, once for each slot that serves it."""
    token_T = routed.tokens(row + 1, rank)
    served_T = (routed.slot_LTK[row, token_T] >= 0).sum(axis=1)
    own_T3 = np.stack([np.ones(len(token_T)), routed.rank_XT[row, token_T], token_T], axis=1)
    if not np.array_equal(y_T5[:, : _TOKEN + 1], own_T3 * served_T[:, None]):
        raise RankError("what came back is not what the tokens sent", field="combine", got=y_T5.tolist())
