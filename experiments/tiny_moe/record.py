"""The routing of the trained model on text it never saw: the trace that the project ships as its sample."""

from __future__ import annotations

import numpy as np
import torch

from experiments.tiny_moe.corpus import Corpus
from experiments.tiny_moe.model import TinyMoe
from traces.meta import TraceMeta
from traces.routing import RoutingTrace

ORIGIN = "experiments/tiny_moe: held-out code of Python's standard library and prose of its manual"
LICENCE = "Apache-2.0 (the routing); the text is under the PSF License Version 2 and is not in the trace"

CANDIDATES = 12


@torch.no_grad()
def record(model: TinyMoe, corpus: Corpus, requests: int) -> RoutingTrace:
    """Replay ``requests`` passages, one context each, evenly spread over the held-out text of all domains.

    Requests alternate between the domains, so that any window of them holds both.
    """
    config = model.config
    each = requests // len(corpus.held_out)
    passages, category = [], []
    starts = {
        domain: np.linspace(0, len(text) - config.context, each).astype(int)
        for domain, text in corpus.held_out.items()
    }
    for number in range(each):
        for code, (domain, text) in enumerate(corpus.held_out.items()):
            at = starts[domain][number]
            passages.append(text[at : at + config.context])
            category.append(code)
    model.eval()
    parts = [_routing(model, np.array(passages[first : first + 16])) for first in range(0, len(passages), 16)]
    ids_TLK, weights_TLK, candidates_TLC, scores_TLC = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    return RoutingTrace(
        meta=TraceMeta(
            model="tiny-moe",
            experts=config.experts,
            top_k=config.top_k,
            layers=tuple(range(config.layers)),
            origin=ORIGIN,
            licence=LICENCE,
            candidates=CANDIDATES,
        ),
        ids_TLK=ids_TLK,
        weights_TLK=weights_TLK,
        request_T=np.repeat(np.arange(len(passages), dtype=np.int32), config.context),
        position_T=np.tile(np.arange(config.context, dtype=np.int32), len(passages)),
        category_T=np.repeat(np.array(category, np.int32), config.context),
        categories=tuple(corpus.held_out),
        candidate_ids_TLC=candidates_TLC,
        candidate_scores_TLC=scores_TLC,
    )


def _routing(model: TinyMoe, bytes_BC: np.ndarray) -> tuple[np.ndarray, ...]:
    """(ids_TLK, weights_TLK, candidate_ids_TLC, candidate_scores_TLC) of some passages."""
    model(torch.from_numpy(bytes_BC.astype(np.int64)))
    columns: tuple[list[np.ndarray], ...] = ([], [], [], [])
    for routing in model.routings:
        scores_TC, candidates_TC = routing.scores_TE.topk(CANDIDATES)
        for column, tensor, dtype in zip(
            columns,
            (routing.ids_TK, routing.weights_TK, candidates_TC, scores_TC),
            (np.uint8, np.float16, np.uint8, np.float16),
            strict=True,
        ):
            column.append(tensor.numpy().astype(dtype))
    return tuple(np.stack(column, axis=1) for column in columns)
