"""Every policy on batches at the edge: no tokens, one expert, nothing chosen, weights that say nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.routing.counters import Counts, count
from moesim.routing.policies import POLICIES, policy_from
from moesim.routing.policy import Batch, Candidates, Held
from moesim.routing.stages import apply_all
from tests.examples import examples
from tests.moesim.routing_batches import full_batches

PARAMETERS: dict[str, list[dict[str, object]]] = {
    "drop": [{"capacity_factor": 1e-9}, {"capacity_factor": 1e300, "unit": "device", "renormalise": True}],
    "reroute": [
        {"capacity_factor": 1e-9, "scope": "global"},
        {"capacity_factor": 1.0, "to": "gpu", "order": "random"},
        {"capacity_factor": 1e300, "to": "node"},
    ],
    "expanded_drop": [{"capacity_factor": 1e-9}, {"capacity_factor": 1.0, "cap_at_k": True}],
    "top_k": [{"k": 1}, {"k": 99, "renormalise": True}],
    "top_p": [{"p": 0}, {"p": 1, "renormalise": True}],
    "threshold": [{"share": 0}, {"share": 1, "renormalise": True}],
    "gap": [{"gap": 0}, {"gap": 1, "renormalise": True}],
    "skip": [{"ratio": 0}, {"ratio": 1, "renormalise": True}],
    "important": [{"share": 0, "k": 1}, {"share": 1, "k": 99}],
    "uncertain": [{"below": 1, "k": 99}, {"below": 0, "k": 1}],
    "mask": [{"experts": [0]}, {"experts": [0], "instead": "nothing"}],
    "mask_least": [{"off": 0}, {"off": 0, "by": "score", "instead": "nothing"}],
    "limited": [{"most": 1, "unit": "device"}, {"most": 99, "instead": "nothing"}],
    "expert_choice": [{"capacity_factor": 1e-9}, {"capacity_factor": 1e300, "scope": "global"}],
}
SPECS = [{"policy": name, **parameters} for name in POLICIES for parameters in PARAMETERS.get(name, [{}])]


def edge(kind: str) -> Batch:
    """A batch of 7 tokens, 2 of 4 experts each, on 3 GPUs of 2 nodes; all experts are candidates."""
    T, K, E, G = {"no tokens": (0, 2, 4, 3), "one expert": (5, 1, 1, 1)}.get(kind, (7, 2, 4, 3))
    rng = np.random.default_rng(0)
    ids_TC = np.argsort(rng.random((T, E)), axis=1).astype(np.int16)
    scores_TC = -np.sort(-rng.dirichlet(np.ones(E), T).astype(np.float32), axis=1)
    ids_TK, weights_TK = ids_TC[:, :K].copy(), scores_TC[:, :K].copy()
    if kind == "nothing chosen":
        ids_TK[:], weights_TK[:] = -1, np.nan
    elif kind == "some not chosen":
        ids_TK[::2, 0], weights_TK[::2, 0] = -1, np.nan
    elif kind == "weights of 0":
        weights_TK[:], scores_TC[:] = 0, 0
    elif kind == "ties":
        weights_TK[:], scores_TC[:] = 0.25, 0.25
    gpus_EG = np.arange(E)[:, None] % G == np.arange(G)
    return Batch(
        ids_TK,
        weights_TK,
        np.linspace(0, T, G + 1).astype(np.int64),
        E,
        Candidates(ids_TC, scores_TC),
        Held(gpus_EG, np.arange(G, dtype=np.int32) // 2),
    )


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize(
    "kind", ["no tokens", "one expert", "nothing chosen", "some not chosen", "weights of 0", "ties"]
)
def test_what_is_served_is_accounted_for(spec: dict[str, object], kind: str) -> None:
    batch = edge(kind)
    then = policy_from({"policy": "reroute", "capacity_factor": 1.0, "to": "gpu"})
    for found in apply_all([policy_from(spec), then], batch):
        served_TK = found.ids_TK >= 0
        assert found.wished == (batch.ids_TK >= 0).sum() == found.kept + found.rerouted + found.dropped
        assert served_TK.sum() == found.kept + found.rerouted + found.added
        assert all(len(set(ids[ids >= 0])) == (ids >= 0).sum() for ids in found.ids_TK)
        assert found.weights_TK is not None
        assert np.isfinite(found.weights_TK[served_TK]).all()
        assert found.gate_mass is not None
        assert found.gate_mass_lost is not None
        assert 0 <= found.gate_mass_lost <= found.gate_mass < np.inf


@settings(max_examples=examples(150))
@given(full_batches(), st.sampled_from(SPECS))
def test_what_is_counted_is_what_the_routing_says(batch: Batch, spec: dict[str, object]) -> None:
    """Most policies count place by place, which must come to what sets of experts say."""
    found = policy_from(spec).apply(batch)
    counted = Counts(
        found.kept, found.rerouted, found.dropped, found.added, found.gate_mass, found.gate_mass_lost
    )
    assert counted == count(batch.ids_TK, found.ids_TK, batch.weights_TK)
