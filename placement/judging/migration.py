"""From one placement to another: which copies of experts are sent, by whom, and to whom.

Axes: L MoE layers, G GPUs, M copies that are sent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from placement.problem.errors import PlacementError
from placement.problem.placement import Placement
from placement.problem.rules import held_EG
from traces.base.arrays import Floats, Ints


@dataclass(frozen=True, eq=False)
class MigrationPlan:
    """Transfers that bring every GPU what it lacks, in the order of layer, destination and expert.

    Attributes:
        layers: true index in the model of each layer.
        gpus: G.
        row_M: int64, index into ``layers``.
        expert_M, source_M, destination_M: int64, the expert and the GPUs between which it travels.
    """

    layers: tuple[int, ...]
    gpus: int
    row_M: Ints
    expert_M: Ints
    source_M: Ints
    destination_M: Ints

    @property
    def moves(self) -> int:
        """M, copies that are sent, over all layers."""
        return len(self.row_M)

    def bytes_LGG(self, bytes_LE: Floats) -> Floats:
        """float64 [L, G, G], bytes from each GPU (row) to each GPU, layer by layer.

        Args:
            bytes_LE: of each expert.
        """
        bytes_LGG = np.zeros((len(self.layers), self.gpus, self.gpus))
        sent_M = bytes_LE[self.row_M, self.expert_M]
        np.add.at(bytes_LGG, (self.row_M, self.source_M, self.destination_M), sent_M)
        return bytes_LGG

    def crossing(self, node_G: npt.ArrayLike) -> int:
        """Copies that leave their node."""
        node = np.asarray(node_G)
        return int(np.count_nonzero(node[self.source_M] != node[self.destination_M]))

    def transfers(self) -> list[dict[str, int]]:
        """Every transfer as JSON holds it; ``layer`` is the true index."""
        layer_M = np.array(self.layers)[self.row_M]
        rows = np.stack([layer_M, self.expert_M, self.source_M, self.destination_M], axis=1).tolist()
        return [dict(zip(("layer", "expert", "from", "to"), row, strict=True)) for row in rows]


def plan_migration(before: Placement, after: Placement, node_G: npt.ArrayLike) -> MigrationPlan:
    """Who sends what to whom, so that ``after`` can take the place of ``before``.

    A copy is sent for each expert on a GPU that held none of it. It comes from the nearest GPU that did:
    one of the same node where there is one, since its links are faster. Among equally near ones the GPU
    that sends least so far over links of that kind sends, transfers with the fewest choices first, and
    ties go to the lowest GPU. A further copy of what a GPU already holds is a copy in its own memory, and
    what it no longer holds is overwritten: neither is sent.

    Expert 0 is wanted on GPU 2, of node 1; GPUs 0 and 3 hold it, and GPU 3 is of the same node:

    >>> slot_gpu_S, node_G = np.array([0, 1, 2, 3]), np.array([0, 0, 1, 1])
    >>> before = Placement(np.array([[0, 1, 1, 0]]), slot_gpu_S, experts=2, gpus=4, layers=(5,))
    >>> after = Placement(np.array([[0, 1, 0, 1]]), slot_gpu_S, experts=2, gpus=4, layers=(5,))
    >>> for transfer in plan_migration(before, after, node_G).transfers():
    ...     print(transfer)
    {'layer': 5, 'expert': 0, 'from': 3, 'to': 2}
    {'layer': 5, 'expert': 1, 'from': 2, 'to': 3}

    Args:
        node_G: [G], the node of each GPU.

    Raises:
        PlacementError: the placements are of different experts, GPUs or layers, or ``node_G`` of others.
    """
    after.check_fits(before.experts, before.gpus, before.layers)
    node = np.asarray(node_G)
    if node.shape != (before.gpus,):
        raise PlacementError(f"must name a node for each of {before.gpus} GPUs", field="node", got=node.shape)
    wanted, holders = [], []
    for row in range(len(before.layers)):
        had_EG = held_EG(before, row)
        for gpu, expert in np.argwhere((held_EG(after, row) & ~had_EG).T).tolist():
            wanted.append((row, expert, gpu))
            holders.append(_nearest(np.flatnonzero(had_EG[expert]), gpu, node))
    source_M = _sources(wanted, holders, node)
    row_M, expert_M, destination_M = np.array(wanted, dtype=np.int64).reshape(-1, 3).T
    return MigrationPlan(before.layers, before.gpus, row_M, expert_M, source_M, destination_M)


def _nearest(holder_N: Ints, gpu: int, node_G: Ints) -> Ints:
    """Those of the GPU's own node, or all where there are none."""
    near_N = holder_N[node_G[holder_N] == node_G[gpu]]
    return near_N if len(near_N) else holder_N


def _sources(wanted: list[tuple[int, int, int]], holders: list[Ints], node_G: Ints) -> Ints:
    """int64 [M], the holder that sends each."""
    sent_inside_G, sent_across_G = np.zeros(len(node_G)), np.zeros(len(node_G))
    source_M = np.empty(len(wanted), dtype=np.int64)
    for move in sorted(range(len(wanted)), key=lambda move: len(holders[move])):
        holder_N, destination = holders[move], wanted[move][2]
        inside = node_G[holder_N[0]] == node_G[destination]
        sent_G = sent_inside_G if inside else sent_across_G
        source = int(holder_N[np.argmin(sent_G[holder_N])])
        sent_G[source] += 1
        source_M[move] = source
    return source_M
