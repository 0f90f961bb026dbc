"""The cost models of a scenario: its kernels, its links, and the network that these make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from moesim.hardware.groups import group_share
from moesim.hardware.health import Health
from moesim.hardware.kernels import Kernels
from moesim.hardware.network import Fabric, Network
from moesim.hardware.networks import NETWORKS, network_name, reached
from moesim.hardware.policy_time import launching, total
from moesim.hardware.small_kernels import Form, SmallKernel, small_kernels
from moesim.hardware.transfer import Bytes
from moesim.routing.policy import Cost, Policy
from moesim.routing.replicas import AGREED
from moesim.spec.dtypes import DTYPE_BYTES
from moesim.spec.links import Links
from moesim.spec.profile import Profile
from moesim.spec.scenario import Scenario


@dataclass(frozen=True)
class Pricing:
    """From work to seconds, with any profile and on hardware in any health."""

    scenario: Scenario
    policies: tuple[Policy, ...]

    def kernels(self, profile: Profile, health: Health | None = None) -> Kernels:
        """The kernel model with this profile, on healthy GPUs unless told otherwise."""
        if health is not None:
            return self._kernels(profile, health)
        # Every step asks for it, with the scenario's profile or one of a few drawn ones.
        if id(profile) not in self._healthy:
            self._healthy[id(profile)] = profile, self._kernels(profile, None)
        return self._healthy[id(profile)][1]

    @cached_property
    def _healthy(self) -> dict[int, tuple[Profile, Kernels]]:
        """By identity of the profile, which is kept so that no other gets its identity."""
        return {}

    def _kernels(self, profile: Profile, health: Health | None) -> Kernels:
        scenario = self.scenario
        kernels = Kernels(
            scenario.model,
            scenario.cluster.gpu,
            launching(profile, self.policy_cost),
            scenario.parallelism.tp,
            self.links(profile),
            1.0 if health is None else health.clock_G,
            self.group_share,
        )
        return replace(kernels, small=self._small(kernels))

    def _small(self, kernels: Kernels) -> Sequence[SmallKernel]:
        """The kernels between its matrices, those without a row left out."""
        scenario, model, profile = self.scenario, self.scenario.model, kernels.profile
        if profile.small_kernels is None:
            return ()
        dispatch, travels = scenario.dispatch, scenario.parallelism.ep > 1
        form = Form(
            kernels.input_bytes(model.weight_dtype),
            max(kernels.input_bytes(kind.dtype) for kind in model.kinds),
            DTYPE_BYTES[dispatch.dtype if travels else model.activation_dtype],
            self.copy_bytes().dispatch,
            travels,
            dispatch.record.by_slot,
            kernels.links.arrange is not None,
            profile.fused_activation,
            kernels.tp,
        )
        idle = {"decode": "prefilling", "prefill": "decoding"}.get(scenario.workload.phase)
        return [each for each in small_kernels(model, form) if each.rows != idle]

    @property
    def gpus_per_node(self) -> int:
        """GPUs of the group in each node."""
        return min(self.scenario.cluster.gpus_per_node, self.scenario.parallelism.ep)

    def fabric(self, profile: Profile, health: Health | None = None) -> Fabric:
        """The links as transfer kernels with this profile reach them."""
        fabric = reached(self.scenario.cluster, self.links(profile), self.gpus_per_node)
        return fabric if health is None else replace(fabric, nvlink_G=health.nvlink_G, nic_G=health.nic_G)

    def links(self, profile: Profile) -> Links:
        """What this profile's transfer kernels reach of them."""
        ep = self.scenario.parallelism.ep
        links = profile.links(self.scenario.dispatch.mode, -(-ep // self.scenario.cluster.gpus_per_node))
        return links if ep > 1 else links.alone()

    def network(self, profile: Profile, health: Health | None = None) -> Network:
        """The model that ends collectives, on the links as this profile has them."""
        build = NETWORKS[self.network_name]
        return build(self.scenario.cluster, self.fabric(profile, health), self.scenario.parallelism.ep)

    @cached_property
    def group_share(self) -> float:
        """Part of its NVLink bandwidth that a GPU reaches inside its attention group."""
        cluster, parallelism = self.scenario.cluster, self.scenario.parallelism
        return group_share(cluster, self.gpus_per_node, parallelism.tp)

    @property
    def network_name(self) -> str:
        """The network model; ``auto`` is resolved."""
        return network_name(self.scenario.network, self.scenario.cluster, self.scenario.parallelism.ep)

    @cached_property
    def policy_cost(self) -> Cost:
        """What policies do in every layer, and the choice of replicas where ranks must agree on it."""
        agreed = Cost(exchanges=1 if self.scenario.replicas in AGREED else 0)
        return total([agreed, *(policy.cost for policy in self.policies)])

    def copy_bytes(self) -> Bytes:
        """Bytes of a token on a wire."""
        dispatch = self.scenario.dispatch
        return Bytes.of(self.scenario.model.hidden, dispatch.dtype, dispatch.combine_dtype)
