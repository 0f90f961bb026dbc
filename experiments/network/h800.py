"""DeepEP's own two tables, on H800."""

from __future__ import annotations

from experiments.network.cases import (
    GPUS_PER_NODE,
    Case,
    Phase,
    copy_bytes,
    routing,
    traffic,
    uniform,
    visits,
)

SOURCE = "DeepEP, docs/legacy.md at dd758ca: H800, NVLink and one ConnectX-7 a GPU, hidden 7168, top 8"

TOP_NODES = 4

# GB/s by GPUs, normal kernels with 4096 tokens a GPU: over NVLink for 8 GPUs, over RDMA for more.
NORMAL: dict[int, dict[Phase, float]] = {
    8: {"dispatch": 153, "combine": 158},
    16: {"dispatch": 43, "combine": 43},
    32: {"dispatch": 58, "combine": 57},
    64: {"dispatch": 51, "combine": 50},
}
NORMAL_TOKENS = 4096
NORMAL_SMS = 24  # of tests/test_intranode.py and test_internode.py, which print these figures

# Microseconds by GPUs, low-latency kernels with 128 tokens a GPU.
LOW_LATENCY: dict[int, dict[Phase, float]] = {
    8: {"dispatch": 77, "combine": 114},
    16: {"dispatch": 118, "combine": 195},
    32: {"dispatch": 155, "combine": 273},
    64: {"dispatch": 173, "combine": 314},
    128: {"dispatch": 192, "combine": 369},
    256: {"dispatch": 194, "combine": 360},
}
LOW_LATENCY_TOKENS = 128


def normal_cases() -> list[Case]:
    """The table of normal kernels: once to each node, relayed there to each GPU."""
    cases = []
    for gpus, cells in NORMAL.items():
        nodes = gpus // GPUS_PER_NODE
        ids_TK = routing(gpus, NORMAL_TOKENS, gpus, groups=nodes, top_groups=min(nodes, TOP_NODES))
        copies = visits(ids_TK, nodes if nodes > 1 else gpus) / gpus
        moved = traffic("per_node", gpus, NORMAL_TOKENS, ids_TK)
        for phase, measured in cells.items():
            size = copy_bytes(phase)
            case = Case(
                "H800",
                "per_node",
                gpus,
                NORMAL_TOKENS,
                phase,
                NORMAL_SMS,
                measured,
                moved[phase],
                size,
                copies * size,
            )
            cases.append(case)
    return cases


def low_latency_cases() -> list[Case]:
    """The table of low-latency kernels: a copy for every chosen expert, straight to its GPU."""
    return [
        Case(
            "H800",
            "per_expert",
            gpus,
            LOW_LATENCY_TOKENS,
            phase,
            0,
            measured,
            uniform("per_expert", gpus, LOW_LATENCY_TOKENS)[phase],
            copy_bytes(phase),
        )
        for gpus, cells in LOW_LATENCY.items()
        for phase, measured in cells.items()
    ]
