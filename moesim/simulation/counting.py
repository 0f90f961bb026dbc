"""From the tokens of a step to its work: policies, replica choice, counting."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from moesim.deployment.batch import StepTokens, gather_ids, gather_weights
from moesim.deployment.deployment import Deployment
from moesim.dispatch.anchor import path_XT
from moesim.dispatch.count import count_work
from moesim.dispatch.replayed import Replayed
from moesim.dispatch.work import Work
from moesim.routing.candidates import candidates
from moesim.routing.copies import Copies
from moesim.routing.none import NoPolicy
from moesim.routing.policy import Batch
from moesim.routing.replicas import REPLICA_CHOICES, round_robin
from moesim.routing.stages import route
from moesim.simulation.tally import Tally
from placement.problem.placement import Placement

# Layers are routed and counted in blocks of about so many assignments, to bound memory in a long prefill.
_BLOCK = 1 << 24


class Counter:
    """Routes and counts the micro-batches of a run, in order.

    Attributes:
        tallies: what became of the router's choice after each policy, so far.
    """

    def __init__(self, deployment: Deployment, watch: Callable[[slice, NDArray[np.int16]], None]) -> None:
        """``watch`` is told what the router chose, layer by layer, before any policy."""
        self._deployment, self._watch = deployment, watch
        self.tallies = tuple(Tally() for _ in deployment.policies)
        # Micro-batches routed so far.
        self._routed = 0
        scenario = deployment.scenario
        self._as_recorded = (
            all(isinstance(policy, NoPolicy) for policy in deployment.policies)
            and REPLICA_CHOICES[scenario.replicas] is round_robin
            and scenario.dispatch.record.by_rows
            and scenario.rebalance is None
            and deployment.replayed.ids_TLK.flags.c_contiguous
        )

    def work(self, tokens: StepTokens, placement: Placement) -> Work:
        """Route the tokens through policy and placement, and count, a block of layers at a time.

        Args:
            placement: the one in force, in the slots of the deployment's own.
        """
        if self._as_recorded:
            return self._recorded(tokens, placement)
        deployment, scenario = self._deployment, self._deployment.scenario
        _, L, K = deployment.replayed.ids_TLK.shape
        copies = self._copies(placement)
        choose = REPLICA_CHOICES[scenario.replicas]
        depth = max(1, _BLOCK // max(1, len(tokens.row_T) * K))
        slot_gpu_S, path = deployment.placement.slot_gpu_S, None
        home_T = here_T = np.repeat(np.arange(len(tokens.tokens_G), dtype=np.int32), tokens.tokens_G)
        blocks = []
        for first in range(0, L, depth):
            layers = slice(first, first + depth)
            ids_LTJ, weights_LTJ = self._route(tokens, layers, copies.of(layers))
            slot_LTJ = choose(ids_LTJ, tokens.offsets_G, copies.of(layers))
            if scenario.dispatch.record.returns == "anchor":
                last = first + depth >= L
                path = path_XT(slot_LTJ, weights_LTJ, here_T, slot_gpu_S, home_T if last else None)
                here_T = path[-1]
            blocks.append(
                count_work(
                    slot_LTJ,
                    tokens.offsets_G,
                    slot_gpu_S,
                    copies.gpus_per_node,
                    scenario.dispatch.mode,
                    pad=scenario.dispatch.padded,
                    path=path,
                )
            )
        self._routed += 1
        return Work.join(blocks)

    def _recorded(self, tokens: StepTokens, placement: Placement) -> Work:
        """The same where nothing changes what the trace has: counted straight from its rows."""
        deployment, copies = self._deployment, self._copies(placement)
        ids_TLK, dispatch = deployment.replayed.ids_TLK, deployment.scenario.dispatch
        chosen = Replayed(ids_TLK, tokens.row_T, copies.count_LE, copies.slots_LER)
        for tally in self.tallies:
            tally.add_recorded(len(tokens.row_T) * ids_TLK[0].size)
        gpu_S, P = copies.slot_gpu_S, copies.gpus_per_node
        return count_work(chosen, tokens.offsets_G, gpu_S, P, dispatch.mode, pad=dispatch.padded)

    def _copies(self, placement: Placement) -> Copies:
        own, pricing = self._deployment.placement, self._deployment.pricing
        return Copies(*placement.replica_table(), own.slot_gpu_S, own.gpus, pricing.gpus_per_node)

    def _route(
        self, tokens: StepTokens, layers: slice, copies: Copies
    ) -> tuple[NDArray[np.int16], NDArray[np.float32] | None]:
        """Experts and weights of the tokens after the policies, and what these changed into the tallies."""
        routed = route(self._deployment.policies, self._batches(tokens, layers, copies))
        for outcomes in routed.outcomes:
            for tally, outcome in zip(self.tallies, outcomes, strict=True):
                tally.add(outcome)
        return routed.ids_LTJ, routed.weights_LTJ

    def _batches(self, tokens: StepTokens, layers: slice, copies: Copies) -> Iterator[Batch]:
        """What the router chose in each of the layers."""
        trace, needs = self._deployment.replayed, self._deployment.needs
        ids_LTK = gather_ids(trace.ids_TLK, tokens.row_T, layers)
        self._watch(layers, ids_LTK)
        weights_LTK = category_T = None
        if "weights" in needs and trace.weights_TLK is not None:
            weights_LTK = gather_weights(trace.weights_TLK, tokens.row_T, layers)
        if "categories" in needs and trace.category_T is not None:
            category_T = trace.category_T[tokens.row_T].astype(np.int16)
        L = len(trace.meta.layers)
        for i, row in enumerate(range(*layers.indices(L))):
            one = slice(row, row + 1)
            others = None
            if "candidates" in needs:
                # A trace without them has been refused.
                assert trace.candidate_ids_TLC is not None
                assert trace.candidate_scores_TLC is not None
                others = candidates(
                    gather_ids(trace.candidate_ids_TLC, tokens.row_T, one)[0],
                    self._deployment.scores(gather_weights(trace.candidate_scores_TLC, tokens.row_T, one)[0]),
                    logits=self._deployment.logits,
                )
            yield Batch(
                ids_LTK[i],
                None if weights_LTK is None else weights_LTK[i],
                tokens.offsets_G,
                trace.meta.experts,
                others,
                copies.held(i) if "placement" in needs else None,
                trace.meta.layers[row],
                self._routed * L + row,
                category_T,
                trace.categories,
            )
