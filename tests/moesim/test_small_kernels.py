"""Small kernels: their bytes and launches by hand, when they run, and what the host adds."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.deployment.deployment import deploy
from moesim.hardware.kernels import Kernels
from moesim.hardware.small_kernels import Form, RowsOf, SmallKernel, small_kernels
from moesim.simulation.busy import Busy
from moesim.simulation.costs import Costs
from moesim.simulation.price import priced
from moesim.spec.cluster import load_cluster
from moesim.spec.model import Model
from moesim.spec.presets import load_model
from moesim.spec.profile import DATA_SHEET, Phase, load_profile
from moesim.spec.scenario import load_scenario
from moesim.spec.yaml_source import Source
from tests.moesim.tiny import tiny_scenario, write_scenario
from tests.tolerance import rounding

NOWHERE = Source(None, None, {})
FP8 = Form(inputs=1, expert_inputs=1, sent=1, copy=7392)


@cache
def model(name: str) -> Model:
    return load_model({"base": name}, NOWHERE)


def bytes_of(kernels: tuple[SmallKernel, ...], phase: Phase) -> Counter[RowsOf]:
    """By kind of row, bytes of a row in all kernels of a phase, with attention of the first kind."""
    found: Counter[RowsOf] = Counter()
    attention = next((each.attention for each in kernels if each.phase == phase), None)
    for each in kernels:
        if each.phase == phase and each.attention == attention:
            found[each.rows] += each.row_bytes  # type: ignore[assignment]
    return found


def test_latent_attention_by_hand() -> None:
    """DeepSeek-V3: 128 heads of 128 + 64, latents of 1536 and 512 + 64, in bf16 with fp8 inputs.

    A token: add and norm read two vectors and write two; quantising reads 2 bytes and writes 1, of the
    vector, of the query latent and of the outputs; norms of latents; rotation of 128 + 1 heads; the cache.
    """
    found = bytes_of(small_kernels(model("deepseek-v3"), FP8), "attention")
    vectors = 4 * 7168 * 2 + 2 * (1536 + 512) * 2 + 2 * 129 * 64 * 2 + (512 + 64) * 4
    assert found["tokens"] == vectors + 3 * (7168 + 1536 + 128 * 128)
    assert found["decoding"] == 128 * 2 * ((128 + 512) + 2 * 576 + (576 + 512) + (512 + 128))
    expanded = 512 + 128 * (128 + 128)
    joined = 128 * (128 + 128 + 64) + 64
    assert found["prefilling"] == 2 * (expanded + joined + 2 * 128 * (192 + 128))


def test_grouped_query_attention_in_bf16_by_hand() -> None:
    """gpt-oss-20b: 64 heads, 8 of keys, of 64; nothing is quantised."""
    kernels = small_kernels(model("gpt-oss-20b"), Form(inputs=2, expert_inputs=2, sent=2, copy=5760))
    rotated, cached, scores = 2 * 2 * (64 + 8) * 64, 2 * 8 * 64 * 4, 2 * 2 * 64 * 64
    assert bytes_of(kernels, "attention") == {"tokens": 4 * 2880 * 2 + rotated + cached + scores}
    assert not any(each.name == "quantise" for each in kernels)


def test_around_the_experts_by_hand() -> None:
    """Rows of fp8 with scales are laid out by slot, the sums of outputs read them all and write a token's."""
    found = bytes_of(small_kernels(model("deepseek-v3"), FP8), "experts")
    assert found == {"served": 2 * 7392 + 7168 * 2 + 2 * 2048 * 2, "unique": 7168 * 2}
    # Low-latency kernels do all of that, and activation and quantisation are one kernel.
    by_slot = small_kernels(model("deepseek-v3"), replace(FP8, by_slot=True))
    assert not +bytes_of(by_slot, "experts")
    assert [each.name for each in by_slot if each.phase == "experts"] == ["activation"]
    # Where tokens stay, nothing is laid out anew, and what was not quantised on the way is quantised here.
    staying = small_kernels(model("deepseek-v3"), replace(FP8, travels=False, sent=2, copy=14336))
    assert bytes_of(staying, "experts")["served"] == 7168 * 2 + 2 * 2048 * 2
    assert bytes_of(staying, "experts")["unique"] == 7168 * 2 + 3 * 7168
    # A profile whose dispatch mode counts the laying out has it once.
    assert bytes_of(small_kernels(model("deepseek-v3"), replace(FP8, arranged=True)), "experts") == {
        "served": 2 * 2048 * 2
    }


def test_layers_have_the_kernels_of_their_own_attention() -> None:
    """A recurrent layer neither rotates nor caches keys; an indexer writes 3 heads of 16 and a key of 16.

    With 4 heads of 32 and 2 of keys, values of 8, a window in every second layer: 128 queries and 64 keys are
    rotated, 128 + 32 values are queries and outputs, 64 + 16 are cached.
    """
    shape = {"heads": 4, "kv_heads": 2, "head_dim": 32, "value_dim": 8, "window": 16, "full_every": 2}
    index = {"index_heads": 3, "index_dim": 16, "index_top_k": 4}
    recurrent = {"name": "gdn", "layers": [1], "kind": "linear", "heads": 4, "projections": 99, "state": 64}
    mixed = load_model(
        {
            "base": "mixtral-8x7b",
            "layers": 3,
            "hidden": 100,
            "attention": shape | index,
            "attention_kinds": [recurrent],
        },
        NOWHERE,
    )
    found = small_kernels(mixed, Form(inputs=2, expert_inputs=2, sent=2, copy=200))
    kernels = Kernels(mixed, load_cluster("h100-1x8", NOWHERE).gpu, DATA_SHEET, small=found)
    profile = DATA_SHEET.model_copy(update={"small_kernels": 1.0})
    rate = kernels.gpu.memory_bandwidth
    norm, scores = 4 * 100 * 2, (128 + 32) * 2
    rotated, cached, indexed = 2 * 2 * (128 + 64), (64 + 16) * 4, (3 + 1) * 16 * (2 + 1)
    rows: Any = dict.fromkeys(("tokens", "decoding", "prefilling", "sequences"), np.array([rate]))
    for layer, expected in ((0, norm + scores + rotated + cached + indexed), (1, norm)):
        seconds = replace(kernels, profile=profile).between("attention", rows, mixed.attention_in(layer))
        assert seconds == pytest.approx(np.array([expected]), rel=rounding(20))
    assert [kernels.launches("attention", layer) for layer in range(3)] == [4, 1, 4]


def test_launches_of_a_decoding_layer() -> None:
    """Quantisation joins what bf16 has."""
    for which, form, attention, shared in (
        ("deepseek-v3", FP8, 1 + 1 + 2 + 1 + 1 + 3 + 1 + 1, 4),
        ("deepseek-v2-lite", Form(2, 2, 2, 4096), 1 + 1 + 1 + 3 + 1, 2),
    ):
        kernels = [each for each in small_kernels(model(which), form) if each.rows != "prefilling"]
        launches = Counter(dict.fromkeys(("attention", "shared_expert"), 0))
        for each in kernels:
            launches[each.phase] += each.launches
        assert (launches["attention"], launches["shared_expert"]) == (attention, shared)


def test_bytes_pass_at_the_share_of_the_memory() -> None:
    profile = DATA_SHEET.model_copy(update={"small_kernels": 0.5, "kernels": {"router": 2}, "launch": 1e-6})
    gpu = load_cluster("h100-1x8", NOWHERE).gpu
    small = [
        SmallKernel("a", "router", "tokens", 100.0, 3),
        SmallKernel("b", "router", "sequences", 10.0, 0),
        SmallKernel("c", "other", "tokens", 1.0),
    ]
    kernels = Kernels(model("deepseek-v3"), gpu, profile, small=small)
    rows = {"tokens": np.array([2.0, 0.0]), "sequences": np.array([1.0, 1.0])}
    found = kernels.between("router", rows)  # type: ignore[arg-type]
    assert found == pytest.approx(np.array([210.0, 10.0]) / (0.5 * gpu.memory_bandwidth), rel=rounding(10))
    assert kernels.launches("router") == 5
    assert kernels.launch_s("router") == pytest.approx(5e-6, rel=rounding(10))


@given(name=st.sampled_from(["deepseek-v3", "gpt-oss-20b", "mixtral-8x7b", "qwen3-30b-a3b"]), data=st.data())
def test_more_heads_for_each_gpu_never_cost_less(name: str, data: st.DataObject) -> None:
    """Every row has bytes or launches, none is negative; and a GPU with fewer heads has no more bytes."""
    width = st.sampled_from([1, 2])
    form = Form(data.draw(width), data.draw(width), data.draw(width), 5000, by_slot=data.draw(st.booleans()))
    whole, half = (small_kernels(model(name), replace(form, tp=tp)) for tp in (1, 2))
    assert all(each.row_bytes >= 0 and each.launches >= 0 for each in whole)
    for mine, theirs in zip(whole, half, strict=True):
        assert (mine.name, mine.phase, mine.rows) == (theirs.name, theirs.phase, theirs.rows)
        assert theirs.row_bytes <= mine.row_bytes


def busy(folder: Path, profile: dict[str, Any], workload: dict[str, Any]) -> Busy:
    """Of the first step of the tiny scenario with these fields of the generic profile."""
    generic = load_profile(None, NOWHERE, ()).model_dump(mode="json")
    mapping = tiny_scenario(profile=generic | profile, workload=workload)
    scenario = load_scenario(str(write_scenario(folder, mapping)))
    deployment = deploy(scenario)
    (part,) = priced(deployment)[0].parts
    return Costs(deployment).busy(part, scenario.profile)


PREFILL = {"phase": "prefill", "tokens_per_gpu": 4, "context": 0, "steps": 1}
DECODE = {"phase": "decode", "tokens_per_gpu": 4, "context": 16, "steps": 1}


@pytest.mark.parametrize("workload", [PREFILL, DECODE])
def test_every_phase_at_home_has_some(tmp_path: Path, workload: dict[str, Any]) -> None:
    off = busy(tmp_path, {"small_kernels": None, "eager_launch": None}, workload)
    on = busy(tmp_path, {"eager_launch": None}, workload)
    slow = busy(tmp_path, {"small_kernels": 0.4, "eager_launch": None}, workload)
    for key, bare_G in off.items():
        if key[0] == "other" and key[1] >= 0:
            continue  # the host that waits for counts
        assert (on[key] > bare_G).all()
        # At half of the share they take twice as long.
        assert slow[key] - bare_G == pytest.approx(2 * (on[key] - bare_G), rel=rounding(10**6))


def test_the_host_is_waited_for_where_no_graph_is_replayed(tmp_path: Path) -> None:
    """Prefill, and batches for which none was captured: no phase ends before its kernels are launched."""
    eager = {"eager_launch": "1 ms", "launch": "0 ms"}
    kernels = load_profile(None, NOWHERE, ()).kernels["experts"]
    for workload in (PREFILL, DECODE | {"graph_sizes": [1, 2]}):
        assert (busy(tmp_path, eager, workload)["experts", 1] >= kernels * 1e-3).all()
    for workload in (DECODE, DECODE | {"graph_sizes": [1, 8]}):
        assert (busy(tmp_path, eager, workload)["experts", 1] < 1e-3).all()


@given(tokens=st.integers(0, 1 << 20), sequences=st.integers(0, 1 << 12))
def test_the_host_takes_its_base_and_a_share_for_each(tokens: int, sequences: int) -> None:
    profile = DATA_SHEET.model_copy(update={"step": 1.0, "step_sequence": 0.5, "step_token": 0.25})
    assert profile.host_s(tokens, sequences) == 1.0 + 0.5 * sequences + 0.25 * tokens
    assert DATA_SHEET.host_s(tokens, sequences) == 0.0
