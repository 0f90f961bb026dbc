"""Presets against what their makers published, and how they are found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from moesim.errors import SpecError
from moesim.spec.base import validate
from moesim.spec.cluster import Gpu, Nic
from moesim.spec.model import Model
from moesim.spec.presets import load_model, preset_names, preset_source
from moesim.spec.yaml_source import Source
from traces.statistics import expert_loads
from traces.synthesis import SynthSpec, synthesize

NOWHERE = Source(None, None, {})


@dataclass(frozen=True)
class Published:
    """Parameters in billions, as printed.

    ``digits`` is what the printed digits of the active parameters allow, rounded or cut after the last
    one, where these say less than 1 %.
    """

    total: float
    active: float
    source: str
    digits: tuple[float, float] | None = None


# "Active" includes both vocabulary matrices unless the remark says otherwise; each preset's
# `active_includes` repeats it.
PUBLISHED = {
    # Active with the unembedding, without the embedding, as a footnote of the table says.
    "gpt-oss-20b": Published(20.91, 3.61, "arXiv 2508.10925, table 1"),
    "gpt-oss-120b": Published(116.83, 5.13, "arXiv 2508.10925, table 1"),
    "mixtral-8x7b": Published(46.7, 12.9, "mistral.ai/news/mixtral-of-experts"),
    "mixtral-8x22b": Published(141, 39, "mistral.ai/news/mixtral-8x22b"),
    # Says that 36.7 includes 0.9 for the embedding and 0.9 for the head; with both it would be 37.6,
    # with the head alone it is 36.6.
    "deepseek-v3": Published(671, 36.7, "github.com/deepseek-ai/DeepSeek-V3 README_WEIGHTS.md"),
    # No remark; with the head alone 2.45, with both matrices 2.66, with neither 2.24.
    "deepseek-v2-lite": Published(15.7, 2.4, "arXiv 2405.04434, appendix B", digits=(2.4, 2.5)),
    # The paper's 1.04 T is this checkpoint and one more MoE layer (17 B), as for multi-token prediction;
    # arXiv 2508.06471, table 1, prints 1043 B.
    "kimi-k2": Published(1026.4, 32.6, "parameters of the released checkpoint; arXiv 2507.20534, table 2"),
    "qwen1.5-moe-a2.7b": Published(14.3, 2.7, "huggingface.co/Qwen/Qwen1.5-MoE-A2.7B"),
    "qwen3-30b-a3b": Published(30.5, 3.3, "huggingface.co/Qwen/Qwen3-30B-A3B", digits=(3.3, 3.4)),
    "qwen3-235b-a22b": Published(235, 22, "huggingface.co/Qwen/Qwen3-235B-A22B"),
    "olmoe-1b-7b": Published(6.9, 1.3, "arXiv 2409.02060", digits=(1.25, 1.35)),
    # Without vocabulary matrices; the total includes a multi-token prediction layer of 4 B.
    "glm-4.5": Published(355, 32, "arXiv 2508.06471, table 1"),
    "flame-moe-1.7b": Published(10.3, 1.7, "arXiv 2505.20225", digits=(1.7, 1.8)),
}


def test_every_model_has_its_published_counts() -> None:
    # The model of the built-in sample is our own: its card counts it.
    assert preset_names("models") == sorted({*PUBLISHED, "tiny-moe"})


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_within_one_percent_of_the_published(name: str) -> None:
    model, published = load_model(name, NOWHERE), PUBLISHED[name]
    total, active = model.total_params / 1e9, model.active_params / 1e9
    assert total == pytest.approx(published.total, rel=0.01)
    if published.digits is not None:
        low, high = published.digits
        assert low <= active < high
    else:
        assert active == pytest.approx(published.active, rel=0.01)


@pytest.mark.parametrize(
    ("name", "checkpoint", "not_counted"),
    [
        # Parameters of the released checkpoints, and what of them is no matrix: two norms in each layer
        # and a last one everywhere, then what the family adds.
        ("mixtral-8x7b", 46_702_792_704, 32 * 2 * 4096 + 4096),
        # norms of queries and keys over all heads
        ("olmoe-1b-7b", 6_919_161_856, 16 * (2 * 2048 + 2 * 2048) + 2048),
        # biases of Q, K, V and the gate of the shared expert
        ("qwen1.5-moe-a2.7b", 14_315_784_192, 24 * (2 * 2048 + 3 * 2048 + 2048) + 2048),
        # norms of queries and keys in one head
        ("qwen3-30b-a3b", 30_532_122_624, 48 * (2 * 2048 + 2 * 128) + 2048),
        # norm of the latent
        ("deepseek-v2-lite", 15_706_484_224, 27 * (2 * 2048 + 512) + 2048),
        # norms of both latents, correction of the router's scores
        ("kimi-k2", 1_026_408_232_448, 61 * (2 * 7168 + 512 + 1536) + 7168 + 60 * 384),
        # biases of Q, K, V, output, experts (gate, up, down), router; sinks
        (
            "gpt-oss-20b",
            20_914_757_184,
            24 * (2 * 2880 + 4096 + 2 * 512 + 2880 + 32 * 3 * 2880 + 32 + 64) + 2880,
        ),
    ],
)
def test_matrices_and_vectors_make_up_the_checkpoint(name: str, checkpoint: int, not_counted: int) -> None:
    assert load_model(name, NOWHERE).total_params + not_counted == checkpoint
    assert not_counted < checkpoint / 1000


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("gpt-oss-20b", 12.8 * 2**30),  # arXiv 2508.10925, table 1: checkpoint sizes
        ("gpt-oss-120b", 60.8 * 2**30),
        ("kimi-k2", 1_029_173_256_720),  # sum of the checkpoint's safetensors
    ],
)
def test_weights_fill_what_the_checkpoint_fills(name: str, size: float) -> None:
    assert load_model(name, NOWHERE).weight_bytes(ep=1).total == pytest.approx(size, rel=0.01)


def test_the_cache_of_deepseek_v3_is_the_published_one() -> None:
    # arXiv 2505.09343, table 1: 70.272 KB per token in bf16.
    model = load_model("deepseek-v3", NOWHERE)
    assert model.layers * model.kv_bytes_per_token == 70_272


def test_layers_of_deepseek_v3_and_windows_of_gpt_oss() -> None:
    assert load_model("deepseek-v3", NOWHERE).moe_layers == tuple(range(3, 61))
    oss = load_model("gpt-oss-20b", NOWHERE)
    assert [oss.attention_context(layer, 1000.0) for layer in range(4)] == [128.0, 1000.0, 128.0, 1000.0]
    assert oss.kv_bytes_per_token == 2 * 8 * 64 * 2


@pytest.mark.parametrize("name", preset_names("models"))
def test_models_are_named_as_their_files_and_cite_a_source(name: str) -> None:
    model = load_model(name, NOWHERE)
    assert model.name == name
    assert model.source


@pytest.mark.parametrize("name", preset_names("gpus"))
def test_gpus_cite_sources_for_chip_and_link(name: str) -> None:
    source = preset_source("gpus", name)
    gpu = validate(Gpu, source.value, source=source)
    assert gpu.source
    assert gpu.nvlink.source
    # A hypervisor or driver takes a little of what the name promises.
    promised = int("".join(c for c in gpu.name.split()[-1] if c.isdigit()))
    assert 0.99 * promised * 1e9 <= gpu.memory <= promised * 2**30


def test_nics_cite_sources() -> None:
    for name in preset_names("nics"):
        source = preset_source("nics", name)
        assert validate(Nic, source.value, source=source).source


@pytest.mark.parametrize("name", ["deepseek-v4", "../gpus/h100", "", "DeepSeek-V3", "\0", "x" * 10_000])
def test_an_unknown_name_lists_the_known_ones(name: str) -> None:
    with pytest.raises(SpecError, match=r"no such model preset; .*known: deepseek-v2-lite, deepseek-v3, "):
        preset_source("models", name)


def test_an_unknown_kind_has_no_presets() -> None:
    assert preset_names("planets") == []


def test_an_unknown_model_is_reported_where_it_is_named() -> None:
    with pytest.raises(SpecError) as caught:
        load_model("deepseek-v4", Source({}, "s.yaml", {("model",): 3}), ("model",))
    assert str(caught.value).startswith("s.yaml:3: model: no such model preset; did you mean 'deepseek-v3'?")
    assert "or give a path to a config.json" in str(caught.value)


def test_a_base_is_changed_field_by_field() -> None:
    base = load_model("deepseek-v3", NOWHERE)
    changed = load_model({"base": "deepseek-v3", "kv_dtype": "fp8", "experts": {"top_k": 6}}, NOWHERE)
    assert changed == base.model_copy(
        update={"kv_dtype": "fp8", "experts": base.experts.model_copy(update={"top_k": 6})}
    )


def test_a_model_of_ones_own_is_a_yaml_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "name: mine\nhidden: 8\nlayers: 2\nvocab: 9\n"
        "attention: {heads: 2, kv_heads: 1, head_dim: 4}\nexperts: {count: 4, top_k: 1, width: 0}\n"
    )
    with pytest.raises(SpecError, match=r"mine\.yaml:6: experts\.width: must be at least 1 \(got 0\)"):
        load_model("mine.yaml", Source(None, str(tmp_path / "scenario.yaml"), {}))


def test_every_model_and_gpu_reads_back_from_its_fields() -> None:
    for name in preset_names("models"):
        model = load_model(name, NOWHERE)
        assert validate(Model, model.model_dump(mode="json")) == model
    for name in preset_names("gpus"):
        gpu = validate(Gpu, preset_source("gpus", name).value)
        assert validate(Gpu, gpu.model_dump(mode="json")) == gpu


def test_deepseek_r1_is_as_skewed_as_it_was_measured() -> None:
    """TensorRT-LLM's EPLB blog, EP32 with 8 experts a GPU: (max - mean) / mean of tokens is 1.56."""
    fields = preset_source("generators", "deepseek-r1").value
    model = load_model("deepseek-v3", NOWHERE)
    made = synthesize(
        SynthSpec(
            model.name,
            model.moe_layers,
            model.experts.count,
            model.experts.top_k,
            requests=64,
            tokens_per_request=32,
            skew=fields["skew"],
            persistence=fields["persistence"],
            groups=model.experts.groups,
            top_groups=model.experts.top_groups,
        )
    )
    load_LG = expert_loads(made).reshape(len(model.moe_layers), 32, 8).sum(axis=2)
    assert (load_LG.max(axis=1) / load_LG.mean(axis=1) - 1).mean() == pytest.approx(1.56, rel=0.05)
