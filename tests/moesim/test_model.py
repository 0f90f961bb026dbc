"""Models: parameters, FLOPs and bytes against a naive count of every matrix, worked examples, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import SpecError
from moesim.spec.base import validate
from moesim.spec.dtypes import DTYPE_BYTES
from moesim.spec.experts import Kind
from moesim.spec.model import Model

GQA: dict[str, Any] = {"kind": "gqa", "heads": 4, "kv_heads": 2, "head_dim": 3}
MLA: dict[str, Any] = {
    "kind": "mla",
    "heads": 4,
    "kv_lora_rank": 6,
    "qk_nope_head_dim": 3,
    "qk_rope_head_dim": 2,
    "v_head_dim": 5,
}
TOY: dict[str, Any] = {
    "name": "toy",
    "hidden": 8,
    "layers": 6,
    "vocab": 10,
    "attention": GQA,
    "experts": {"count": 4, "top_k": 2, "width": 7, "shared_width": 3},
}


def toy(**changes: Any) -> Model:
    return validate(Model, TOY | changes)


@st.composite
def models(draw: st.DrawFn) -> Model:
    size = st.integers(1, 9)
    if draw(st.booleans()):
        kv_heads = draw(size)
        attention = {
            "kind": "gqa",
            "heads": kv_heads * draw(size),
            "kv_heads": kv_heads,
            "head_dim": draw(size),
        }
    else:
        attention = {key: draw(size) for key in MLA if key != "kind"} | {"kind": "mla"}
        attention["q_lora_rank"] = draw(st.none() | size)
    if draw(st.booleans()):
        attention |= {"window": draw(size), "full_every": draw(st.none() | st.integers(1, 4))}
    count = draw(size)
    layers = draw(st.integers(1, 9))
    moe_every = draw(st.integers(1, layers))
    last_moe = layers // moe_every * moe_every - 1
    return toy(
        hidden=draw(size),
        layers=layers,
        vocab=draw(size),
        attention=attention,
        experts={
            "count": count,
            "top_k": draw(st.integers(1, count)),
            "width": draw(size),
            "shared_width": draw(st.integers(0, 9)),
            "gated": draw(st.booleans()),
        },
        first_dense=draw(st.integers(0, last_moe)),
        moe_every=moe_every,
        dense_width=draw(size),
        tied_embeddings=draw(st.booleans()),
        weight_dtype=draw(st.sampled_from(sorted(DTYPE_BYTES))),
        expert_dtype=draw(st.sampled_from(sorted(DTYPE_BYTES))),
        kv_dtype=draw(st.sampled_from(sorted(DTYPE_BYTES))),
    )


def matrices(model: Model, experts_per_layer: int) -> dict[str, list[tuple[int, int]]]:
    """Every weight matrix by kind, layer by layer, as a checkpoint lists them."""
    listed: dict[str, list[tuple[int, int]]] = {
        "attention": [],
        "dense": [],
        "shared": [],
        "routers": [],
        "experts": [],
        "embeddings": [(model.vocab, model.hidden)] * (1 if model.tied_embeddings else 2),
    }
    for layer in range(model.layers):
        listed["attention"] += attention_matrices(model)
        if layer < model.first_dense or (layer + 1) % model.moe_every:
            listed["dense"] += ffn_matrices(model, model.dense_width)
        else:
            listed["routers"].append((model.hidden, model.experts.count))
            listed["shared"] += ffn_matrices(model, model.experts.shared_width)
            for _ in range(experts_per_layer):
                listed["experts"] += ffn_matrices(model, model.experts.width)
    return listed


def attention_matrices(model: Model) -> list[tuple[int, int]]:
    """One layer's, head by head."""
    hidden, a = model.hidden, model.attention
    if a.kind == "gqa":
        head = given_(a.head_dim)
        per_head = [(hidden, head), (head, hidden)]
        return per_head * a.heads + [(hidden, head)] * (2 * given_(a.kv_heads))
    nope, rope, value, rank = map(
        given_, (a.qk_nope_head_dim, a.qk_rope_head_dim, a.v_head_dim, a.kv_lora_rank)
    )
    per_head = [(a.q_lora_rank or hidden, nope + rope), (rank, nope), (rank, value), (value, hidden)]
    shared = [(hidden, rank), (hidden, rope)] + ([(hidden, a.q_lora_rank)] if a.q_lora_rank else [])
    return per_head * a.heads + shared


def ffn_matrices(model: Model, width: int | None) -> list[tuple[int, int]]:
    up = [(model.hidden, given_(width))] * (2 if model.experts.gated else 1)
    return [*up, (given_(width), model.hidden)]


def given_(value: int | None) -> int:
    assert value is not None
    return value


def size(shapes: list[tuple[int, int]]) -> int:
    return sum(rows * columns for rows, columns in shapes)


@given(models())
def test_parameters_are_those_of_every_matrix(model: Model) -> None:
    assert model.total_params == sum(map(size, matrices(model, model.experts.count).values()))
    active = matrices(model, model.experts.top_k)
    assert model.active_params == sum(map(size, active.values()))


@given(models(), st.integers(1, 12), st.integers(1, 4))
def test_weights_of_a_gpu_are_those_of_its_matrices(model: Model, slots: int, tp: int) -> None:
    weights = model.weight_bytes(ep=1, tp=tp, slots=slots)
    sizes = {kind: size(shapes) for kind, shapes in matrices(model, slots).items()}
    weight, expert = DTYPE_BYTES[model.weight_dtype], DTYPE_BYTES[model.expert_dtype]
    assert weights.attention == pytest.approx(sizes["attention"] * weight / tp)
    assert weights.dense == pytest.approx(sizes["dense"] * weight)
    assert weights.shared == pytest.approx(sizes["shared"] * weight)
    assert weights.routers == sizes["routers"] * 2  # activations are bf16 here
    assert weights.embeddings == pytest.approx(sizes["embeddings"] * 2)
    assert weights.experts == pytest.approx(sizes["experts"] * expert)
    parts = [weights.attention, weights.dense, weights.shared, weights.routers, weights.embeddings]
    assert weights.total == pytest.approx(sum(parts) + weights.experts)


@given(models(), st.floats(0, 1e6))
def test_attention_context_agrees_with_a_walk_over_keys(model: Model, context: float) -> None:
    a = model.attention
    keys = []
    for layer in range(model.layers):
        full = a.window is None or (a.full_every is not None and layer % a.full_every == a.full_every - 1)
        keys.append(context if full else min(context, a.window or 0))
    assert [model.attention_context(layer, context) for layer in range(model.layers)] == keys


def test_moe_layers_keep_their_true_indices() -> None:
    assert toy().moe_layers == (0, 1, 2, 3, 4, 5)
    model = toy(first_dense=1, moe_every=2, dense_width=5)
    assert (model.moe_layers, model.dense_layers) == ((1, 3, 5), (0, 2, 4))
    assert toy(first_dense=3, dense_width=5).moe_layers == (3, 4, 5)


def test_scores_of_a_key_by_hand() -> None:
    # gqa, 4 heads of 3: a dot product of 3 and a weighted sum of 3, each value 2 FLOP.
    assert toy().score_flops_per_key == 4 * (2 * 3 + 2 * 3)
    # mla: in the latent space 6 + 2 for the score, 6 for the sum; expanded 3 + 2 and 5.
    latent = toy(attention=MLA)
    assert latent.score_flops_per_key == 4 * (2 * 8 + 2 * 6)
    assert latent.attention.expanded_score_flops_per_key == 4 * (2 * 5 + 2 * 5)
    assert toy().attention.expanded_score_flops_per_key == toy().score_flops_per_key


def test_cache_of_a_token_by_hand() -> None:
    assert toy().kv_bytes_per_token == 2 * 2 * 3 * 2  # K and V, 2 heads of 3, bf16
    assert toy(kv_dtype="fp8").kv_bytes_per_token == 2 * 2 * 3
    assert toy(attention=MLA).kv_bytes_per_token == (6 + 2) * 2


def test_tensor_parallel_ranks_share_kv_heads_but_not_the_latent() -> None:
    shares = [toy().attention.kv_share(tp) for tp in (1, 2, 4)]
    assert shares == [1.0, 0.5, 0.5]  # two KV heads: four ranks hold each of them twice
    assert toy(attention=MLA).attention.kv_share(4) == 1.0


def test_experts_are_dealt_to_gpus_with_the_rest_rounded_up() -> None:
    one = toy().kind_bytes(toy().kinds[0])
    assert one == 3 * 8 * 7 * 2
    assert toy().weight_bytes(ep=2).experts == 6 * 2 * one
    assert toy().weight_bytes(ep=3).experts == 6 * 2 * one
    assert toy().weight_bytes(ep=2, slots=3).experts == 6 * 3 * one


def of_kinds(*kinds: dict[str, Any], **changes: Any) -> Model:
    """The toy with a list of kinds."""
    return toy(experts=TOY["experts"] | {"kinds": list(kinds)}, **changes)


def test_kinds_of_experts_by_hand() -> None:
    """Experts 0 and 3 of every layer 2 wide in fp8, expert 1 of layer 4 as wide as the others in fp32."""
    narrow = {"name": "narrow", "width": 2, "dtype": "fp8", "experts": [3, 0]}
    model = of_kinds(narrow, {"name": "exact", "dtype": "fp32", "layers": [4], "experts": [1]})
    assert model.kinds == (Kind("default", 7, "bf16"), Kind("narrow", 2, "fp8"), Kind("exact", 7, "fp32"))
    assert model.kind_LE.tolist() == [[1, 2 if layer == 4 else 0, 0, 1] for layer in range(6)]
    slots = np.array([[3, -1, 1]] * 6, np.int16)
    found = model.kind_LS(slots)
    assert found is not None
    assert found.tolist() == [[1, 0, 2 if layer == 4 else 0] for layer in range(6)]
    wide_bytes, narrow_bytes = 3 * 8 * 7 * 2, 3 * 8 * 2
    assert model.expert_bytes_LE[0].tolist() == [narrow_bytes, wide_bytes, wide_bytes, narrow_bytes]
    assert model.expert_bytes_LE[4].tolist() == [narrow_bytes, 2 * wide_bytes, wide_bytes, narrow_bytes]
    routed = 6 * 3 * 8 * (2 + 7 + 7 + 2)
    assert model.routed_params == routed
    assert toy().total_params - model.total_params == 6 * 3 * 8 * 4 * 7 - routed
    # Two of four experts a token.
    assert toy().active_params - model.active_params == (6 * 3 * 8 * 4 * 7 - routed) // 2
    assert model.weight_bytes(ep=2).experts == 6 * 2 * (2 * wide_bytes)


@given(models())
def test_one_kind_in_a_list_is_no_list(model: Model) -> None:
    fields = model.model_dump(mode="json")
    assert "kinds" not in fields["experts"]
    listed = {"name": "all", "width": model.experts.width, "dtype": model.expert_dtype}
    fields["experts"] |= {"kinds": [listed], "width": 1}
    one = validate(Model, fields | {"expert_dtype": "fp32"})
    assert [(kind.width, kind.dtype) for kind in one.kinds] == [(model.experts.width, model.expert_dtype)]
    assert (one.total_params, one.active_params) == (model.total_params, model.active_params)
    assert one.weight_bytes(4) == model.weight_bytes(4)
    np.testing.assert_array_equal(one.expert_bytes_LE, model.expert_bytes_LE)
    assert one.kind_LS(np.zeros((len(one.moe_layers), 3), np.int16)) is None
    assert validate(Model, one.model_dump(mode="json")) == one


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ([{"name": "a", "experts": [1, 4]}], "[0].experts: must be below count (4) (got 4)"),
        ([{"name": "a", "experts": [-1]}], "[0].experts[0]: must be at least 0 (got -1)"),
        ([{"name": "a", "experts": []}], "[0].experts: must have at least 1 entries (got [])"),
        ([{"name": "a", "layers": [0, 1]}], "[0].layers: must be a MoE layer (got 0)"),
        ([{"name": "a", "dtype": "fp9"}], "[0].dtype: must be one of 'fp32', 'bf16'"),
        ([{"name": "a", "width": 0}], "[0].width: must be at least 1 (got 0)"),
        ([{"name": "a", "wdith": 3}], "[0].wdith: unknown key; did you mean 'width'?"),
        ([{"width": 3}], "[0].name: is missing"),
        ([{"name": "default"}], "[0].name: is the name of another kind (got 'default')"),
        (
            [{"name": "a", "experts": [0]}, {"name": "a", "experts": [1]}],
            "[1].name: is the name of another kind (got 'a')",
        ),
        (
            [{"name": "a", "layers": [3]}, {"name": "b", "experts": [2]}],
            "[1]: names expert 2 of layer 3, which belongs to a already (got 'b')",
        ),
        ([{"name": "a", "experts": [2, 2]}], "[0].experts: names one twice (got [2, 2])"),
        ([{"name": str(i), "experts": [0]} for i in range(257)], ": must have at most 256 entries"),
        ({"a": [0]}, ": must be a list"),
    ],
)
def test_kinds_that_contradict_themselves_are_refused(kinds: Any, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        toy(experts=TOY["experts"] | {"kinds": kinds}, first_dense=1, dense_width=5)
    assert str(caught.value).startswith("experts.kinds" + message)


def test_active_parameters_count_the_vocabulary_as_the_source_does() -> None:
    matrix = 10 * 8
    body = toy(active_includes=[]).active_params
    assert toy(active_includes=["head"]).active_params == body + matrix
    assert toy().active_params == body + 2 * matrix
    assert toy(tied_embeddings=True).active_params == body + matrix


def test_block_formats_count_their_scales() -> None:
    assert DTYPE_BYTES["mxfp4"] * 32 == 16 + 1  # 32 values of 4 bits and a scale of one byte
    assert DTYPE_BYTES["nvfp4"] * 16 == 8 + 1
    assert DTYPE_BYTES["int4"] * 128 == 64 + 2


def test_a_model_reads_back_from_its_own_fields() -> None:
    model = toy(attention=MLA | {"window": 4, "full_every": 2}, active_includes=["head"])
    assert validate(Model, model.model_dump(mode="json")) == model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": 0}, "hidden: must be at least 1 (got 0)"),
        ({"hidden": 8.0}, "hidden: must be a whole number (got 8.0)"),
        ({"hidden": True}, "hidden: must be a whole number (got True)"),
        ({"hidden": "8"}, "hidden: must be a whole number (got '8')"),
        ({"hidden": 10**40}, "hidden: must be at most 2147483648"),
        ({"layers": 5000}, "layers: must be at most 4096 (got 5000)"),
        ({"hiden": 8}, "hiden: unknown key; did you mean 'hidden'? known: "),
        ({"name": None}, "name: must be text (got None)"),
        ({"name": "x" * 1001}, "name: must have at most 1000 characters"),
        ({"tied_embeddings": 1}, "tied_embeddings: must be true or false (got 1)"),
        ({"weight_dtype": "bf-16"}, "weight_dtype: must be one of 'fp32', 'bf16'"),
        ({"attention": None}, "attention: must be a mapping of fields (got None)"),
        ({"attention": GQA | {"heads": 5}}, "attention.kv_heads: must divide heads (5) (got 2)"),
        ({"attention": {"kind": "gqa", "heads": 4}}, "attention.kv_heads: is missing: attention of kind gqa"),
        ({"attention": {"kind": "mla", "heads": 4}}, "attention.kv_lora_rank: is missing"),
        (
            {"attention": MLA | {"head_dim": 3}},
            "attention.head_dim: does not belong to attention of kind mla",
        ),
        ({"attention": GQA | {"q_lora_rank": 3}}, "attention.q_lora_rank: does not belong"),
        ({"attention": GQA | {"full_every": 2}}, "attention.full_every: needs window"),
        (
            {"experts": {"count": 4, "top_k": 5, "width": 1}},
            "experts.top_k: must be at most count (4) (got 5)",
        ),
        ({"experts": {"count": 10**6, "top_k": 5, "width": 1}}, "experts.count: must be at most 65536"),
        ({"experts": {"count": 4, "top_k": 1, "width": 1, "groups": 3}}, "experts.groups: must divide count"),
        (
            {"experts": {"count": 4, "top_k": 1, "width": 1, "groups": 2, "top_groups": 3}},
            "experts.top_groups: must be at most groups (2)",
        ),
        (
            {"experts": {"count": 4, "top_k": 3, "width": 1, "groups": 2}},
            "experts.top_k: must fit into top_groups (1) groups of 2 experts (got 3)",
        ),
        ({"experts": {"count": 4, "width": 1}}, "experts.top_k: is missing"),
        ({"first_dense": 6, "dense_width": 3}, "first_dense: leaves no MoE layer (got 6)"),
        ({"moe_every": 7, "dense_width": 3}, "moe_every: leaves no MoE layer (got 7)"),
        ({"first_dense": 1}, "dense_width: is missing: 1 layers are dense"),
        ({"active_includes": ["tail"]}, "active_includes[0]: must be one of 'embedding' or 'head'"),
    ],
)
def test_what_is_refused_names_its_field(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        toy(**changes)
    assert str(caught.value).startswith(message)
