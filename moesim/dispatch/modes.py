"""The dispatch modes: each is one record, which simulator, calibration and executor read.

- ``per_expert``: one copy for each assignment whose slot is on another GPU.
- ``per_gpu``: one copy for each distinct other GPU that holds one of the token's slots.
- ``per_node``: inside the home node as ``per_gpu``; to every other node one copy, over the NIC, to the
  *entry* GPU (the one of the home GPU's rail), which relays it to each further GPU of its node.
- ``all_gather`` and ``all_reduce``: every token to every GPU, over the same two hops, wherever its experts
  are. ``all_gather`` combines by a reduce-scatter, which is the way back; ``all_reduce`` leaves the sums on
  every GPU, which is the way back and then there again (Patarasuk and Yuan 2009: (G - 1) / G of the data
  through each port for each of the two halves).
- ``expert_to_expert``: as ``per_gpu``, but a token is not always at home. It starts there, and after each
  layer it is on its *anchor* (``moesim.dispatch.anchor``): the outputs are combined there, and the next layer
  dispatches from there. The last layer of a step combines at home. A token that no slot serves goes as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moesim.dispatch.work import Rule, each_gpu, each_slot, every_gpu, from_anchors


@dataclass(frozen=True)
class Mode:
    """How copies of tokens travel.

    Attributes:
        count: what counts as a copy.
        relayed: whether copies for another node enter it over the home GPU's rail, in a first hop, and are
            relayed inside it, in a second; otherwise all go straight to where they are wanted.
        returns: where the sums of a token's outputs are in the end. ``home``: they come back by the way that
            the copies took; ``everywhere``: then they go out again, to every GPU that got a copy; ``anchor``:
            they go where the token's heaviest expert was, which gate weights say, and the token stays there.
        by_slot: whether transfer kernels lay copies out by slot, and sum outputs by their gate weights.
        by_rows: whether ``count`` also takes rows of a trace, whose slots nobody has written down.
        can_pad: whether pairs of GPUs may all exchange as many copies as the fullest.
        in_one_node: the mode that it is where there is one node.
        links: the mode whose entry of a profile holds where it has none of its own.
        plain_across: whether over several nodes it is a collective library's all-to-all (``plain`` of a
            profile), because the kernels that it has inside one node relay between nodes.
    """

    count: Rule
    relayed: bool = False
    returns: Literal["home", "everywhere", "anchor"] = "home"
    by_slot: bool = False
    by_rows: bool = False
    can_pad: bool = False
    in_one_node: str | None = None
    links: str | None = None
    plain_across: bool = False


MODES = {
    "per_expert": Mode(each_slot, by_slot=True, by_rows=True, can_pad=True),
    "per_gpu": Mode(each_gpu, by_rows=True, can_pad=True, plain_across=True),
    "per_node": Mode(each_gpu, relayed=True, by_rows=True, in_one_node="per_gpu"),
    "all_gather": Mode(every_gpu, relayed=True, by_rows=True),
    "all_reduce": Mode(every_gpu, relayed=True, returns="everywhere", by_rows=True),
    "expert_to_expert": Mode(from_anchors, returns="anchor", links="per_gpu", plain_across=True),
}

DEFAULT = "per_gpu"
"""What a scenario that names no mode uses, and a calibration measures most."""
