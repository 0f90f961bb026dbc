"""The policies of a scenario, with what they find in its trace, checked against it and the placement."""

from __future__ import annotations

import numpy as np

from moesim.deployment.batch import gather_ids, gather_weights
from moesim.errors import PolicyError
from moesim.routing.capped import Capped
from moesim.routing.copies import Copies
from moesim.routing.masks import MaskLeast
from moesim.routing.policies import policies_from
from moesim.routing.policy import Batch, Policy, check_needs, known_needs
from moesim.spec.scenario import Scenario
from placement.problem.placement import Placement
from traces.routing import RoutingTrace


def policies_for(
    scenario: Scenario, trace: RoutingTrace, placement: Placement, replayed: RoutingTrace
) -> tuple[Policy, ...]:
    """The policies that a run applies, in their order.

    Args:
        trace: the whole trace.
        replayed: its last requests, from which the run draws its batches.

    Raises:
        PolicyError: one of them needs what the trace or the placement does not have.
    """
    policies = policies_from(scenario.routing)
    known = known_needs(
        weights=trace.weights_TLK is not None,
        candidates=trace.candidate_ids_TLC is not None,
        categories=trace.category_T is not None,
    )
    check_needs(policies, known)
    rebalance = scenario.rebalance
    rebalanced = rebalance is not None and rebalance.every_steps is not None
    _check_devices(policies, placement, rebalanced=rebalanced)
    return tuple(_listed(policy, trace, replayed) for policy in policies)


def _listed(policy: Policy, trace: RoutingTrace, replayed: RoutingTrace) -> Policy:
    """The policy, with what it shall find in the requests that are not replayed.

    Raises:
        PolicyError: all requests are replayed.
    """
    if not isinstance(policy, MaskLeast) or policy.of != "trace":
        return policy
    requests = len(trace.request_offsets) - len(replayed.request_offsets)
    if not requests:
        rule = (
            "must be batch where all requests are replayed: name a solver for the placement, or list experts"
        )
        raise PolicyError(rule, field="routing.of", got=policy.of)
    seen = trace.select_requests(0, requests)
    row_T = np.arange(seen.tokens)
    layers = (
        Batch(
            gather_ids(seen.ids_TLK, row_T, slice(row, row + 1))[0],
            None
            if seen.weights_TLK is None
            else gather_weights(seen.weights_TLK, row_T, slice(row, row + 1))[0],
            np.array([0, seen.tokens]),
            seen.meta.experts,
            layer=layer,
            category_T=None if seen.category_T is None else seen.category_T.astype(np.int16),
            categories=seen.categories,
        )
        for row, layer in enumerate(seen.meta.layers)
    )
    return policy.listed(layers)


def _check_devices(policies: tuple[Policy, ...], placement: Placement, *, rebalanced: bool) -> None:
    """Refuse a limit for devices where an expert has, or may get, replicas on several: before the run."""
    limits = [policy for policy in policies if isinstance(policy, Capped) and policy.unit == "device"]
    if not limits:
        return
    copies = Copies(*placement.replica_table(), placement.slot_gpu_S, placement.gpus, gpus_per_node=1)
    for row in range(len(placement.layers)):
        held = copies.held(row)
        for policy in limits:
            policy.check(held)
    slots = len(placement.slot_gpu_S)
    if rebalanced and slots > placement.experts:
        raise PolicyError(
            "a limit for devices needs every expert on one device, and a rebalance may put copies on "
            "several: limit experts, or place no replicas",
            field="routing.unit",
            got=f"{slots} slots for {placement.experts} experts",
        )
