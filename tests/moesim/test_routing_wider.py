"""Tokens that a policy lets visit more than K experts, on their way through stages, anchors and work."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from moesim.dispatch.anchor import path_XT
from moesim.dispatch.count import count_work
from moesim.routing.policies import policies_from
from moesim.routing.policy import Batch, Candidates, Held
from moesim.routing.stages import apply_all, route
from traces.base.errors import TraceError
from traces.meta import TraceMeta
from traces.routing import RoutingTrace

WIDER = {"policy": "expanded_drop", "capacity_factor": 2.0}


def batch() -> Batch:
    """One token on each of two GPUs, which hold experts 0 and 1, 2 and 3; each chose one of the other GPU."""
    return Batch(
        np.array([[2], [0]], np.int16),
        np.array([[0.5], [0.25]], np.float32),
        np.array([0, 1, 2]),
        4,
        Candidates(
            np.array([[2, 1, 3], [3, 0, 2]], np.int16),
            np.array([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]], np.float32),
        ),
        Held(np.repeat(np.eye(2, dtype=bool), 2, axis=0), np.zeros(2, np.int32)),
    )


def test_work_and_path_count_every_place() -> None:
    """Expert e is in slot e. Token 1's own GPU gives it two more, the first of them its heaviest."""
    routed = route(policies_from([WIDER]), [batch()])
    assert routed.ids_LTJ.tolist() == [[[2, 1, -1], [0, 3, 2]]]
    assert routed.weights_LTJ is not None
    assert routed.weights_LTJ[0, 1].tolist() == [0.25, 0.5, 0.25]
    gpu_S = np.array([0, 0, 1, 1], np.int32)
    path = path_XT(routed.ids_LTJ, routed.weights_LTJ, np.array([0, 1], np.int32), gpu_S)
    assert path.tolist() == [[0, 1], [1, 1]]
    work = count_work(routed.ids_LTJ, np.array([0, 1, 2]), gpu_S, 2, "per_expert")
    assert work.tokens_LS.tolist() == [[1, 1, 2, 1]]
    assert work.sent_LGG.tolist() == [[[0, 1], [1, 0]]]


@pytest.mark.parametrize(
    ("then", "ids"),
    [
        # Candidates that the first stage gave a token are not given to it again.
        ({"policy": "mask", "experts": [2]}, [[3, 1, -1], [0, 3, -1]]),
        ({"policy": "uncertain", "below": 1.0, "k": 3}, [[2, 1, 3], [0, 3, 2]]),
        ({"policy": "limited", "unit": "device", "most": 1, "best": 1}, [[2, 3, -1], [-1, 3, 2]]),
    ],
)
def test_a_later_policy_looks_at_what_a_token_visits_by_then(
    then: dict[str, object], ids: list[list[int]]
) -> None:
    found = apply_all(policies_from([WIDER, then]), batch())[-1]
    assert found.ids_TK.tolist() == ids
    assert found.kept + found.rerouted + found.added == np.count_nonzero(found.ids_TK >= 0)


@pytest.mark.parametrize(
    ("ids", "score", "rule"),
    [([0, -1], 0.5, "expert id must be below 4"), ([0, 1], np.nan, "score must be finite")],
)
def test_no_candidate_is_missing_or_without_a_score(ids: list[int], score: float, rule: str) -> None:
    """Policies rely on it: of a trace that is read, −1 is the expert 255 or 65535, which no layer has."""
    chosen: NDArray[np.uint8] = np.array([[[0]]], np.uint8)
    trace = RoutingTrace(
        TraceMeta("tiny", 4, 1, (0,), "a test", "", candidates=2),
        chosen,
        None,
        np.zeros(1, np.int32),
        np.zeros(1, np.int32),
        candidate_ids_TLC=np.array([[[0, 1]]], np.uint8),
        candidate_scores_TLC=np.array([[[0.5, 0.25]]], np.float32),
    )
    trace.validate()
    wrong = replace(
        trace,
        candidate_ids_TLC=np.array([[ids]]).astype(np.uint8),
        candidate_scores_TLC=np.array([[[0.5, score]]], np.float32),
    )
    with pytest.raises(TraceError, match=rule):
        wrong.validate()
