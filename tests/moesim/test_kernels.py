"""Kernel times against rooflines worked out per slot, physical bounds, and monotonicity."""

from __future__ import annotations

import itertools
import math
from functools import cache
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import SpecError
from moesim.hardware.gemm import Matrix, Rates, Rows, gemm_seconds
from moesim.hardware.kernels import Kernels, group_rows
from moesim.spec.cluster import Cluster, load_cluster
from moesim.spec.links import Links
from moesim.spec.model import Model
from moesim.spec.presets import load_model
from moesim.spec.profile import DATA_SHEET, Phase, Profile, Roof, Tile, load_profile
from moesim.spec.yaml_source import Source
from tests.tolerance import rounding

NOWHERE = Source(None, None, {})
# Every rate at its peak, with the unfused activation that the hand-worked cases count.
PEAK = DATA_SHEET.model_copy(update={"fused_activation": False})
# Memory that hides behind arithmetic a thousand times slower.
ARITHMETIC = Roof(compute=0.001, memory=1)


@cache
def model(name: str = "deepseek-v3", **changes: Any) -> Model:
    return load_model({"base": name, **changes}, NOWHERE)


@cache
def cluster(name: str = "h800-1x8") -> Cluster:
    return load_cluster(name, NOWHERE)


@cache
def generic() -> Profile:
    return load_profile(None, NOWHERE, ())


def kernels(which: Model | None = None, profile: Profile | None = None, tp: int = 1) -> Kernels:
    return Kernels(which or model(), cluster().gpu, profile or generic(), tp)


@given(
    tokens=st.lists(st.integers(0, 300), min_size=1, max_size=12),
    gpus=st.integers(1, 4),
    tile=st.sampled_from([1, 16, 64, 128]),
    align=st.sampled_from([1, 24, 128]),
    seed=st.integers(0, 2**32),
)
def test_group_rows_pads_slot_by_slot(tokens: list[int], gpus: int, tile: int, align: int, seed: int) -> None:
    gpu_S = np.random.default_rng(seed).integers(0, gpus, len(tokens)).astype(np.int32)
    rows, active, total = group_rows(np.array([tokens], np.int32), gpu_S, gpus, np.array([tile]), align)
    for gpu in range(gpus):
        own = [count for count, at in zip(tokens, gpu_S, strict=True) if at == gpu]
        laid_out = [math.ceil(count / align) * align for count in own]
        assert rows[0, 0, gpu] == sum(math.ceil(count / tile) * tile for count in laid_out)
        assert active[0, gpu] == sum(count > 0 for count in own)
        assert total[0, gpu] == sum(own)


def hand_worked(tokens: list[int], which: Model, profile: Profile) -> float:
    """Seconds of the experts on one GPU, by loops over tile shapes: gate and up, activation, down."""
    gpu, roof, hidden, width = cluster().gpu, profile.grouped_gemm, which.hidden, which.experts.width
    total, active = sum(tokens), sum(count > 0 for count in tokens)
    bandwidth = gpu.memory_bandwidth * roof.memory
    seconds = total * (2 * width * 2 + width) / bandwidth  # reads gate and up in bf16, writes fp8
    for n, k in ((2 * width, hidden), (hidden, width)):
        flop = []
        for tile, columns in itertools.product(profile.tiles, profile.widths):
            tiles = sum(math.ceil(count / tile.rows) for count in tokens) * math.ceil(n / columns)
            of_a_tile = 2 * tile.rows * columns * (k + roof.drain) / tile.efficiency
            flop.append(math.ceil(tiles / gpu.sms) * gpu.sms * of_a_tile)
        compute = min(flop) / (gpu.flops["fp8"] * roof.compute)
        memory = (active * n * k + total * (k + 2 * n)) / bandwidth
        seconds += max(compute, memory) + (1 - roof.overlap) * min(compute, memory)
    return seconds


@given(st.lists(st.integers(0, 700), min_size=1, max_size=8))
def test_experts_match_loops_over_tile_shapes(tokens: list[int]) -> None:
    found = kernels().experts(np.array([tokens], np.int32), np.zeros(len(tokens), np.int32), 1)
    assert found[0, 0] == pytest.approx(hand_worked(tokens, model(), generic()), rel=rounding(1000))


def test_a_contiguous_layout_multiplies_rows_that_are_not_there_and_streams_none() -> None:
    """20 tokens in each of 4 slots: 128 rows instead of 32 take 4 times the arithmetic, no more memory."""
    tokens, slots = np.full((1, 4), 20, np.int32), np.zeros(4, np.int32)
    tiles = (Tile(rows=16, efficiency=1),)
    for roof, ratio in ((ARITHMETIC, 4.0), (Roof(compute=1, memory=0.001), 1.0)):
        profile = PEAK.model_copy(update={"tiles": tiles, "grouped_gemm": roof, "fused_activation": True})
        masked, contiguous = (
            Kernels(model(), cluster().gpu, profile, links=Links(nvlink=1, nic=1, align=align)).experts(
                tokens, slots, 1
            )[0, 0]
            for align in (1, 128)
        )
        assert contiguous == pytest.approx(ratio * masked, rel=rounding(10**6))


def test_decoding_streams_weights_and_prefill_multiplies() -> None:
    """One token in each of 8 experts costs their 352 MB; 4096 tokens in each cost 2.9 TFLOP."""
    few, many = (
        kernels().experts(np.full((1, 8), count, np.int32), np.zeros(8, np.int32), 1)[0, 0]
        for count in (1, 4096)
    )
    roof, gpu = generic().grouped_gemm, cluster().gpu
    streaming = 8 * model().kind_bytes(model().kinds[0]) / (gpu.memory_bandwidth * roof.memory)
    multiplying = 2 * 8 * 4096 * model().kind_params(model().kinds[0]) / (gpu.flops["fp8"] * roof.compute)
    assert streaming <= few < 1.3 * streaming
    assert multiplying <= many < 1.6 * multiplying


def test_a_fused_activation_saves_its_traffic() -> None:
    """Written once as fp8 instead of as two bf16 values, read and written: 9 bytes a value of the width."""
    tokens, slots = np.full((1, 4), 512, np.int32), np.zeros(4, np.int32)
    added = PEAK.grouped_gemm.model_copy(update={"overlap": 0.0})
    separate = PEAK.model_copy(update={"grouped_gemm": added})
    fused = separate.model_copy(update={"fused_activation": True})
    saved = (
        kernels(profile=separate).experts(tokens, slots, 1) - kernels(profile=fused).experts(tokens, slots, 1)
    )[0, 0]
    assert saved == pytest.approx(
        4 * 512 * 2048 * (4 + 5 - 1) / cluster().gpu.memory_bandwidth, rel=rounding(10**6)
    )


def test_a_started_wave_counts_whole() -> None:
    """132 tiles of 64 × 128 are one wave on 132 multiprocessors; one row more and they are two."""
    tile = Tile(rows=64, efficiency=1)
    profile = PEAK.model_copy(update={"tiles": (tile,), "widths": (128,)})
    rates = Rates(1e12, 1e30, 132)
    one, two = (
        gemm_seconds(
            Rows.of(np.array([rows]), profile), Matrix(128, 64, 1, 1, 1), profile.gemm, profile, rates
        )
        for rows in (132.0 * 64, 132.0 * 64 + 1)
    )
    assert one[0] == pytest.approx(2 * 132 * 64 * 128 * 64 / 1e12, rel=rounding(1000))
    assert two[0] == pytest.approx(2 * one[0], rel=rounding(1000))


def test_transfer_kernels_reach_what_the_profile_says_of_their_mode() -> None:
    low_latency = Links(nvlink=0.8, nic=0.9, fixed=3e-5)
    direct = Links(nvlink=0.7, nic=1.0)
    profile = PEAK.model_copy(update={"dispatch": {"per_expert": low_latency, "per_gpu": direct}})
    assert profile.links("per_expert", 4) == low_latency
    assert profile.links("per_node", 1) == direct
    assert profile.links("per_node", 2) == Links(nvlink=1, nic=1)
    counted = low_latency.model_copy(update={"counts": 1e-5})
    fixed = {
        phase: Kernels(model(), cluster().gpu, profile, 1, counted).launch_s(phase)
        for phase in get_args(Phase)
    }
    assert {phase: seconds for phase, seconds in fixed.items() if seconds} == {
        "dispatch": 4e-5,
        "combine": 3e-5,
    }


def test_a_gpu_without_tokens_does_nothing() -> None:
    assert kernels().experts(np.array([[3, 0]], np.int32), np.array([0, 1], np.int32), 2)[0, 1] == 0.0
    assert kernels().shared_expert(np.array([0.0, 5.0]))[0] == 0.0


@given(seed=st.integers(0, 2**32), gpus=st.integers(1, 4))
def test_more_tokens_never_take_less_time(seed: int, gpus: int) -> None:
    rng = np.random.default_rng(seed)
    slots = int(rng.integers(gpus, 12))
    tokens = rng.integers(0, 400, (2, slots)).astype(np.int32)
    more = tokens + rng.integers(0, 100, tokens.shape).astype(np.int32)
    gpu_S = rng.integers(0, gpus, slots).astype(np.int32)
    assert (kernels().experts(more, gpu_S, gpus) >= kernels().experts(tokens, gpu_S, gpus)).all()
    few, many = rng.integers(0, 300, gpus).astype(float), rng.integers(300, 600, gpus).astype(float)
    for phase in (kernels().router, kernels().shared_expert, kernels().dense, kernels().head):
        assert (phase(many) >= phase(few)).all()
    less, none = kernels().attention(few, 1000 * few, 90 * few), np.zeros(gpus)
    assert (kernels().attention(many, 2000 * many, 90 * few) >= less).all()
    assert (kernels().attention(few, 1000 * few, 99 * few) >= less).all()
    assert (less >= kernels().attention(few, none, none)).all()


@given(seed=st.integers(0, 2**32))
def test_no_time_is_below_its_physical_bound(seed: int) -> None:
    """FLOP over peak and bytes over bandwidth, counted without tiles, for every profile."""
    rng = np.random.default_rng(seed)
    which, gpu = model(), cluster().gpu
    tokens = rng.integers(0, 500, (1, 6)).astype(np.int32)
    gpu_S = np.array([0, 0, 0, 1, 1, 1], np.int32)
    for profile in (generic(), PEAK):
        found = kernels(which, profile).experts(tokens, gpu_S, 2)[0]
        for at in (0, 1):
            own = tokens[0, gpu_S == at]
            flop = 2.0 * which.kind_params(which.kinds[0]) * own.sum()
            moved = which.kind_bytes(which.kinds[0]) * (own > 0).sum()
            assert found[at] >= flop / gpu.flops["fp8"] * (1 - 1e-12)
            assert found[at] >= moved / gpu.memory_bandwidth * (1 - 1e-12)
        assert (found >= kernels(which, PEAK).experts(tokens, gpu_S, 2)[0] - 1e-15).all()


def test_overlap_zero_adds_arithmetic_and_memory() -> None:
    profile = PEAK.model_copy(update={"grouped_gemm": PEAK.grouped_gemm.model_copy(update={"overlap": 0.0})})
    which, gpu = model(), cluster().gpu
    found = kernels(which, profile).experts(np.array([[64]], np.int32), np.zeros(1, np.int32), 1)[0, 0]
    compute = 2 * which.kind_params(which.kinds[0]) * 64 / gpu.flops["fp8"]
    # A token: fp8 in and bf16 out of each GEMM, and of the activation between them.
    token = (7168 + 4096 * 2) + (4096 * 2 + 2048) + (2048 + 7168 * 2)
    memory = (which.kind_bytes(which.kinds[0]) + 64 * token) / gpu.memory_bandwidth
    assert found == pytest.approx(compute + memory, rel=rounding(1000))


def test_attention_reads_the_cache_once_and_the_latent_on_every_rank() -> None:
    """MLA's cache belongs to all heads: with tp 2 each rank reads all of it, for both ranks' tokens."""
    gpu = cluster().gpu
    tokens = np.array([4.0, 4.0])
    context = 50_000.0  # long enough that the cache outweighs the projections
    none = np.zeros(2)

    def cached(which: Model, tp: int) -> Any:
        """What the cache adds to the projections."""
        model_kernels = kernels(which, PEAK, tp)
        long = model_kernels.attention(tokens, tokens * context, none)
        return long - model_kernels.attention(tokens, none, none)

    seconds = {tp: cached(model(), tp) for tp in (1, 2)}
    cache = 4 * context * 576 * 2 / gpu.memory_bandwidth
    assert seconds[1] == pytest.approx(cache, rel=rounding(10**6))
    assert seconds[2] == pytest.approx(2 * cache, rel=rounding(10**6))
    # Grouped queries: the two ranks share the heads, so each reads as much as without tensor parallelism.
    full = [cached(model("gpt-oss-20b"), tp) for tp in (1, 2)]
    assert full[0] == pytest.approx(full[1], rel=rounding(10**6))


def test_a_chunk_shares_the_keys_it_streams_and_works_on_expanded_heads() -> None:
    """A long chunk is bound by arithmetic: 2·128·(192 + 128) FLOP for each query and key with MLA."""
    which, gpu = model(), cluster().gpu
    tokens, none = np.array([4096.0]), np.zeros(1)
    keys = tokens * 50_000
    found = kernels(which, PEAK).attention(tokens, none, keys)
    projections = kernels(which, PEAK).attention(tokens, none, none)
    expected = keys * 2 * 128 * (192 + 128) / gpu.flops["bf16"]
    np.testing.assert_allclose(found - projections, expected, rtol=rounding(10**6))


def test_weights_that_the_gpu_cannot_multiply_run_in_the_activations_dtype() -> None:
    """mxfp4 on Hopper streams 4.25 bits and multiplies in bf16."""
    gqa, gpu = model("gpt-oss-20b"), cluster().gpu
    found = kernels(gqa, PEAK).experts(np.array([[60_000]], np.int32), np.zeros(1, np.int32), 1)[0, 0]
    activation = 60_000 * 3 * gqa.experts.width * 2 / gpu.memory_bandwidth
    compute = 2 * gqa.kind_params(gqa.kinds[0]) * 60_000 / gpu.flops["bf16"]
    assert found == pytest.approx(compute + activation, rel=rounding(1000))


@pytest.mark.parametrize(
    ("gpu", "dtype", "inputs", "rate"),
    [
        ("b200-1x8", "mxfp4", {"mxfp4": "fp8"}, 4500e12),  # with mxfp8 activations at the rate of fp8
        ("b200-1x8", "nvfp4", {"nvfp4": "nvfp4"}, 9000e12),
        ("b200-1x8", "mxfp4", {}, 2250e12),  # widened to bf16
        ("b200-1x8", "int8", {"int8": "int8"}, 4500e12),
        ("h100-1x8", "mxfp4", {"mxfp4": "fp8"}, 989e12),  # Hopper multiplies fp8, but no FP4
        ("h100-1x8", "nvfp4", {"nvfp4": "nvfp4"}, 989e12),
        ("h100-1x8", "fp8", {"fp8": "bf16"}, 989e12),
        ("h100-1x8", "fp8", {}, 1979e12),
    ],
)
def test_narrow_weights_run_at_the_rate_of_what_they_meet(
    gpu: str, dtype: str, inputs: Any, rate: float
) -> None:
    """So many tokens that arithmetic alone counts; weights are streamed in their own dtype in any case."""
    which = model("gpt-oss-20b", expert_dtype=dtype)
    profile = DATA_SHEET.model_copy(update={"inputs": inputs})
    model_kernels = Kernels(which, cluster(gpu).gpu, profile)
    slots = np.zeros(1, np.int32)
    many = model_kernels.experts(np.array([[90_000]], np.int32), slots, 1)[0, 0]
    assert many == pytest.approx(2 * which.kind_params(which.kinds[0]) * 90_000 / rate, rel=rounding(1000))
    one = model_kernels.experts(np.array([[1]], np.int32), slots, 1)[0, 0]
    assert one == pytest.approx(
        which.kind_bytes(which.kinds[0]) / cluster(gpu).gpu.memory_bandwidth, rel=5e-3
    )


def test_blackwell_multiplies_fp4_weights_by_default() -> None:
    """The same experts on the same GPU: arithmetic of nvfp4 twice as fast as of mxfp4, which meets fp8."""
    tokens, slots = np.array([[90_000]], np.int32), np.zeros(1, np.int32)
    seconds = {
        dtype: Kernels(
            model("gpt-oss-20b", expert_dtype=dtype), cluster("gb200-1x72").gpu, generic()
        ).experts(tokens, slots, 1)[0, 0]
        for dtype in ("bf16", "mxfp4", "nvfp4")
    }
    assert 1.7 < seconds["bf16"] / seconds["mxfp4"] < 2.3
    assert 1.4 < seconds["mxfp4"] / seconds["nvfp4"] < 2.3


@pytest.mark.parametrize("field", ["tiles", "widths"])
def test_a_profile_has_a_bounded_number_of_tile_shapes(field: str) -> None:
    """Every GEMM is tried with each pair: a long list would take unbounded time and memory."""
    entry: Any = {"rows": 16, "efficiency": 1.0} if field == "tiles" else 64
    fields = generic().model_dump() | {field: [entry] * 65}
    with pytest.raises(SpecError, match=rf"{field}: must have at most 64 entries"):
        load_profile(fields, NOWHERE, ())


def test_a_slot_starts_before_its_first_tile() -> None:
    """Two slots of 3 and 17 rows in tiles of 16 that each start like 8 rows more: 24 + 40 rows."""
    tile = Tile(rows=16, efficiency=0.5, start=8)
    plain, started = (
        kernels(profile=PEAK.model_copy(update={"tiles": (each,), "grouped_gemm": ARITHMETIC}))
        for each in (tile.model_copy(update={"start": 0.0}), tile)
    )
    tokens, slots = np.array([[3, 17, 0]], np.int32), np.zeros(3, np.int32)
    ratio = started.experts(tokens, slots, 1) / plain.experts(tokens, slots, 1)
    assert ratio[0, 0] == pytest.approx(64 / 48, rel=1e-3)


@given(
    tokens=st.lists(st.integers(0, 90), min_size=1, max_size=9), gpus=st.integers(1, 3), seed=st.integers(0)
)
def test_a_loop_over_slots_is_a_group_of_one_after_the_other(tokens: list[int], gpus: int, seed: int) -> None:
    tiles = (Tile(rows=1, efficiency=0.2), Tile(rows=16, efficiency=1.0, start=9))
    grouped = PEAK.model_copy(update={"tiles": tiles})
    loop = grouped.model_copy(update={"loop": True})
    gpu_S = np.random.default_rng(seed).integers(0, gpus, len(tokens)).astype(np.int32)
    clock_G = np.linspace(1.0, 0.5, gpus)
    found = Kernels(model(), cluster().gpu, loop, clock_G=clock_G).experts(
        np.array([tokens], np.int32), gpu_S, gpus
    )
    expected = np.zeros(gpus)
    for count, at in zip(tokens, gpu_S, strict=True):
        alone = Kernels(model(), cluster().gpu, grouped, clock_G=float(clock_G[at]))
        expected[at] += alone.experts(np.array([[count]], np.int32), np.zeros(1, np.int32), 1)[0, 0]
    np.testing.assert_allclose(found[0], expected, rtol=rounding(1000))


def of_kinds(*kinds: dict[str, Any], **changes: Any) -> Model:
    """deepseek-v3 with a list of kinds."""
    fields = model().model_dump(mode="json") | changes
    fields["experts"] |= {"kinds": list(kinds)}
    return load_model(fields, NOWHERE)


@pytest.mark.parametrize("loop", [False, True])
def test_each_slot_costs_what_its_kind_does_by_hand(loop: bool) -> None:
    """One GPU: 3 slots 2048 wide in fp8, one of them idle, and one 512 wide in bf16, whose bytes bind."""
    which = of_kinds({"name": "narrow", "width": 512, "dtype": "bf16", "experts": [9]})
    profile = PEAK.model_copy(update={"loop": loop, "grouped_gemm": Roof(compute=1, memory=0.01)})
    tokens = np.array([[4, 0, 2, 8]], np.int32)
    kind_LS = which.kind_LS(np.array([[0, 1, 2, 9]] * 58, np.int16))
    assert kind_LS is not None
    found = kernels(which, profile).experts(tokens, np.zeros(4, np.int32), 1, kind_LS[:1])[0, 0]
    weights = 2 * 3 * 7168 * 2048 + 3 * 7168 * 512 * 2
    # A row enters in the dtype of the weights and leaves in bf16: up 2 w values, the activation, down.
    rows = 0
    for count, width, inputs in ((6, 2048, 1), (8, 512, 2)):
        rows += count * (7168 * inputs + 2 * width * 2)  # gate and up
        rows += count * (2 * width * 2 + width * inputs)  # the activation
        rows += count * (width * inputs + 7168 * 2)  # down
    assert found == pytest.approx(
        (weights + rows) / (0.01 * cluster().gpu.memory_bandwidth), rel=rounding(1000)
    )


def test_arithmetic_follows_the_width_and_the_dtype_of_a_kind() -> None:
    """10,000 tokens each: 6 · 7168 FLOP a token and inner value, in bf16 at half of the rate of fp8."""
    which = of_kinds({"name": "narrow", "width": 512, "dtype": "bf16", "experts": [9]})
    profile = PEAK.model_copy(update={"grouped_gemm": ARITHMETIC, "fused_activation": True})
    tokens, gpus = np.full((1, 2), 10_000, np.int32), np.arange(2, dtype=np.int32)
    found = kernels(which, profile).experts(tokens, gpus, 2, np.array([[0, 1]], np.int16))[0]
    flops = cluster().gpu.flops
    expected = [10_000 * 6 * 7168 * 2048 / flops["fp8"], 10_000 * 6 * 7168 * 512 / flops["bf16"]]
    assert found.tolist() == pytest.approx([1000 * seconds for seconds in expected], rel=rounding(1000))


@given(seed=st.integers(0, 2**32), loop=st.booleans())
def test_one_kind_that_is_listed_costs_what_none_does_and_wider_ones_never_less(
    seed: int, loop: bool
) -> None:
    rng = np.random.default_rng(seed)
    profile = generic().model_copy(update={"loop": loop})
    tokens = rng.integers(0, 400, (2, 6)).astype(np.int32)
    gpu_S = rng.integers(0, 2, 6).astype(np.int32)
    kind_LS = rng.integers(0, 2, (2, 6)).astype(np.int16)
    plain = kernels(profile=profile).experts(tokens, gpu_S, 2)
    listed = of_kinds({"name": "all", "width": 2048, "dtype": "fp8"}, expert_dtype="bf16")
    one = kernels(listed, profile).experts(tokens, gpu_S, 2, kind_LS)
    np.testing.assert_array_equal(one, plain)
    widths = sorted(rng.integers(1, 4096, 2).tolist())
    narrow, wide = (
        kernels(of_kinds({"name": "a", "width": width, "experts": [0]}), profile).experts(
            tokens, gpu_S, 2, kind_LS
        )
        for width in widths
    )
    assert (wide >= narrow).all()


def test_each_kind_is_launched_by_itself() -> None:
    """Six launches instead of three where a layer has two kinds; slot by slot they are as many as before."""
    which = of_kinds({"name": "narrow", "width": 512, "layers": [3, 5], "experts": [9]})
    profile = PEAK.model_copy(update={"launch": 2e-6, "kernels": {"experts": 3, "router": 1}})
    in_turn = profile.model_copy(update={"loop": True})
    assert kernels(profile=profile).launch_s("experts") == pytest.approx(6e-6)
    launches_s = [kernels(which, profile).launch_s("experts", layer) for layer in (3, 4, 5)]
    assert launches_s == pytest.approx([12e-6, 6e-6, 12e-6])
    assert kernels(which, in_turn).launch_s("experts", 3) == pytest.approx(6e-6)
    assert kernels(which, profile).launch_s("router") == pytest.approx(2e-6)


def test_rows_are_read_and_written_once_more_around_a_transfer() -> None:
    """1000 rows of 14336 bytes at half of 3350 GB/s, both ways; by default transfer kernels hide it."""
    links = Links(nvlink=1, nic=1, arrange=0.5)
    served_G = np.array([1000.0, 0.0])
    found = Kernels(model(), cluster().gpu, PEAK, 1, links).arrange(served_G, 14336)
    assert found.tolist() == pytest.approx([1000 * 2 * 14336 / (0.5 * 3350e9), 0.0])
    assert kernels(profile=PEAK).arrange(served_G, 14336).tolist() == [0.0, 0.0]


def test_a_router_may_have_a_roof_of_its_own() -> None:
    slow = PEAK.model_copy(update={"router": Roof(compute=0.1, memory=1)})
    tokens_G = np.array([10_000.0])
    gate = 2 * 10_000 * 256 * 7168 / cluster().gpu.flops["bf16"]
    assert kernels(profile=slow).router(tokens_G)[0] == pytest.approx(10 * gate)
    assert kernels(profile=PEAK).router(tokens_G)[0] < 2 * gate
    assert kernels(profile=slow).head(tokens_G)[0] == kernels(profile=PEAK).head(tokens_G)[0]
