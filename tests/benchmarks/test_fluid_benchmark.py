"""What the benchmark says of collectives that follow each other."""

from __future__ import annotations

import numpy as np

from benchmarks.fluid import Watched
from moesim.hardware.network import Fabric
from moesim.hardware.routes import build_routes
from moesim.hardware.topology import build_topology
from moesim.spec.cluster import load_cluster
from moesim.spec.yaml_source import Source


def test_bytes_beside_the_collective_before() -> None:
    """10 bytes to GPU 2 until 10 s, 10 more from 5 s to 15 s: half of them beside the first, no others."""
    cluster = load_cluster("h800-1x4", Source(None, None, {}))
    watched = Watched(build_routes(build_topology(cluster, Fabric(4, 1.0, 1.0, 0.0, 0.0), 4)))
    for at, sender, receiver in ((0.0, 0, 2), (5.0, 1, 2), (6.0, 0, 3)):
        bytes_GG = np.zeros((4, 4))
        bytes_GG[sender, receiver] = 10.0
        end_G = watched.collective(np.full(4, at), bytes_GG, np.zeros((4, 4)))
        assert end_G[receiver] == at + 10.0
    assert watched.beside().tolist() == [0.5, 0.0]
