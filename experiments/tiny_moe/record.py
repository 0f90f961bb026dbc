"""The routing of the trained model on text it never saw: the trace that the project ships as its sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from experiments.tiny_moe.corpus import Corpus
from experiments.tiny_moe.model import TinyMoe
from traces.meta import TraceMeta
from traces.routing import RoutingTrace

ORIGIN = "experiments/tiny_moe: held-out code of Python's standard library and prose of its manual"
LICENCE = "Apache-2.0 (the routing); the text is under the PSF License Version 2 and is not in the trace"

CANDIDATES = 12
_AT_ONCE = 16


@dataclass(frozen=True)
class Passages:
    """Text to replay.

    Attributes:
        bytes_BC: uint8, a passage in each row, as long as the model's context.
        category_B: the index of its domain.
        domains: their names.
    """

    bytes_BC: npt.NDArray[np.uint8]
    category_B: npt.NDArray[np.int32]
    domains: tuple[str, ...]


def passages(corpus: Corpus, context: int, requests: int) -> Passages:
    """Evenly spread over the held-out text of all domains, in turns, so that any window holds all."""
    domains, each = tuple(corpus.held_out), requests // len(corpus.held_out)
    starts_DN = [np.linspace(0, len(text) - context, each).astype(int) for text in corpus.held_out.values()]
    rows = [
        text[start : start + context]
        for starts_D in zip(*starts_DN, strict=True)
        for text, start in zip(corpus.held_out.values(), starts_D, strict=True)
    ]
    return Passages(np.array(rows), np.tile(np.arange(len(domains), dtype=np.int32), each), domains)


@torch.no_grad()
def record(model: TinyMoe, text: Passages) -> RoutingTrace:
    """What the routers choose, with gate weights and candidates; a request is a passage."""
    config, (requests, length) = model.config, text.bytes_BC.shape
    model.eval()
    parts = [
        _routing(model, text.bytes_BC[first : first + _AT_ONCE]) for first in range(0, requests, _AT_ONCE)
    ]
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
        request_T=np.repeat(np.arange(requests, dtype=np.int32), length),
        position_T=np.tile(np.arange(length, dtype=np.int32), requests),
        category_T=np.repeat(text.category_B, length),
        categories=text.domains,
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
