"""Which slots hold the experts of some layers, and where these slots are.

Axes: L MoE layers, E logical experts, R most replicas of an expert, S slots, G GPUs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moesim.routing.policy import Held


@dataclass(frozen=True)
class Copies:
    """A placement as routing sees it.

    Attributes:
        count_LE: int32, replicas of each expert.
        slots_LER: int32, their slots, ascending; entries beyond the count are not read.
        slot_gpu_S: int32, the GPU of each slot.
        gpus: G; GPU g is home rank g.
        gpus_per_node: P; GPU g stands in node g // P.
    """

    count_LE: NDArray[np.int32]
    slots_LER: NDArray[np.int32]
    slot_gpu_S: NDArray[np.int32]
    gpus: int
    gpus_per_node: int

    def of(self, layers: slice) -> Copies:
        """Those of some of the layers."""
        return replace(self, count_LE=self.count_LE[layers], slots_LER=self.slots_LER[layers])

    def held(self, row: int) -> Held:
        """What policies see of a layer.

        Expert 0 in slots 0 and 1 on GPUs 0 and 1, expert 1 in slot 2 on GPU 1:

        >>> slots_LER = np.array([[[0, 1], [2, -1]]], np.int32)
        >>> copies = Copies(np.array([[2, 1]], np.int32), slots_LER, np.array([0, 1, 1], np.int32), 2, 2)
        >>> copies.held(0).gpus_EG.astype(int).tolist()
        [[1, 1], [0, 1]]
        """
        count_E, slots_ER = self.count_LE[row], self.slots_LER[row]
        expert_N, replica_N = np.nonzero(np.arange(slots_ER.shape[1]) < count_E[:, None])
        gpus_EG = np.zeros((len(count_E), self.gpus), bool)
        gpus_EG[expert_N, self.slot_gpu_S[slots_ER[expert_N, replica_N]]] = True
        return Held(gpus_EG, np.arange(self.gpus, dtype=np.int32) // np.int32(self.gpus_per_node))
