"""The recorder, on tiny random models of the classes that it is made for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.traces.random_traces import same
from tests.traces.tiny_models import EXPERTS, FAMILIES, TOP_K, VOCABULARY, tiny_model
from traces.base.errors import TraceError
from traces.record import find_routers, record
from traces.trace_file import read_trace

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.executor


def ids(seed: int, sequences: int, tokens: int) -> Any:
    return torch.randint(3, VOCABULARY, (sequences, tokens), generator=torch.Generator().manual_seed(seed))


def by_hand(model: Any, tokens: Any) -> Any:
    """Each MoE layer's (logits, weights, indices), by hooks of the test's own."""
    seen: list[Any] = []
    modules = [module for module in model.modules() if "topkrouter" in type(module).__name__.lower()]
    handles = [module.register_forward_hook(lambda *args: seen.append(args[2])) for module in modules]
    with torch.no_grad():
        model(tokens)
    for handle in handles:
        handle.remove()
    return [[part.float().numpy() for part in output] for output in seen]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str) -> None:
    model, tokens = tiny_model(family), ids(0, 2, 9)
    with torch.no_grad(), record(model, candidates=5, name=family) as recorder:
        output = model(tokens, output_router_logits=True)
    trace = recorder.trace
    layers, _ = FAMILIES[family]
    assert (trace.meta.model, trace.meta.layers) == (family, layers)
    assert (trace.meta.experts, trace.meta.top_k, trace.meta.candidates) == (EXPERTS, TOP_K, 5)
    assert trace.request_T.tolist() == [0] * 9 + [1] * 9
    assert trace.position_T.tolist() == [*range(9), *range(9)]
    assert trace.weights_TLK is not None
    assert trace.candidate_ids_TLC is not None
    assert trace.candidate_scores_TLC is not None
    assert len(np.unique(trace.ids_TLK)) > TOP_K  # the routers do choose
    for row, (logits, weights, indices) in enumerate(by_hand(model, tokens)):
        assert np.array_equal(trace.ids_TLK[:, row], indices)
        assert np.array_equal(trace.weights_TLK[:, row], weights)
        # The model's own report of its logits, where the candidates' scores come from.
        assert np.array_equal(output.router_logits[row].float().reshape(-1, EXPERTS).numpy(), logits)
        best = trace.candidate_ids_TLC[:, row]
        assert np.array_equal(best[:, :TOP_K], trace.ids_TLK[:, row])
        assert np.array_equal(trace.candidate_scores_TLC[:, row], np.take_along_axis(logits, best, 1))
        for token in range(18):
            left_out = set(range(EXPERTS)) - set(best[token].tolist())
            assert logits[token, sorted(left_out)].max() <= logits[token, best[token, TOP_K:]].min()


@pytest.mark.parametrize("family", ["Mixtral", "GptOss", "Olmoe"])
def test_where_the_choice_is_the_top_k_of_the_logits_it_agrees(family: str) -> None:
    model, tokens = tiny_model(family), ids(1, 1, 20)
    with torch.no_grad(), record(model) as recorder:
        output = model(tokens, output_router_logits=True)
    for row, logits in enumerate(output.router_logits):
        best = logits.topk(TOP_K).indices.numpy()
        assert np.array_equal(np.sort(recorder.trace.ids_TLK[:, row]), np.sort(best))


@pytest.mark.parametrize("family", ["DeepseekV2", "DeepseekV3"])
def test_deepseek_chooses_otherwise_than_by_logits(family: str) -> None:
    """Groups (and in V3 a bias) decide too: an import of logits alone would be wrong."""
    model, tokens = tiny_model(family), ids(1, 1, 40)
    with torch.no_grad(), record(model) as recorder:
        output = model(tokens, output_router_logits=True)
    best = output.router_logits[0].reshape(-1, EXPERTS).topk(TOP_K).indices.numpy()
    assert not np.array_equal(np.sort(recorder.trace.ids_TLK[:, 0]), np.sort(best))


def test_generated_tokens_continue_their_requests() -> None:
    """Prompts of 5 and 3 tokens, the shorter one padded on the left, and 4 tokens generated for each."""
    model = tiny_model("Mixtral")
    tokens = ids(2, 2, 5)
    tokens[1, :2] = 0
    mask = torch.ones(2, 5, dtype=torch.long)
    mask[1, :2] = 0
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    with record(model) as recorder:
        output = model.generate(tokens, attention_mask=mask, **options)
    trace = recorder.trace
    # The last token that is generated goes through no layer.
    assert trace.request_offsets.tolist() == [0, 8, 14]
    assert trace.position_T.tolist() == [*range(8), *range(6)]
    with torch.no_grad(), record(model) as again:
        model(output[:1, :-1])
    assert np.array_equal(trace.ids_TLK[:8], again.trace.ids_TLK)


def test_a_file_is_written_as_requests_end_and_equals_the_trace_in_memory(tmp_path: Path) -> None:
    model = tiny_model("Olmoe")
    labels: dict[str, Any] = {"name": "tiny", "origin": "a test", "licence": "CC0-1.0", "candidates": 3}
    labels["categories"] = ("code", "prose")

    def run(recorder: Any) -> None:
        for index, length in enumerate((7, 1, 12)):
            recorder.category = (None, "prose", "code")[index]
            model(ids(index, 1, length))

    with torch.no_grad():
        with record(model, tmp_path / "t.parquet", **labels) as recorder:
            run(recorder)
            assert not (tmp_path / "t.parquet").exists()
        with record(model, **labels) as kept:
            run(kept)
    assert (recorder.tokens, recorder.requests) == (20, 3)
    assert same(read_trace(tmp_path / "t.parquet"), kept.trace)
    assert kept.trace.category_T is not None
    assert kept.trace.category_T.tolist() == [-1] * 7 + [1] + [0] * 12
    with pytest.raises(TraceError, match="keeps no trace"):
        _ = recorder.trace


def test_half_precision_weights_are_stored_in_two_bytes() -> None:
    """float16 holds a bfloat16 between 2^-14 and 1 exactly."""
    model, tokens = tiny_model("Qwen3Moe").to(torch.bfloat16), ids(0, 1, 4)
    with torch.no_grad(), record(model) as recorder:
        model(tokens)
    found = recorder.trace.weights_TLK
    assert found is not None
    assert found.dtype == np.float16
    for row, (_, weights, _) in enumerate(by_hand(model, tokens)):
        assert np.array_equal(found[:, row], weights)


def test_hooks_are_gone_afterwards() -> None:
    model = tiny_model("Mixtral")
    with torch.no_grad():
        with record(model) as recorder:
            model(ids(0, 1, 4))
        model(ids(1, 1, 4))
    assert recorder.tokens == 4
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_an_error_in_the_block_leaves_no_file(tmp_path: Path) -> None:
    model = tiny_model("Mixtral")

    def interrupted() -> None:
        with torch.no_grad(), record(model, tmp_path / "t.parquet"):
            model(ids(0, 1, 4))
            model(ids(0, 1, 4))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())
    assert not any(module._forward_hooks for module in model.modules())


# A model of one's own.


class Router(torch.nn.Module):  # type: ignore[name-defined,misc]
    def forward(self, hidden: Any) -> Any:
        logits = hidden @ torch.eye(4)
        values, indices = logits.topk(2)
        return logits, values.softmax(-1), indices


class Silent(Router):
    def forward(self, hidden: Any) -> Any:
        return hidden


class Own(torch.nn.Module):  # type: ignore[name-defined,misc]
    """Two layers on the embeddings themselves."""

    def __init__(self, *kinds: type[Router]) -> None:
        super().__init__()
        self.routers = torch.nn.ModuleList(kind() for kind in kinds)
        self.use = range(len(kinds))

    def forward(self, inputs_embeds: Any, **_: Any) -> None:
        for index in self.use:
            self.routers[index](inputs_embeds.reshape(-1, 4))

    def named(self) -> dict[int, Any]:
        return dict(zip((3, 5), self.routers, strict=False))


class Cache:
    def __init__(self, length: int) -> None:
        self.length = length

    def get_seq_length(self) -> int:
        return self.length


HIDDEN = torch.arange(24.0).reshape(2, 3, 4).sin()


@pytest.mark.parametrize("cache", ["past_key_values", "cache"])
def test_routers_may_be_named(cache: str) -> None:
    """transformers has called the cache by either name."""
    model = Own(Router, Router)
    with record(model, routers=model.named()) as recorder:
        model(HIDDEN)
        model(HIDDEN[:, :1], **{cache: Cache(3)})
    trace = recorder.trace
    assert trace.meta.layers == (3, 5)
    assert trace.request_offsets.tolist() == [0, 4, 8]
    flat = HIDDEN.reshape(-1, 4).topk(2).indices.numpy()
    assert np.array_equal(trace.ids_TLK[:3, 0], flat[:3])
    assert np.array_equal(trace.ids_TLK[3], trace.ids_TLK[0])


def test_a_sequence_of_padding_alone_is_no_request() -> None:
    model = Own(Router)
    with record(model, routers=model.named()) as recorder:
        model(HIDDEN, attention_mask=torch.tensor([[0, 0, 0], [1, 1, 0]]))
    assert recorder.trace.request_T.tolist() == [0, 0]


def test_models_without_known_routers_are_refused() -> None:
    with pytest.raises(TraceError, match="Own: has no router that is known here: name them"):
        find_routers(Own(Router))


def test_a_block_without_calls_is_refused(tmp_path: Path) -> None:
    model = Own(Router)
    with (
        pytest.raises(TraceError, match="has no tokens"),
        record(model, tmp_path / "t", routers=model.named()),
    ):
        pass
    assert not list(tmp_path.iterdir())


def uses(*order: int) -> Own:
    model = Own(Router, Router)
    model.use = order  # type: ignore[assignment]
    return model


@pytest.mark.parametrize(
    ("model", "call", "options", "message"),
    [
        (uses(0), {}, {}, "router of layer 5: was not called"),
        (uses(0, 1, 0), {}, {}, "router of layer 3: was called twice in one pass"),
        (
            Own(Silent),
            {},
            {},
            r"router of layer 3: must return \(logits, weights, indices\) \(got 'Tensor'\)",
        ),
        (Own(Router), {}, {"candidates": 2}, "candidates: must be 0 or above top_k"),
        (Own(Router), {}, {"candidates": 5}, "candidates: must be between 0 and 4"),
        (Own(Router), {}, {"categories": ("a",)}, "category: must be among the categories: a"),
        (
            Own(Router),
            {"past_key_values": Cache(7)},
            {},
            r"past_key_values: must continue what was recorded: nothing \(got '2 sequences of 7 tokens'\)",
        ),
        (
            Own(Router),
            {"position_ids": torch.tensor([[3, 4, 5]])},
            {},
            r"past_key_values: must have a cache that knows its length: .* \(got 'positions from 3 on'\)",
        ),
        (Own(Router), {"cache": ((HIDDEN,),)}, {}, r"cache: must know its length \(got 'tuple'\)"),
        (
            Own(Router),
            {"attention_mask": torch.ones(2, 1, 3, 3)},
            {},
            r"attention_mask: must have 2 axes \(got \(2, 1, 3, 3\)\)",
        ),
    ],
)
def test_what_cannot_be_recorded_is_refused(
    model: Own, call: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    def run() -> None:
        with record(model, routers=model.named(), **options) as recorder:
            recorder.category = "b" if options.get("categories") else None
            model(HIDDEN, **call)

    with pytest.raises(TraceError, match=message):
        run()


def test_a_cache_of_another_length_is_refused() -> None:
    """Assisted generation takes tokens back."""
    model = Own(Router)

    def run() -> None:
        with record(model, routers=model.named()):
            model(HIDDEN)
            model(HIDDEN, past_key_values=Cache(2))

    with pytest.raises(TraceError, match="recorded: 2 sequences of 3 tokens"):
        run()
