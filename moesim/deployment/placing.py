"""The placement that a scenario names: read, or fitted on the first of the requests."""

from __future__ import annotations

from moesim.errors import TraceError
from moesim.spec.scenario import Scenario
from placement.files.reading import load_placement
from placement.files.target import Target
from placement.problem.placement import Placement
from placement.solvers.solvers import solve
from traces.routing import RoutingTrace
from traces.statistics import expert_loads

# Most tokens that a solver is shown one by one.
_SAMPLE = 4096


def place(scenario: Scenario, trace: RoutingTrace) -> tuple[Placement, RoutingTrace]:
    """The placement, and the requests that it was not fitted on."""
    choice, experts, ep = scenario.placement, scenario.model.experts.count, scenario.parallelism.ep
    layers = scenario.model.moe_layers
    if choice.file is not None:
        return load_placement(choice.file, Target(experts, ep, layers, scenario.model.layers)), trace
    assert choice.solver is not None  # PlacementChoice names one of the two
    requests = len(trace.request_offsets) - 1
    fitted = int(requests * choice.fit_fraction)
    if not 0 < fitted < requests:
        raise TraceError(
            f"has too few requests to fit a placement on {choice.fit_fraction:.0%} and replay the rest",
            file=scenario.trace.file,
            field="placement.fit_fraction",
            got=f"{requests} requests",
        )
    seen = trace.select_requests(0, fitted)
    placement = solve(
        choice.solver,
        expert_loads(seen),
        experts=experts,
        gpus=ep,
        layers=layers,
        slots=choice.slots,
        gpus_per_node=min(scenario.cluster.gpus_per_node, ep),
        groups=scenario.kept_groups,
        model_groups=scenario.model.experts.groups,
        # Evenly spread, so that every request has its part.
        sample_TLK=seen.ids_TLK[:: -(-seen.tokens // _SAMPLE)],
        fitted_on=f"requests 0 to {fitted - 1}",
    )
    return placement, trace.select_requests(fitted, requests)
