"""From the tokens of a step to its operations: policy, replica choice, counting, costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from moesim.deployment.batch import Seeds, StepTokens, batches, gather_ids, gather_weights
from moesim.deployment.deployment import Deployment
from moesim.dispatch.anchor import path_XT
from moesim.dispatch.work import Work, count_work
from moesim.hardware.groups import attention_group_s
from moesim.hardware.health import Health, epochs, jitter_G
from moesim.hardware.policy_time import exchange_seconds, pass_seconds
from moesim.routing.candidates import candidates
from moesim.routing.copies import Copies
from moesim.routing.policy import Batch
from moesim.routing.replicas import REPLICA_CHOICES
from moesim.routing.stages import route
from moesim.simulation.busy import Busy, Overlapped, busy_seconds, padded
from moesim.simulation.jitter import jittered
from moesim.simulation.operations import step_operations
from moesim.simulation.program import Program, beside_shared_expert, in_sequence, two_batches
from moesim.simulation.rebalancing import Rebalancing
from moesim.simulation.tally import Tally
from moesim.spec.profile import Phase, Profile

# Layers are routed and counted in blocks of about so many assignments, to bound memory in a long prefill.
_BLOCK = 1 << 24

# What `workload.part: moe` leaves of the kernels.
_MOE = ("router", "shared_expert", "experts")


@dataclass(frozen=True)
class Part:
    """A micro-batch of a step, or all of it: its tokens and the work they make."""

    tokens: StepTokens
    work: Work


@dataclass(frozen=True)
class Step:
    """One step before it runs.

    Attributes:
        program: as the hardware is.
        healthy: as it would be without faults and jitter; ``program`` itself where there are none.
        settled: also without experts that move; ``healthy`` itself where none do.
    """

    parts: list[Part]
    program: Program
    healthy: Program
    settled: Program


@dataclass
class Steps:
    """Makes each step when the engine asks for it; ``made`` is the one it runs."""

    deployment: Deployment
    made: Step | None = None
    tallies: tuple[Tally, ...] = field(init=False)
    rebalancing: Rebalancing = field(init=False)
    # Batches routed so far.
    _routed: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.rebalancing = Rebalancing(self.deployment)
        self.tallies = tuple(Tally() for _ in self.deployment.policies)

    def __iter__(self) -> Iterator[Program]:
        scenario = self.deployment.scenario
        ranks, faults = scenario.parallelism.ep, scenario.faults
        _, states = epochs(faults, ranks)
        spread_G = jitter_G(faults, ranks)
        seeds, jitter = Seeds.of(scenario.seed), scenario.profile.jitter
        drawn = batches(self.deployment.replayed, scenario.workload, ranks, scenario.seed)
        for step, tokens in enumerate(drawn):
            self.rebalancing.begin(step)
            halves = tokens.halves() if "two_batch" in scenario.overlap else (tokens,)
            parts = [Part(each, self._work(each)) for each in halves]
            settled = faulty = self.program(parts, scenario.profile)
            if faults:
                drawn_OG = seeds.jitter.standard_normal((len(settled.operations), ranks))
                faulty = self._faulty(settled, parts, states, np.exp(spread_G * drawn_OG))
            if jitter:
                faulty = faulty.change(lambda each: jittered(each, jitter, ranks, seeds.durations))
            traffic = self.rebalancing.traffic(settled)
            healthy = traffic.join(settled)
            program = healthy if faulty is settled else traffic.join(faulty)
            self.made = Step(parts, program, healthy, settled)
            yield self.made.program

    def busy(
        self, part: Part, profile: Profile, health: Health | None = None, *, transfers: bool = True
    ) -> Busy:
        """Seconds of the part's kernels; without ``transfers`` nothing takes multiprocessors beside them."""
        deployment, overlap = self.deployment, self.deployment.scenario.overlap
        phases: frozenset[Phase] = frozenset()
        if "two_batch" in overlap:
            phases = frozenset(get_args(Phase))
        elif "shared_expert" in overlap:
            phases = frozenset({"shared_expert"})
        kernels, graph_sizes = deployment.kernels(profile, health), deployment.scenario.workload.graph_sizes
        busy = busy_seconds(
            kernels,
            part.work,
            deployment.placement.slot_gpu_S,
            deployment.scenario.model.kind_LS(self.rebalancing.placement.slot_expert_LS),
            part.tokens,
            graph_sizes,
            Overlapped(phases, deployment.links(profile).sms if transfers else 0),
        )
        policy_G = pass_seconds(deployment.policy_cost, kernels, padded(part.tokens.tokens_G, graph_sizes))
        for layer in deployment.scenario.model.moe_layers:
            busy["router", layer] = busy["router", layer] + policy_G
        if deployment.scenario.workload.part == "model":
            return busy
        return {(phase, layer): busy_G for (phase, layer), busy_G in busy.items() if phase in _MOE}

    def _faulty(
        self,
        healthy: Program,
        parts: Sequence[Part],
        states: Sequence[Health],
        factor_OG: NDArray[np.float64],
    ) -> Program:
        """The program on hardware that passes through these states, its kernels longer by a factor each."""
        profile = self.deployment.scenario.profile
        kernels = self.deployment.kernels(profile)
        busy = [[self.busy(part, profile, state) for part in parts] for state in states]
        group = [
            [attention_group_s(kernels, part.tokens.tokens_G, state.nvlink_G) for part in parts]
            for state in states
        ]
        changed = []
        for operation, factor_G in zip(healthy.operations, factor_OG, strict=True):
            if operation.transfer is None:
                key, part = (operation.phase, operation.layer), operation.micro_batch
                busy_EG = [each[part][key] * factor_G for each in busy]
                attends = operation.phase == "attention"
                wire_EG = [each[part] if attends else operation.wire_G for each in group]
                operation = operation.on(busy_EG, wire_EG)
            changed.append(operation)
        return healthy.change(lambda _: changed)

    def program(self, parts: Sequence[Part], profile: Profile) -> Program:
        """What the parts of a step cost on healthy hardware, and in which order it runs."""
        deployment, scenario = self.deployment, self.deployment.scenario
        kernels, fabric = deployment.kernels(profile), deployment.fabric(profile)
        exchange_s = exchange_seconds(
            deployment.policy_cost, scenario.model.experts.count, fabric, scenario.parallelism.ep
        )
        chains = [
            step_operations(
                kernels,
                fabric,
                self.busy(part, profile),
                part.work,
                part.tokens,
                deployment.copy_bytes(),
                exchange_s=exchange_s,
                reduces_to_all=scenario.dispatch.mode == "all_reduce",
                ends_step=part is parts[-1],
            )
            for part in parts
        ]
        early = "shared_expert" in scenario.overlap
        if "two_batch" in scenario.overlap:
            return two_batches(*chains, early_dispatch=early)
        return beside_shared_expert(chains[0]) if early else in_sequence(chains[0])

    def _work(self, tokens: StepTokens) -> Work:
        """Route the tokens through policy and placement, and count, a block of layers at a time."""
        deployment, scenario = self.deployment, self.deployment.scenario
        _, L, K = deployment.replayed.ids_TLK.shape
        copies = Copies(
            *self.rebalancing.placement.replica_table(),
            deployment.placement.slot_gpu_S,
            deployment.placement.gpus,
            deployment.fabric(scenario.profile).gpus_per_node,
        )
        choose = REPLICA_CHOICES[scenario.replicas]
        depth = max(1, _BLOCK // max(1, len(tokens.row_T) * K))
        slot_gpu_S, path = deployment.placement.slot_gpu_S, None
        home_T = here_T = np.repeat(np.arange(len(tokens.tokens_G), dtype=np.int32), tokens.tokens_G)
        blocks = []
        for first in range(0, L, depth):
            layers = slice(first, first + depth)
            ids_LTJ, weights_LTJ = self._route(tokens, layers, copies.of(layers))
            slot_LTJ = choose(ids_LTJ, tokens.offsets_G, copies.of(layers))
            if scenario.dispatch.mode == "expert_to_expert":
                path = path_XT(slot_LTJ, weights_LTJ, here_T, slot_gpu_S)
                if first + depth >= L:
                    path[-1] = home_T
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

    def _route(
        self, tokens: StepTokens, layers: slice, copies: Copies
    ) -> tuple[NDArray[np.int16], NDArray[np.float32] | None]:
        """Experts and weights of the tokens after the policies, and what these changed into the tallies."""
        routed = route(self.deployment.policies, self._batches(tokens, layers, copies))
        for outcomes in routed.outcomes:
            for tally, outcome in zip(self.tallies, outcomes, strict=True):
                tally.add(outcome)
        return routed.ids_LTJ, routed.weights_LTJ

    def _batches(self, tokens: StepTokens, layers: slice, copies: Copies) -> Iterator[Batch]:
        """What the router chose in each of the layers."""
        trace, needs = self.deployment.replayed, self.deployment.needs
        ids_LTK = gather_ids(trace.ids_TLK, tokens.row_T, layers)
        self.rebalancing.watch(layers, ids_LTK)
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
                    self.deployment.scores(gather_weights(trace.candidate_scores_TLC, tokens.row_T, one)[0]),
                    logits=self.deployment.logits,
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
