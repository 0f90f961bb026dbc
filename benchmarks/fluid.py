"""``python -m benchmarks.fluid``: what ``fluid`` costs as groups grow, and how far from ``ports`` it is."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from moesim.hardware.catalogue import NETWORKS
from moesim.hardware.fluid import EPSILON, Fluid
from moesim.hardware.network import Network
from moesim.simulation.deployment import Deployment, deploy
from moesim.simulation.operations import Transfer
from moesim.simulation.run import run
from moesim.simulation.steps import Steps
from moesim.spec.override import Override
from moesim.spec.scenario import load_scenario
from moesim.spec.workload import DispatchMode

MODES: tuple[DispatchMode, ...] = ("per_node", "per_gpu", "per_expert")


def deepseek(nodes: int, mode: DispatchMode, network: str) -> Deployment:
    """DeepSeek-V3, 128 tokens on each of 8 GPUs a node."""
    return _deploy(cluster=f"h800-{nodes}x8", ep=8 * nodes, mode=mode, network=network)


def gpt_oss(nodes: int, mode: DispatchMode) -> Deployment:
    """gpt-oss-20b, 128 tokens on each of 8 GPUs a node.

    The skew gives loads with max / mean of 2.9, averaged over layers, as 70,558 recorded tokens have.
    """
    trace = {"synth": {"requests": 128, "tokens_per_request": 48, "skew": 0.7}}
    return _deploy(model="gpt-oss-20b", cluster=f"h100-{nodes}x8", ep=8 * nodes, mode=mode, trace=trace)


def _deploy(ep: int, mode: DispatchMode, **fields: Any) -> Deployment:
    """The demo with other fields, one step of 128 tokens a GPU."""
    overrides = [Override((key,), value) for key, value in fields.items()]
    for section, key, value in (
        ("parallelism", "ep", ep),
        ("dispatch", "mode", mode),
        ("workload", "tokens_per_gpu", 128),
        ("workload", "steps", 1),
    ):
        overrides.append(Override((section, key), value))
    return deploy(load_scenario("demo", overrides))


def collectives(deployment: Deployment) -> list[Transfer]:
    """All transfers of the step."""
    (program,) = Steps(deployment)
    return [operation.transfer for operation in program.operations if operation.transfer is not None]


def build(name: str, deployment: Deployment) -> Network:
    """A network model on the links of the deployment."""
    scenario = deployment.scenario
    return NETWORKS[name](scenario.cluster, deployment.fabric(scenario.profile), scenario.parallelism.ep)


def makespans(network: Network, transfers: list[Transfer]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Simulated seconds of each collective, all GPUs entering together."""
    start_G = np.zeros(len(transfers[0].first_GG))
    return np.array([network.collective(start_G, each.first_GG, each.second_GG).max() for each in transfers])


def steps() -> Table:
    """A step of DeepSeek-V3 by network model: seconds it takes to simulate, and seconds simulated."""
    columns = ("ports", "fluid", "step, ports", "step, fluid")
    table = _table("One step of DeepSeek-V3, 58 MoE layers, 128 tokens a GPU", "group", "dispatch", *columns)
    for nodes in (4, 8):
        for mode in MODES:
            taken, simulated = [], []
            for network in ("ports", "fluid"):
                deployment = deepseek(nodes, mode, network)
                began = time.perf_counter()
                timeline = run(deployment).timeline
                taken.append(f"{time.perf_counter() - began:.2f} s")
                simulated.append(f"{timeline.end_s_N.max() * 1e3:.1f} ms")
            table.add_row(f"EP{8 * nodes}", mode, *taken, *simulated)
    return table


def growth() -> Table:
    """One dispatch of each GPU to nearly every other, by the size of the group."""
    table = _table("One dispatch, per_expert, DeepSeek-V3", "GPUs", "flows", "routes, once", "a dispatch")
    for nodes in (4, 8, 16):
        deployment = deepseek(nodes, "per_expert", "fluid")
        transfer = collectives(deployment)[0]
        began = time.perf_counter()
        network = build("fluid", deployment)
        built = time.perf_counter()
        makespans(network, [transfer])
        table.add_row(
            str(8 * nodes),
            str(np.count_nonzero(transfer.first_GG)),
            f"{built - began:.2f} s",
            f"{(time.perf_counter() - built) * 1e3:.1f} ms",
        )
    return table


def differences() -> Table:
    """How much longer collectives take where flows share, and what batching ends changes."""
    title = "fluid over ports, collectives of gpt-oss-20b's skew"
    table = _table(title, "group", "dispatch", "mean", "most", "by batching, at most")
    for nodes in (1, 2, 4):
        for mode in MODES:
            deployment = gpt_oss(nodes, mode)
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


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def main() -> None:
    """Print the tables."""
    run(deepseek(4, "per_node", "fluid"))  # compiles
    for table in (steps(), growth(), differences()):
        Console().print(table)


if __name__ == "__main__":
    main()
