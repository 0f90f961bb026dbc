"""A scenario as the bench on which placements are tried: their steps, and the way from one to another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moesim.analysis.metrics import Columns
from moesim.deployment.batch import batches
from moesim.deployment.deployment import Deployment, assemble, check_size
from moesim.deployment.reading import check_shape, load_trace
from moesim.errors import SpecError
from moesim.simulation.run import run
from moesim.spec.override import Override
from moesim.spec.scenario import Scenario, load_scenario
from moesim.studies.loads import Source
from moesim.studies.place_question import StepCost
from placement.problem.placement import Placement
from placement.solvers.solvers import solve
from traces.base.arrays import Floats
from traces.routing import RoutingTrace


@dataclass(frozen=True)
class Trial:
    """A scenario whose trace is what was kept back of the loads, and whose placement is still open.

    Attributes:
        what: what is replayed, in words.
        notes: what the reader should know of it.
    """

    scenario: Scenario
    trace: RoutingTrace
    what: str
    notes: tuple[str, ...]

    @property
    def nodes(self) -> int:
        """Nodes of the expert-parallel group."""
        scenario = self.scenario
        return -(-scenario.parallelism.ep // scenario.cluster.gpus_per_node)

    def deployment(self, placement: Placement) -> Deployment:
        """The scenario with this placement.

        Raises:
            MoesimError: it does not fit the memory, or the policy lacks what it needs.
        """
        return assemble(self.scenario, self.trace, placement, self.trace)

    def simulate(self, placement: Placement) -> dict[str, float]:
        """Metrics of the steps with this placement, under the names of ``result.json``."""
        columns = Columns()
        done = run(self.deployment(placement), read=columns.add)
        metrics = columns.metrics(done.tokens_per_step)
        return {
            "step_time_s": metrics["step_time_s"]["mean"],
            "straggler_ratio": metrics["straggler_ratio"]["assignments"],
            "balancedness": metrics["balancedness"],
            "cross_node_bytes": done.cross_node_bytes / done.steps,
        }

    def migration_s(self, bytes_GG: Floats) -> float:
        """Seconds of a migration that nothing else disturbs, every GPU sending and receiving at once.

        The links are as the transfer kernels of the scenario's dispatch mode reach them.

        Args:
            bytes_GG: from each GPU to each.
        """
        network = self._linear().pricing.network(self.scenario.profile)
        end_G = network.collective(np.zeros(len(bytes_GG)), bytes_GG, np.zeros_like(bytes_GG))
        return float(end_G.max())

    def step_cost(self) -> StepCost:
        """The kernel model as a line through what a mean GPU gets in a step.

        Per token: from as many tokens again on each slot. Per activated expert: from half of the slots, less
        what their tokens take. Where experts differ, the mean over all of them.
        """
        scenario = self.scenario
        model, experts, ep = scenario.model, scenario.model.experts, scenario.parallelism.ep
        first = next(batches(self.trace, scenario.workload, ep, scenario.seed))
        tokens, slots = int(first.tokens_G.sum()), max(2, experts.count // ep)
        each = max(1, tokens * experts.top_k // experts.count)
        tokens_LS = np.full((3, slots), each, np.int32)
        tokens_LS[1] *= 2
        tokens_LS[2, slots // 2 :] = 0
        kernels = self._linear().pricing.kernels(scenario.profile)
        seconds = np.zeros(len(tokens_LS))
        for kind, count in enumerate(np.bincount(model.kind_LE.ravel(), minlength=len(model.kinds))):
            kind_LS = np.full(tokens_LS.shape, kind, np.int16)
            of_kind = kernels.experts(tokens_LS, np.zeros(slots, np.int32), 1, kind_LS)
            seconds += of_kind[:, 0] * (count / model.kind_LE.size)
        per_token = (seconds[1] - seconds[0]) / (slots * each)
        per_active = (seconds[0] - seconds[2]) / (slots - slots // 2) - per_token * each
        return StepCost(tokens, experts.top_k, float(per_token), max(0.0, float(per_active)))

    def _linear(self) -> Deployment:
        """The scenario with any placement, for what depends on none."""
        model, ep = self.scenario.model, self.scenario.parallelism.ep
        whole = -(-model.experts.count // ep) * ep
        placement = solve(
            "linear", None, experts=model.experts.count, gpus=ep, layers=model.moe_layers, slots=whole
        )
        return self.deployment(placement)


def trial(name: str, overrides: Sequence[Override], source: Source, gpus: int) -> Trial:
    """The scenario ``name`` as a bench for placements made from ``source``.

    It replays what was kept back; its own trace where the source has no tokens.

    Raises:
        MoesimError: the scenario is at fault, or of another model or another number of GPUs.
    """
    scenario = load_scenario(name, overrides)
    model, ep = scenario.model, scenario.parallelism.ep
    if ep != gpus:
        raise SpecError(f"must be the {gpus} GPUs of --gpus", file=name, field="parallelism.ep", got=ep)
    source.check_model(model, file=name, field="model")
    check_size(scenario)
    kept = source.unseen or source.seen
    if kept.trace is None:
        own = load_trace(scenario)
        check_shape(own, model, scenario.trace.file)
        note = "the loads hold no tokens to replay: steps are simulated on the scenario's own trace"
        return Trial(scenario, own, "the scenario's trace", (note,))
    check_shape(kept.trace, model, str(source.file))
    seen = ("steps are simulated on requests that the placements were fitted on",)
    return Trial(scenario, kept.trace, kept.what, () if source.unseen else seen)
