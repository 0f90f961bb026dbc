"""Recording what the routers of a model in PyTorch choose, by forward hooks.

Made for the Mixture-of-Experts classes of Hugging Face transformers 5 (Mixtral, Qwen-MoE, OLMoE, DeepSeek,
gpt-oss, GLM and others), whose router modules return (logits [N, E], weights [N, K], indices [N, K]) for N
tokens. The indices are recorded and not computed anew: DeepSeek-V3's choice is no top-k of its logits.

Nothing is imported from torch: modules and tensors are used by their methods.

Axes: N tokens of a call, B sequences of S tokens, E experts, K experts of a token, C candidates.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from traces.base.arrays import Array
from traces.base.errors import TraceError
from traces.meta import TraceMeta
from traces.recorder import Recorder
from traces.routing import RoutingTrace
from traces.trace_writer import trace_writer

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
        self._recorder.call(_past(kwargs), self._real_BS)

    def _after(self, *_: Any) -> None:
        self._recorder.end_call(self._real_BS)

    def _router_hook(self, layer: int) -> Callable[[Any, Any, Any], None]:
        def hook(_router: Any, _args: Any, output: Any) -> None:
            self._recorder.choice(layer, output)

        return hook


def _past(kwargs: Mapping[str, Any]) -> int:
    """Tokens of each sequence that a call continues: the length of its key-value cache.

    Raises:
        TraceError: it continues something, and no cache says what: its tokens would pass for new requests.
    """
    # Known by what it can do: transformers has renamed it, from past_key_values to cache.
    for value in kwargs.values():
        if hasattr(value, "get_seq_length"):
            return int(value.get_seq_length())
    positions = kwargs.get("position_ids")
    if positions is not None and int(positions.min()) > 0:
        rule = "must have a cache that knows its length: the tokens continue others"
        raise TraceError(rule, field="past_key_values", got=f"positions from {int(positions.min())} on")
    for name in ("past_key_values", "cache"):
        if kwargs.get(name) is not None:
            raise TraceError("must know its length", field=name, got=type(kwargs[name]).__name__)
    return 0
