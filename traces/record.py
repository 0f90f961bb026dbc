"""Recording what the routers of a model in PyTorch choose, by forward hooks.

Made for the Mixture-of-Experts classes of Hugging Face transformers 5 (Mixtral, Qwen-MoE, OLMoE, DeepSeek,
gpt-oss, GLM and others), whose router modules return (logits [N, E], weights [N, K], indices [N, K]) for N
tokens. The indices are recorded and not computed anew: DeepSeek-V3's choice is no top-k of its logits.

Nothing is imported from torch: modules and tensors are used by their methods.

Axes: N tokens of a call (B sequences of S, padding included), L MoE layers, K experts, C candidates.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from traces.errors import TraceError
from traces.meta import TraceMeta
from traces.routing import RoutingTrace, join
from traces.trace_writer import trace_writer

Array = npt.NDArray[Any]

_ROUTER_CLASS = re.compile(r"TopK(Router|Gate)", re.IGNORECASE)
_LAYER = re.compile(r"\.(\d+)\.")


@contextlib.contextmanager
def record(
    model: Any,
    out: str | Path | None = None,
    *,
    candidates: int = 0,
    routers: Mapping[int, Any] | None = None,
    name: str = "",
    categories: tuple[str, ...] = (),
    origin: str = "",
    licence: str = "",
) -> Iterator[Recorder]:
    """Record every call of ``model`` in the block, ``model.generate`` included.

    ::

        with record(model, "trace.parquet", candidates=12) as recorder:
            for input_ids in prompts:
                model(input_ids)

    Each sequence of a call is a request; a call with a filled key-value cache continues the sequences of
    the call before it. Padding, as told by ``attention_mask``, is left out.

    Args:
        model: a module whose forward takes ``input_ids`` (or ``inputs_embeds``) as a model of transformers.
        out: file to write, which appears when the block ends without error; memory then holds no more than
            a batch of sequences. None = keep the trace in memory, for :attr:`Recorder.trace`.
        candidates: C, how many experts to record with their logits: the chosen ones, then the best others.
            0 = none.
        routers: true layer index → module that returns (logits, weights, indices); None = find them.
        name, origin, licence: for the trace's metadata.
        categories: names that :attr:`Recorder.category` may take.

    Raises:
        TraceError: no router is found, nothing was recorded, or calls that cannot be told apart.
        OutputError: the file cannot be written.
    """
    found = find_routers(model) if routers is None else dict(sorted(routers.items()))
    with contextlib.ExitStack() as stack:

        def meta_of(experts: int, top_k: int) -> TraceMeta:
            return TraceMeta(name, experts, top_k, tuple(found), origin, licence, candidates)

        def begin(meta: TraceMeta) -> Callable[[RoutingTrace], None]:
            assert out is not None
            return stack.enter_context(trace_writer(out, meta, categories=categories)).append

        recorder = Recorder(tuple(found), meta_of, categories, None if out is None else begin)
        stack.enter_context(contextlib.closing(_Hooks(model, found, recorder)))
        yield recorder
        recorder.finish()


def find_routers(model: Any) -> dict[int, Any]:
    """The router of each MoE layer by the layer's true index, in order of layers.

    Raises:
        TraceError: there is none, or a layer has two.
    """
    found: dict[int, Any] = {}
    for name, module in model.named_modules():
        place = _LAYER.search(f".{name}")
        if _ROUTER_CLASS.search(type(module).__name__) and place is not None:
            layer = int(place[1])
            if layer in found:
                raise TraceError("has two routers: name the one of each layer", field=f"layer {layer}")
            found[layer] = module
    if not found:
        raise TraceError("has no router that is known here: name them", field=type(model).__name__)
    return dict(sorted(found.items()))


@dataclass
class _Batch:
    """B sequences that grow call by call.

    Attributes:
        columns: tokens of each sequence so far, padding included: the length of the key-value cache.
        category: index of the sequences' category, -1 = unknown.
        parts: of each sequence, its tokens of each call: ids, weights, candidates, scores.
    """

    columns: int
    category: int
    parts: list[list[tuple[Array, ...]]]


class Recorder:
    """Puts together what hooks see; made by :func:`record`.

    Attributes:
        category: of the requests that begin from now on, a name out of ``categories``; None = unknown.
        tokens, requests: recorded so far.
    """

    def __init__(
        self,
        layers: tuple[int, ...],
        meta_of: Callable[[int, int], TraceMeta],
        categories: tuple[str, ...],
        begin: Callable[[TraceMeta], Callable[[RoutingTrace], None]] | None,
    ) -> None:
        """``meta_of(E, K)`` is the metadata; ``begin(meta)`` takes requests, None = keep them."""
        self.category: str | None = None
        self.tokens = self.requests = 0
        self._layers, self._meta_of = layers, meta_of
        self._categories, self._begin = categories, begin
        self._kept: list[RoutingTrace] = []
        self._meta: TraceMeta | None = None
        self._emit: Callable[[RoutingTrace], None] | None = None
        self._batch: _Batch | None = None
        self._seen: dict[int, tuple[Array, ...]] = {}

    @property
    def trace(self) -> RoutingTrace:
        """All that was recorded, once the block has ended, where no file was named.

        Raises:
            TraceError: nothing was kept.
        """
        if not self._kept:
            raise TraceError("keeps no trace: nothing was recorded, or it was written to a file")
        whole = join(self._kept, self.tokens)
        whole.validate()
        return whole

    def call(self, past: int, real_BS: Array) -> None:
        """The model begins with B sequences of S tokens.

        Args:
            past: tokens of each sequence in the key-value cache.
            real_BS: whether a token is no padding.
        """
        self._seen.clear()
        sequences = len(real_BS)
        if not past:
            self._flush()
            self._batch = _Batch(0, self._category(), [[] for _ in range(sequences)])
        batch = self._batch
        if batch is None or (batch.columns, len(batch.parts)) != (past, sequences):
            known = "nothing" if batch is None else f"{len(batch.parts)} sequences of {batch.columns} tokens"
            rule = f"must continue what was recorded: {known}"
            raise TraceError(rule, field="past_key_values", got=f"{sequences} sequences of {past} tokens")

    def choice(self, layer: int, output: Any) -> None:
        """A router has chosen: (logits [N, E], weights [N, K], indices [N, K])."""
        if layer in self._seen:
            raise TraceError("was called twice in one pass", field=f"router of layer {layer}")
        if not isinstance(output, tuple | list) or len(output) < 3:
            rule = "must return (logits, weights, indices)"
            raise TraceError(rule, field=f"router of layer {layer}", got=type(output).__name__)
        logits, weights, indices = (part.detach() for part in output[:3])
        shape = (int(logits.shape[-1]), int(indices.shape[-1]))
        meta = self._meta = self._meta or self._meta_of(*shape)
        if shape != (meta.experts, meta.top_k):
            rule = f"must choose {meta.top_k} of {meta.experts} experts, as the others"
            raise TraceError(rule, field=f"router of layer {layer}", got=f"{shape[1]} of {shape[0]}")
        arrays = [indices.cpu().numpy().astype(meta.ids_dtype), _floats(weights)]
        if meta.candidates:
            logits = logits.float()
            others = logits.scatter(-1, indices, float("-inf")).topk(meta.candidates - meta.top_k)
            ids = np.concatenate([arrays[0], others.indices.cpu().numpy()], axis=1)
            chosen = logits.gather(-1, indices).cpu().numpy()
            arrays.append(ids.astype(meta.ids_dtype))
            arrays.append(np.concatenate([chosen, others.values.cpu().numpy()], axis=1))
        self._seen[layer] = tuple(arrays)

    def end_call(self, real_BS: Array) -> None:
        """The model is done with what :meth:`call` announced."""
        silent = [layer for layer in self._layers if layer not in self._seen]
        if silent:
            rule = "was not called: the model computes its experts without it"
            raise TraceError(rule, field=f"router of layer {silent[0]}")
        assert self._batch is not None  # call() made it
        arrays_TL = [
            np.stack(column, axis=1) for column in zip(*(self._seen[i] for i in self._layers), strict=True)
        ]
        if len(arrays_TL[0]) != real_BS.size:
            raise TraceError(f"must see {real_BS.size} tokens", field="routers", got=len(arrays_TL[0]))
        for row, real_S in enumerate(real_BS):
            start = row * real_BS.shape[1]
            rows = start + np.flatnonzero(real_S)
            self._batch.parts[row].append(tuple(array[rows] for array in arrays_TL))
        self._batch.columns += real_BS.shape[1]

    def finish(self) -> None:
        """No call follows.

        Raises:
            TraceError: nothing was recorded.
        """
        self._flush()
        if self.tokens == 0:
            raise TraceError("has no tokens: the model was not called in the block")

    def _flush(self) -> None:
        """Hand on the sequences of the last batch, each whole."""
        batch, self._batch = self._batch, None
        if batch is None or self._meta is None:
            return
        if self._emit is None:
            self._emit = self._kept.append if self._begin is None else self._begin(self._meta)
        for parts in batch.parts:
            arrays = [np.concatenate(column) for column in zip(*parts, strict=True)]
            tokens = len(arrays[0]) if arrays else 0
            if not tokens:
                continue
            ids, weights, *candidates = arrays
            self._emit(
                RoutingTrace(
                    meta=self._meta,
                    ids_TLK=ids,
                    weights_TLK=weights,
                    request_T=np.full(tokens, self.requests, np.int32),
                    position_T=np.arange(tokens, dtype=np.int32),
                    category_T=np.full(tokens, batch.category, np.int32) if self._categories else None,
                    categories=self._categories,
                    candidate_ids_TLC=candidates[0] if candidates else None,
                    candidate_scores_TLC=candidates[1] if candidates else None,
                )
            )
            self.tokens += tokens
            self.requests += 1

    def _category(self) -> int:
        if self.category is None:
            return -1
        if self.category not in self._categories:
            known = ", ".join(self._categories) or "none"
            raise TraceError(f"must be among the categories: {known}", field="category", got=self.category)
        return self._categories.index(self.category)


class _Hooks:
    """Hooks on a model and its routers that tell a recorder; :meth:`close` removes them."""

    def __init__(self, model: Any, routers: Mapping[int, Any], recorder: Recorder) -> None:
        self._recorder = recorder
        self._real_BS: Array = np.zeros((0, 0), bool)
        self._handles = [
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            model.register_forward_hook(self._after),
        ]
        for layer, router in routers.items():
            self._handles.append(router.register_forward_hook(self._router_hook(layer)))

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, _model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens = kwargs.get("input_ids")
        if tokens is None:
            tokens = kwargs.get("inputs_embeds")
        if tokens is None and args:
            tokens = args[0]
        if tokens is None:
            raise TraceError("must be given", field="input_ids")
        self._real_BS = np.ones(tuple(tokens.shape[:2]), bool)
        mask = kwargs.get("attention_mask")
        if mask is not None:
            if mask.ndim != 2:
                raise TraceError("must have 2 axes", field="attention_mask", got=tuple(mask.shape))
            self._real_BS = mask[:, -tokens.shape[1] :].cpu().numpy().astype(bool)
        cache = kwargs.get("past_key_values")
        self._recorder.call(0 if cache is None else int(cache.get_seq_length()), self._real_BS)

    def _after(self, *_: Any) -> None:
        self._recorder.end_call(self._real_BS)

    def _router_hook(self, layer: int) -> Callable[[Any, Any, Any], None]:
        def hook(_router: Any, _args: Any, output: Any) -> None:
            self._recorder.choice(layer, output)

        return hook


def _floats(values: Any) -> Array:
    """A tensor as float32, or as float16 where it has 2 bytes a number: bfloat16 has fewer digits."""
    whole: Array = values.float().cpu().numpy()
    return whole.astype(np.float16) if values.element_size() == 2 else whole
