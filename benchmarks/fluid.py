"""``python -m benchmarks.fluid [ROUTING]``: what ``fluid`` costs, and how far from ``ports`` it is.

ROUTING is a generator (YAML) fitted to gpt-oss-20b, or a trace of it, for the comparison with ``ports``.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.table import table_of
from moesim.deployment.deployment import Deployment, deploy
from moesim.hardware.fluid import EPSILON, Flows, Fluid
from moesim.hardware.health import epochs
from moesim.hardware.network import Network
from moesim.hardware.networks import NETWORKS
from moesim.hardware.routes import NO_LINK
from moesim.hardware.transfer import Transfer
from moesim.simulation.conditions import Conditions
from moesim.simulation.loop import simulate
from moesim.simulation.price import priced
from moesim.simulation.run import run
from moesim.spec.override import Override
from moesim.spec.scenario import load_scenario

FloatArray = NDArray[np.float64]

# Loads with max / mean of 2.9, averaged over layers, as 70,558 recorded tokens of gpt-oss-20b have.
SKEW = 0.7
# What GPUs may share, by cluster.
SHARING: dict[str, Any] = {
    "cards": {"base": "h800-4x8", "gpus_per_nic": 2},
    "uplinks": {"base": "h800-4x8", "oversubscription": 2},
    "others' cards": {"base": "h800-4x8", "cross_rail": "nvlink"},
    "mesh": "mi300x-4x8",
}
MODES: tuple[str, ...] = ("per_node", "per_gpu", "per_expert")


def deepseek(nodes: int, mode: str, network: str) -> Deployment:
    """DeepSeek-V3, 128 tokens on each of 8 GPUs a node."""
    return _deploy(cluster=f"h800-{nodes}x8", ep=8 * nodes, mode=mode, network=network)


def gpt_oss(nodes: int, mode: str, routing: str | None) -> Deployment:
    """gpt-oss-20b, 128 tokens on each of 8 GPUs a node; routing of its skew, unless there is a better."""
    synth: dict[str, Any] = {"requests": 128, "tokens_per_request": 48}
    trace: dict[str, Any] = {"synth": synth | ({"file": routing} if routing else {"skew": SKEW})}
    if routing and not routing.endswith((".yaml", ".yml")):
        trace = {"file": routing}
    return _deploy(model="gpt-oss-20b", cluster=f"h100-{nodes}x8", ep=8 * nodes, mode=mode, trace=trace)


def _deploy(ep: int, mode: str, tokens: int = 128, **fields: Any) -> Deployment:
    """The demo with other fields, one step."""
    overrides = [Override((key,), value) for key, value in fields.items()]
    for section, key, value in (
        ("parallelism", "ep", ep),
        ("dispatch", "mode", mode),
        ("workload", "tokens_per_gpu", tokens),
        ("workload", "steps", 1),
    ):
        overrides.append(Override((section, key), value))
    return deploy(load_scenario("demo", overrides))


def collectives(deployment: Deployment) -> list[Transfer]:
    """All transfers of the step."""
    (step,) = priced(deployment)
    return [operation.transfer for operation in step.program.operations if operation.transfer is not None]


def build(name: str, deployment: Deployment) -> Network:
    """A network model on the links of the deployment."""
    scenario = deployment.scenario
    return NETWORKS[name](
        scenario.cluster, deployment.pricing.fabric(scenario.profile), scenario.parallelism.ep
    )


def makespans(network: Network, transfers: list[Transfer]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Simulated seconds of each collective, all GPUs entering together."""
    start_G = np.zeros(len(transfers[0].first_GG))
    return np.array([network.collective(start_G, each.first_GG, each.second_GG).max() for each in transfers])


def steps() -> Table:
    """A step of DeepSeek-V3 by network model: seconds of a core to simulate it, and seconds simulated."""
    columns = ("ports", "fluid", "step, ports", "step, fluid")
    title = "One step of DeepSeek-V3, 58 MoE layers, 128 tokens a GPU"
    table = table_of(title, ("group", "dispatch", *columns))
    for nodes in (4, 8):
        for mode in MODES:
            taken, simulated = [], []
            for network in ("ports", "fluid"):
                deployment = deepseek(nodes, mode, network)
                began = time.process_time()
                timeline = run(deployment).timeline
                taken.append(f"{time.process_time() - began:.2f} s")
                simulated.append(f"{timeline.end_s_N.max() * 1e3:.1f} ms")
            table.add_row(f"EP{8 * nodes}", mode, *taken, *simulated)
    return table


def growth() -> Table:
    """One dispatch of each GPU to nearly every other, by the size of the group."""
    table = table_of("One dispatch, per_expert, DeepSeek-V3", ("GPUs", "flows", "routes, once", "a dispatch"))
    for nodes in (4, 8, 16):
        deployment = deepseek(nodes, "per_expert", "fluid")
        transfer = collectives(deployment)[0]
        began = time.process_time()
        network = build("fluid", deployment)
        built = time.process_time()
        makespans(network, [transfer])
        table.add_row(
            str(8 * nodes),
            str(np.count_nonzero(transfer.first_GG)),
            f"{built - began:.2f} s",
            f"{(time.process_time() - built) * 1e3:.1f} ms",
        )
    return table


def differences(routing: str | None) -> Table:
    """How much longer collectives take where flows share, and what batching ends changes."""
    what = routing.rsplit("/", 1)[-1] if routing else "generated with its skew"
    title = f"fluid over ports, collectives of gpt-oss-20b, routing: {what}"
    table = table_of(title, ("group", "dispatch", "mean", "most", "by batching, at most"))
    for nodes in (1, 2, 4):
        for mode in MODES:
            deployment = gpt_oss(nodes, mode, routing)
            transfers = collectives(deployment)
            fluid = build("fluid", deployment)
            assert isinstance(fluid, Fluid)
            shared, exact = makespans(fluid, transfers), makespans(Fluid(fluid.routes, 0.0), transfers)
            over = shared / makespans(build("ports", deployment), transfers) - 1
            batching = np.abs(shared / exact - 1).max()
            table.add_row(
                f"EP{8 * nodes}", mode, f"{over.mean():.1%}", f"{over.max():.1%}", f"{batching:.1e}"
            )
    table.caption = f"ends within {EPSILON:g} of the time since a collective's start are one event"
    return table


@dataclass(frozen=True)
class Watched(Fluid):
    """The same model, which keeps the flows of all collectives, in order."""

    seen: list[Flows] = field(default_factory=list)

    def flows(
        self,
        start_G: FloatArray,
        first_GG: FloatArray,
        second_GG: FloatArray,
        free_G: FloatArray | None = None,
    ) -> Flows:
        """Those of a collective."""
        self.seen.append(super().flows(start_G, first_GG, second_GG, free_G))
        return self.seen[-1]

    def beside(self) -> FloatArray:
        """Of each collective's bytes, the share that are on a link with what is left of the one before."""
        return np.array([self._beside(*pair) for pair in zip(self.seen, self.seen[1:], strict=False)])

    def _beside(self, before: Flows, after: Flows) -> float:
        last_L = np.full(len(self.routes.bandwidth_L) + 1, -np.inf)  # the last stands for NO_LINK
        for link_F in self.routes.link_GGH[before.sender_F, before.receiver_F].T:
            np.maximum.at(last_L, link_F, before.end_F)
        last_L[NO_LINK] = -np.inf
        link_FH = self.routes.link_GGH[after.sender_F, after.receiver_F]
        until_F = np.minimum(last_L[link_FH].max(axis=1), after.end_F)
        share_F = np.maximum(until_F - after.start_F, 0) / (after.end_F - after.start_F)
        return float((share_F * after.bytes_F).sum() / after.bytes_F.sum())


def micro_batches() -> Table:
    """Which part of a collective is on a link with what is left of the one before."""
    skewed = {"synth": {"requests": 128, "tokens_per_request": 48, "skew": 1.0}}
    table = table_of(
        "Two micro-batches, DeepSeek-V3, EP32: bytes beside the collective before",
        ("shared", "dispatch", "healthy", "at most", "a card at 1/4", "at most"),
    )
    for name, cluster in SHARING.items():
        for mode in ("per_node", "per_expert"):
            cells = []
            for faults in ([], [{"nic": 3, "bandwidth": 0.25}]):
                deployment = _deploy(
                    32, mode, 32, cluster=cluster, overlap="two_batch", faults=faults, trace=skewed
                )
                scenario = deployment.scenario
                _, (state,) = epochs(scenario.faults, 32)
                fluid = deployment.pricing.network(scenario.profile, state)
                assert isinstance(fluid, Fluid)
                watched = Watched(fluid.routes)
                simulate([step.program for step in priced(deployment)], 32, Conditions([watched]))
                cells += [f"{watched.beside().mean():.3%}", f"{watched.beside().max():.1%}"]
            table.add_row(name, mode, *cells)
    return table


def main() -> None:
    """Print the tables."""
    routing = sys.argv[1] if len(sys.argv) > 1 else None
    run(deepseek(4, "per_node", "fluid"))  # compiles
    for table in (steps(), growth(), differences(routing), micro_batches()):
        Console().print(table)


if __name__ == "__main__":
    main()
