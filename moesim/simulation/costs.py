"""What the work of a step costs: the seconds of its kernels, and the program of its operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from moesim.deployment.deployment import Deployment
from moesim.hardware.groups import attention_group_s
from moesim.hardware.health import Health
from moesim.hardware.kernels import Kernels
from moesim.hardware.network import Ports
from moesim.hardware.policy_time import exchange_seconds, pass_seconds
from moesim.simulation.busy import Busy, Layout, Overlapped, busy_seconds, padded
from moesim.simulation.contention import contended
from moesim.simulation.operations import step_operations
from moesim.simulation.part import Part
from moesim.simulation.program import Program, beside_shared_expert, in_sequence, two_batches
from moesim.spec.profile import Phase, Profile


class Costs:
    """From the parts of a step to seconds and operations, with any profile and on hardware in any health."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        # By whether the host waits in each layer.
        self._layouts: dict[bool, Layout] = {}

    def busy(
        self, part: Part, profile: Profile, health: Health | None = None, *, transfers: bool = True
    ) -> Busy:
        """Seconds of the part's kernels; without ``transfers`` nothing takes multiprocessors beside them."""
        deployment, pricing = self._deployment, self._deployment.pricing
        overlap = deployment.scenario.overlap
        phases: frozenset[Phase] = frozenset()
        if "two_batch" in overlap:
            phases = frozenset(get_args(Phase))
        elif "shared_expert" in overlap:
            phases = frozenset({"shared_expert"})
        kernels, graph_sizes = pricing.kernels(profile, health), deployment.scenario.workload.graph_sizes
        busy = busy_seconds(
            kernels,
            self._layout(kernels),
            part,
            deployment.placement.slot_gpu_S,
            graph_sizes,
            Overlapped(phases, pricing.links(profile).sms if transfers else 0),
        )
        policy_G = pass_seconds(pricing.policy_cost, kernels, padded(part.tokens.tokens_G, graph_sizes))
        busy.seconds_XG[busy.layout.rows["router"]] += policy_G
        return busy

    def _layout(self, kernels: Kernels) -> Layout:
        scenario, host = self._deployment.scenario, bool(kernels.links.host)
        if host not in self._layouts:
            moe_only = scenario.workload.part == "moe"
            self._layouts[host] = Layout.of(scenario.model, host=host, moe_only=moe_only)
        return self._layouts[host]

    def program_on(
        self,
        healthy: Program,
        parts: Sequence[Part],
        states: Sequence[Health],
        factor_OG: NDArray[np.float64],
    ) -> Program:
        """The program on hardware that passes through these states, its kernels longer by a factor each."""
        profile = self._deployment.scenario.profile
        kernels = self._deployment.pricing.kernels(profile)
        busy = [[self.busy(part, profile, state) for part in parts] for state in states]
        longer = [
            [
                attention_group_s(kernels, part.tokens.tokens_G, state.nvlink_G)
                - attention_group_s(kernels, part.tokens.tokens_G)
                for part in parts
            ]
            for state in states
        ]
        changed = []
        for operation, factor_G in zip(healthy.operations, factor_OG, strict=True):
            if operation.transfer is None:
                key, part = (operation.phase, operation.layer), operation.micro_batch
                busy_EG = [each[part][key] * factor_G for each in busy]
                attends = operation.phase == "attention"
                wire_EG = [operation.wire_G + each[part] if attends else operation.wire_G for each in longer]
                operation = operation.on(busy_EG, wire_EG)
            changed.append(operation)
        return healthy.change(lambda _: changed)

    def program(self, parts: Sequence[Part], profile: Profile) -> Program:
        """What the parts of a step cost on healthy hardware, and in which order it runs."""
        scenario, pricing = self._deployment.scenario, self._deployment.pricing
        kernels, fabric = pricing.kernels(profile), pricing.fabric(profile)
        exchange_s = exchange_seconds(
            pricing.policy_cost, scenario.model.experts.count, fabric, scenario.parallelism.ep
        )
        host_s = profile.host_s(
            float(np.sum([part.tokens.tokens_G for part in parts], axis=0).max()),
            float(np.sum([part.tokens.last_G for part in parts], axis=0).max()),
        )
        chains = [
            step_operations(
                kernels,
                fabric,
                self.busy(part, profile),
                part,
                pricing.copy_bytes(),
                exchange_s=exchange_s,
                reduces_to_all=scenario.dispatch.record.returns == "everywhere",
                host_s=host_s if part is parts[-1] else 0.0,
            )
            for part in parts
        ]
        early = "shared_expert" in scenario.overlap
        if "two_batch" in scenario.overlap:
            program = two_batches(*chains, early_dispatch=early)
        elif early:
            program = beside_shared_expert(chains[0])
        else:
            return in_sequence(chains[0])
        return program if profile.transfers is None else self._contended(program, parts, profile)

    def _contended(self, program: Program, parts: Sequence[Part], profile: Profile) -> Program:
        """The program with what kernels and transfers beside each other cost each other."""
        pricing = self._deployment.pricing
        ports, links = Ports(pricing.fabric(profile)), pricing.links(profile)
        rate = self._deployment.scenario.cluster.gpu.memory_bandwidth * (profile.transfers or 1.0)
        traffic = [self._traffic(part, profile) for part in parts]
        alone_O, memory_OG = [], []
        for operation in program.operations:
            alone_s = float(operation.seconds_G.mean())
            transfer = operation.transfer
            if transfer is None:
                memory_G = traffic[operation.micro_batch][operation.phase, operation.layer]
            else:
                at_once_G = np.zeros(len(operation.wire_G))
                alone_s += float(ports.collective(at_once_G, transfer.first_GG, transfer.second_GG).mean())
                memory_G = transfer.memory_bytes_G / rate
            alone_O.append(alone_s)
            memory_OG.append(memory_G)
        return contended(program, np.array(alone_O), np.array(memory_OG), background=not links.sms)

    def _traffic(self, part: Part, profile: Profile) -> Busy:
        """Seconds of the memory traffic of a part's kernels."""
        deployment = self._deployment
        ungated = profile.model_copy(update={"eager_launch": None})
        kernels = deployment.pricing.kernels(ungated).without_arithmetic()
        return busy_seconds(
            kernels,
            self._layout(kernels),
            part,
            deployment.placement.slot_gpu_S,
            deployment.scenario.workload.graph_sizes,
            Overlapped(frozenset(), 0),
        )
