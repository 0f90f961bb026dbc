"""What lies in memory, and what a refusal says would fit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.deployment.deployment import deploy
from moesim.errors import MemoryFitError, SpecError
from moesim.spec.override import Override
from moesim.spec.scenario import Scenario, load_scenario
from tests.moesim.tiny import tiny_scenario, write_scenario


def scenario(folder: Path, *settings: str, **changes: Any) -> Scenario:
    path = write_scenario(folder, tiny_scenario(**changes))
    return load_scenario(str(path), [Override.parse(text) for text in settings])


def test_bytes_by_hand(tmp_path: Path) -> None:
    """3 layers, 1 of them dense; 2 experts a GPU; bf16 throughout."""
    memory = deploy(scenario(tmp_path)).memory
    attention = 64 * 16 * (2 * 4 + 2 * 2)
    experts, dense, router, vocabulary = 2 * 3 * 64 * 32, 3 * 64 * 128, 64 * 8, 2 * 1000 * 64
    weights = 2 * (3 * attention + 2 * (experts + router) + dense + vocabulary)
    cache = 4 * 16 * 3 * 2 * 2 * 16 * 2
    np.testing.assert_array_equal(memory.weights_G, [weights] * 4)
    np.testing.assert_array_equal(memory.cache_G, [cache] * 4)


def test_a_copy_of_an_expert_lies_only_where_it_is(tmp_path: Path) -> None:
    one = deploy(scenario(tmp_path)).memory.weights_G
    more = deploy(scenario(tmp_path, placement={"solver": "greedy", "slots": 12})).memory.weights_G
    np.testing.assert_array_equal(more - one, [2 * 2 * 3 * 64 * 32] * 4)


def test_experts_weigh_what_their_kind_does_where_they_are(tmp_path: Path) -> None:
    """Two experts a GPU: 0 and 1 of both layers half as wide, 5 of layer 2 in fp8."""
    model = tiny_scenario()["model"]
    plain_G = deploy(scenario(tmp_path)).memory.weights_G
    model["experts"]["kinds"] = [
        {"name": "narrow", "width": 16, "experts": [0, 1]},
        {"name": "rounded", "dtype": "fp8", "experts": [5], "layers": [2]},
    ]
    one = 3 * 64 * 32 * 2
    asked = scenario(tmp_path, model=model)
    np.testing.assert_array_equal(plain_G - deploy(asked).memory.weights_G, [2 * 2 * one / 2, 0, one / 2, 0])
    resolved = write_scenario(tmp_path, asked.resolved(), "resolved.yaml")
    assert load_scenario(str(resolved)) == asked
    with pytest.raises(SpecError, match="holds for bf16, tiny has weights in fp8"):
        scenario(tmp_path, "profile.dtypes=[bf16]", model=model)


def test_tensor_parallel_ranks_cache_their_share_for_the_whole_group(tmp_path: Path) -> None:
    one, two = (deploy(scenario(tmp_path, parallelism={"ep": 4, "tp": tp})).memory for tp in (1, 2))
    np.testing.assert_array_equal(one.cache_G, two.cache_G)
    assert (two.weights_G < one.weights_G).all()


def test_a_sliding_layer_caches_its_window_only(tmp_path: Path) -> None:
    """Contexts of 16: two layers keep 5 keys, of three layers the second keeps all."""
    model = tiny_scenario()["model"]
    model["attention"] |= {"window": 5, "full_every": 2}
    cache_G = deploy(scenario(tmp_path, model=model)).memory.cache_G
    np.testing.assert_array_equal(cache_G, [4 * (5 + 16 + 5) * 2 * 2 * 16 * 2] * 4)


def test_unequal_ranks_need_unequal_memory(tmp_path: Path) -> None:
    workload = tiny_scenario()["workload"] | {"tokens_per_gpu": [4, 8, 0, 4]}
    cache = deploy(scenario(tmp_path, workload=workload)).memory.cache_G
    assert cache[1] == 2 * cache[0]
    assert cache[2] == 0.0


def refusal(folder: Path, *settings: str, **changes: Any) -> str:
    with pytest.raises(MemoryFitError) as caught:
        deploy(scenario(folder, *settings, **changes))
    return str(caught.value)


def test_too_many_sequences_say_how_many_would_fit(tmp_path: Path) -> None:
    settings = ("cluster.gpu.memory=3 MB", "workload.tokens_per_gpu=64", "workload.context=1000")
    message = refusal(tmp_path, *settings)
    fits = int(re.search(r"tokens_per_gpu: (\d+) would fit", message)[1])  # type: ignore[index]
    deploy(scenario(tmp_path, *settings[::2], f"workload.tokens_per_gpu={fits}"))
    refusal(tmp_path, *settings[::2], f"workload.tokens_per_gpu={fits + 1}")


def test_what_is_not_proportional_is_not_promised(tmp_path: Path) -> None:
    """Half of the KV cache would fit; half of the context keeps more, half of a chunk as much."""
    settings = ("cluster.gpu.memory=650 kB", "workload.tokens_per_gpu=16", "workload.context=48")
    assert re.search(r"tokens_per_gpu: \d+ would fit, or \d+% of the context", refusal(tmp_path, *settings))
    model = tiny_scenario()["model"]
    model["attention"] |= {"window": 40, "full_every": 2}
    message = refusal(tmp_path, *settings, model=model)
    assert re.search(r"tokens_per_gpu: \d+ would fit$", message.removeprefix("cluster.gpu.memory: "))
    chunk = ("workload.phase=prefill", "workload.context=6000", "cluster.gpu.memory=650 kB")
    assert re.search(r"\d+% of this KV cache would fit$", refusal(tmp_path, *chunk))


def test_a_larger_group_holds_the_copies_too(tmp_path: Path) -> None:
    model = tiny_scenario()["model"]
    model["experts"] |= {"width": 4096, "count": 16}
    cluster = tiny_scenario()["cluster"] | {"nodes": 8}
    changes = {"model": model, "cluster": cluster, "placement": {"solver": "greedy", "slots": 32}}
    memory = "cluster.gpu.memory=11 MB"
    assert "parallelism.ep: 16 would fit" in refusal(tmp_path, memory, **changes)
    refusal(tmp_path, memory, **(changes | {"parallelism": {"ep": 8}}))
    deploy(scenario(tmp_path, memory, **(changes | {"parallelism": {"ep": 16}})))


def test_too_large_weights_say_which_group_would_fit(tmp_path: Path) -> None:
    model = tiny_scenario()["model"]
    model["experts"]["width"] = 4096
    changes = {"model": model, "parallelism": {"ep": 2}}
    message = refusal(tmp_path, "cluster.gpu.memory=10 MB", **changes)
    assert "parallelism.ep: 4 would fit" in message
    deploy(scenario(tmp_path, "cluster.gpu.memory=10 MB", **(changes | {"parallelism": {"ep": 4}})))
    assert "no larger group would fit" in refusal(tmp_path, "cluster.gpu.memory=500 kB", **changes)


def test_a_profile_for_other_dtypes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"profile\.dtypes: holds for fp8, tiny has weights in bf16"):
        scenario(tmp_path, "profile.dtypes=[fp8]")
    assert scenario(tmp_path, "profile.dtypes=[fp8, bf16]").profile.dtypes == ("fp8", "bf16")
