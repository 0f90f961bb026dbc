"""Families of Hugging Face configs: released models have their published counts, and no class crashes."""

from __future__ import annotations

import contextlib
import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moesim.errors import SpecError
from moesim.spec.hf_config import read_hf_config
from moesim.spec.hf_families import FAMILIES
from moesim.spec.model import Model
from tests.examples import examples
from tests.moesim.published_configs import PUBLISHED

PAGE = Path(__file__).parents[2] / "docs/models.md"


def read(folder: Path, config: Any, beside: Any = None) -> Model:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if beside is not None:
        (folder / "hf_quant_config.json").write_text(json.dumps(beside))
    return read_hf_config(folder / "config.json")


def released(name: str, folder: Path) -> Model:
    return read(folder / name, PUBLISHED[name].config, PUBLISHED[name].beside)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_released_model_has_its_published_counts(name: str, tmp_path: Path) -> None:
    """Cards round, some count layers of multi-token prediction or a vision tower, and vocabularies differ."""
    model, published = released(name, tmp_path), PUBLISHED[name]
    assert model.total_params / 1e9 == pytest.approx(float(published.total), rel=0.04)
    active = [(model.active_params - drop * model.embedding_params) / 1e9 for drop in (0, 1, 2)]
    assert min(abs(each / float(published.active) - 1) for each in active) < 0.1
    for field, value in (published.expected or {}).items():
        assert getattr(model, field) == value


def test_the_documentation_has_the_table(tmp_path: Path) -> None:
    """As ``moesim presets model`` prints the counts."""
    page = PAGE.read_text(encoding="utf-8")
    for name, published in PUBLISHED.items():
        model = released(name, tmp_path)
        computed = f"{model.total_params / 1e9:,.2f} B | {model.active_params / 1e9:,.2f} B"
        row = rf"\| {re.escape(name)} \| .* \| {published.total} B \| {published.active} B \| {computed} \|"
        assert re.search(row, page), name
    for family in FAMILIES:
        assert f"`{family}`" in page, family


def test_nvfp4_beside_a_config_that_does_not_know_of_it(tmp_path: Path) -> None:
    plain = PUBLISHED["Qwen3-VL-235B-A22B"].config["text_config"] | {"model_type": "qwen3_moe"}
    assert read(tmp_path / "a", plain).expert_dtype == "bf16"

    def beside(**quantization: Any) -> Model:
        return read(tmp_path / "b", plain, {"quantization": quantization})

    model = beside(quant_algo="NVFP4", kv_cache_quant_algo="FP8", exclude_modules=["*self_attn*"])
    assert (model.expert_dtype, model.weight_dtype, model.kv_dtype) == ("nvfp4", "bf16", "fp8")
    whole = beside(quant_algo="FP8", exclude_modules=["lm_head"])
    assert (whole.expert_dtype, whole.weight_dtype, whole.kv_dtype) == ("fp8", "fp8", "bf16")
    mixed = beside(
        quant_algo="MIXED_PRECISION",
        quantized_layers={
            "model.layers.0.mlp.experts.0.up_proj": {"quant_algo": "NVFP4"},
            "model.layers.0.self_attn.q_proj": {"quant_algo": "FP8"},
        },
    )
    assert (mixed.expert_dtype, mixed.weight_dtype) == ("nvfp4", "fp8")
    cache = beside(quant_algo=None, kv_cache_quant_algo="FP8")
    assert (cache.expert_dtype, cache.kv_dtype) == ("bf16", "fp8")


@pytest.mark.parametrize(
    ("quantised", "beside", "message"),
    [
        (
            None,
            {"quantization": {"quant_algo": "FP3"}},
            "hf_quant_config.json: quantization.quant_algo: must be",
        ),
        (None, {"quantisation": {}}, "hf_quant_config.json: quantization: is missing"),
        (
            {"quant_method": "fp8"},
            {"quantization": {"quant_algo": "NVFP4"}},
            r"config.json: quantization_config: says expert_dtype fp8, hf_quant_config.json .* says nvfp4",
        ),
        (
            {"quant_method": "compressed-tensors", "config_groups": {}},
            None,
            "config_groups: must quantise all weights alike",
        ),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 3}}}},
            None,
            r"quantization_config.config_groups.g.weights.num_bits: must be 4 or 8.*\(got 3\)",
        ),
    ],
)
def test_a_quantisation_that_is_not_known_is_named(
    quantised: Any, beside: Any, message: str, tmp_path: Path
) -> None:
    config = PUBLISHED["Phi-3.5-MoE"].config | {"quantization_config": quantised}
    with pytest.raises(SpecError, match=message):
        read(tmp_path / "m", config, beside)


def test_other_methods_of_quantisation(tmp_path: Path) -> None:
    def experts(**quantised: Any) -> tuple[str, str, str]:
        model = read(tmp_path / "m", PUBLISHED["Phi-3.5-MoE"].config | {"quantization_config": quantised})
        return model.expert_dtype, model.weight_dtype, model.kv_dtype

    group = {"weights": {"num_bits": 4, "type": "float", "group_size": 16}}
    scheme = {"num_bits": 8, "type": "float"}
    kept = {"ignore": ["re:.*self_attn.*"], "kv_cache_scheme": scheme}
    assert experts(quant_method="compressed-tensors", config_groups={"g": group}, **kept) == (
        "nvfp4",
        "bf16",
        "fp8",
    )
    assert experts(quant_method="modelopt", quant_algo="NVFP4", kv_cache_scheme=scheme) == (
        "nvfp4",
        "nvfp4",
        "fp8",
    )
    quark = {"weight": {"dtype": "fp4"}}
    assert experts(quant_method="quark", global_quant_config=quark) == ("mxfp4", "mxfp4", "bf16")


def classes() -> list[str]:
    """The model types of transformers whose configs speak of experts."""
    transformers = pytest.importorskip("transformers", reason="its classes are what is read")
    mapping = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    found = []
    for model_type in mapping:
        try:
            text = json.dumps(mapping[model_type]().to_dict(), default=str)
        except Exception:
            continue
        if re.search(r'"[^"]*(expert|moe)[^"]*":', text):
            found.append(model_type)
    return found


def test_every_class_with_experts_is_read_or_refused_by_a_key(tmp_path: Path) -> None:
    import transformers  # classes() skips where it is absent

    names = classes()
    mapping = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    refused: dict[str, str] = {}
    named: dict[str, bool] = {}
    for model_type in names:
        config = {**mapping[model_type]().to_dict(), "model_type": model_type}
        text = json.dumps(config, default=str)
        try:
            read(tmp_path / "m", json.loads(text))
        except SpecError as error:
            refused[model_type] = str(error.field).rsplit(".", 1)[-1]
            named[model_type] = f'"{refused[model_type]}"' in text or "is missing" in error.rule
    assert all(named.values()), named
    # Classes whose defaults are no model: no experts, or no number of those that a token chooses.
    assert {name for name in refused if name in FAMILIES} <= {"deepseek_v2", "dots1"}
    assert len(names) - len(refused) >= 35


@pytest.mark.executor
@pytest.mark.parametrize(
    "model_type",
    ["deepseek_v32", "deepseek_v4", "qwen3_next", "jamba", "kimi_linear", "bailing_hybrid", "llama4_text"],
)
def test_parameters_are_those_of_the_modules(model_type: str, tmp_path: Path) -> None:
    """All matrices of the model that transformers builds, which stay without memory."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    mapping = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    if model_type not in mapping:
        pytest.skip(f"this transformers has no {model_type}")
    config = mapping[model_type]()
    with torch.device("meta"):
        module = transformers.AutoModelForCausalLM.from_config(config)
    matrices = sum(each.numel() for each in module.parameters() if each.ndim > 1)
    text = json.dumps({**config.to_dict(), "model_type": model_type}, default=str)
    model = read(tmp_path / "m", json.loads(text))
    # DeepSeek-V4's hyper-connections are left out: 24 rows of 4 · hidden, twice a layer.
    small = 24 * 4 * config.hidden_size * 2 * model.layers if model_type == "deepseek_v4" else 0
    assert model.total_params + small == pytest.approx(matrices, rel=1e-5)


ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    3,
    1.5,
    1 << 40,
    "",
    "odd",
    [],
    [0],
    ["odd"],
    [[1]],
    [{}],
    {},
    {"a": 1},
    {"a": {}},
]


@settings(max_examples=examples(300), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(list(PUBLISHED)), st.data())
def test_whatever_a_key_holds_it_is_read_or_refused(tmp_path: Path, name: str, data: st.DataObject) -> None:
    config = copy.deepcopy(PUBLISHED[name].config)
    beside = copy.deepcopy(PUBLISHED[name].beside or {"quantization": {"quant_algo": "NVFP4"}})
    for whole in (config, beside):
        part: Any = whole
        while isinstance(part, dict) and part:
            key = data.draw(st.sampled_from(sorted(part)))
            if data.draw(st.booleans()) or not isinstance(part[key], dict) or not part[key]:
                part[key] = data.draw(st.sampled_from(ODD))
                break
            part = part[key]
    with contextlib.suppress(SpecError):
        read(tmp_path / "m", config, beside)


def test_layers_by_kind(tmp_path: Path) -> None:
    jamba = released("Jamba-1.5-Mini", tmp_path)
    assert jamba.moe_layers == tuple(range(1, 32, 2))
    assert [jamba.attention_in(layer).kind for layer in range(8)] == ["linear"] * 4 + ["gqa"] + ["linear"] * 3
    maverick = released("Llama-4-Maverick", tmp_path)
    assert (maverick.moe_layers, maverick.dense_width) == (tuple(range(1, 48, 2)), 16384)
    assert [maverick.attention_context(layer, 1e5) for layer in (2, 3)] == [8192, 1e5]
    v4 = released("DeepSeek-V4-Flash", tmp_path)
    assert [v4.attention_in(layer).compress for layer in range(5)] == [None, None, 4, 128, 4]
    assert v4.attention_context(2, 1e5) == 128 + 512
    assert v4.attention_context(3, 1e5) == 128 + 1e5 / 128
