"""Fewer active experts: the targets, and the serving model behind them followed by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.comparison import Comparison, Row, summary
from experiments.fewer_experts.experiment import (
    TOKENS_PER_S,
    TOP_K,
    fewer_experts,
    measured_saved_ms,
    saved_ms,
    served_by,
)
from experiments.fewer_experts.serving import Serving, serve
from moesim.analysis.result import simulate_scenario
from moesim.spec.model import Model
from moesim.spec.presets import load_model
from moesim.spec.profile import Profile, load_profile
from moesim.spec.yaml_source import Source
from moesim.units import parse_bandwidth
from tests.tolerance import rounding

NOWHERE = Source(None, None, {})


@pytest.fixture(scope="module")
def result() -> Comparison:
    return fewer_experts()


@pytest.fixture(scope="module")
def generic() -> Profile:
    return load_profile(None, NOWHERE, ())


@pytest.fixture(scope="module")
def pair() -> list[Serving]:
    """Two requests at the most and at the fewest experts."""
    return [serve(2, k) for k in (TOP_K[0], TOP_K[-1])]


def model_of(serving: Serving) -> Model:
    return serving.decode.deployment.scenario.model


def checks(result: Comparison, *words: str) -> list[Row]:
    found = [row for row in result.checks if all(word in row.case for word in words)]
    assert found
    return found


def test_saved_milliseconds_are_within_20_percent(result: Comparison) -> None:
    saved, levels = result.rows[:2], result.rows[2:]
    assert [row.case for row in saved] == ["concurrency 2, k 6 to 2", "concurrency 32, k 6 to 2"]
    totals = summary(saved)
    assert totals["max_abs_error"] <= 0.10
    assert totals["loo_mean_abs_error"] <= 0.15
    assert max(abs(row.left_out_error) for row in saved) <= 0.20
    assert {row.unit for row in levels} == {"tokens/s"}
    assert len(levels) == 2 * len(TOP_K)


def test_one_parameter_below_the_data_sheet(result: Comparison) -> None:
    (memory,) = result.parameters
    assert 0.7 * 1.935e12 <= parse_bandwidth(memory.value) <= 1.935e12


def test_the_bandwidth_fitted_elsewhere_would_do(result: Comparison) -> None:
    assert max(abs(row.error) for row in checks(result, "memory as in generic")) <= 0.20


@pytest.mark.parametrize("assumed", ["skew 1", "persistence 0.9", "256 of the tokens in"])
def test_unpublished_settings_hardly_matter(result: Comparison, assumed: str) -> None:
    found = checks(result, assumed)
    assert len(found) == 2
    assert max(abs(row.error) for row in found) <= 0.20


def test_throughput_was_not_fitted_and_follows(result: Comparison) -> None:
    """Published as output tokens: of all tokens there would be twice as many in each of the three regimes."""
    rows = [row for row in (*result.rows, *result.checks) if row.unit == "tokens/s"]
    for concurrency, bound in ((2, 0.10), (32, 0.05), (512, 0.10)):
        found = [row for row in rows if row.case.startswith(f"concurrency {concurrency}, k")]
        assert len(found) == len(TOP_K)
        assert max(abs(row.error) for row in found) <= bound


def test_512_requests_are_bound_by_more_than_weights(result: Comparison) -> None:
    """The model saves less than was measured: said so in the README, and not fitted away."""
    (row,) = checks(result, "concurrency 512, k 6 to 2")
    assert row.measured == pytest.approx(512e3 / 9379 - 512e3 / 10954)
    assert row.predicted < row.measured


def test_measured_milliseconds_by_hand() -> None:
    assert measured_saved_ms(2) == pytest.approx(4.1754 - 3.1696, abs=1e-4)
    assert measured_saved_ms(32) == pytest.approx(13.6461 - 10.4269, abs=1e-4)
    assert all(len(cells) == len(TOP_K) for cells in TOKENS_PER_S.values())


def test_one_gpu_holds_half_of_what_is_split_and_all_of_the_rest(pair: list[Serving]) -> None:
    """SGLang repeats routers and latent projections (2048 × 576 a layer) on both GPUs."""
    whole, half = load_model("deepseek-v2-lite", NOWHERE), model_of(pair[0])
    repeated = 27 * 2048 * (512 + 64) + 26 * 2048 * 64
    assert 2 * half.total_params == whole.total_params + repeated
    assert half.kv_bytes_per_token == whole.kv_bytes_per_token
    assert half.moe_layers == whole.moe_layers
    assert [model_of(each).experts.top_k for each in pair] == [6, 2]


def test_kernels_take_what_the_simulator_says(pair: list[Serving], generic: Profile) -> None:
    for batches in (pair[0].decode, pair[0].prefill):
        _, simulated = simulate_scenario(batches.deployment.scenario)
        kernels_s = np.mean([batches.kernels_s(parts, generic) for parts in batches.counted])
        assert kernels_s == pytest.approx(simulated.metrics.step_time_s.mean, rel=rounding(10**6))


def test_links_by_hand(pair: list[Serving], generic: Profile) -> None:
    """55 all-reduces of 2 × 2048 bf16 values, each GPU sending as much as there is; half of the logits.

    Two passes of 1 µs and a launch of 2 µs for each all-reduce, one pass and a launch for the logits.
    """
    sent = 55 * 2 * 2048 * 2 + 2 * 51200 * 2
    fixed = 55 * (2 * 1e-6 + 2e-6) + 1e-6 + 2e-6
    assert pair[0].decode.links_s(2, 2, generic) == pytest.approx(fixed + sent / (32e9 * 0.78))


@pytest.mark.parametrize(("concurrency", "chunks"), [(2, 1), (32, 4)])
def test_throughput_is_that_of_one_round_of_requests(generic: Profile, concurrency: int, chunks: int) -> None:
    """All start together: their prefills in chunks of up to 8192 tokens, then 1024 steps that decode."""
    loop = serve(concurrency, 2)
    round_s = chunks * loop.prefill.seconds(generic) + 1024 * loop.decode.seconds(generic)
    assert loop.tokens_per_s(generic) == pytest.approx(concurrency * 1024 / round_s)


@pytest.mark.parametrize("concurrency", [2, 32])
def test_what_is_saved_is_reading_the_experts_that_no_token_chose(generic: Profile, concurrency: int) -> None:
    """Of 64 equal experts C tokens choose 64 · (1 - (1 - k / 64)^C); one has 3 · 2048 · 704 weights."""
    share = 0.84
    more, fewer = (serve(concurrency, k) for k in (6, 2))
    spared = 64 * ((1 - 2 / 64) ** concurrency - (1 - 6 / 64) ** concurrency)
    read_s = 26 * spared * 3 * 2048 * 704 * 2 / (share * 1935e9)
    profile = served_by(generic, share)
    decode_s = more.decode.seconds(profile) - fewer.decode.seconds(profile)
    assert decode_s == pytest.approx(read_s, rel=0.03)
    # Prefills add a little: there all experts are read, and arithmetic is saved.
    saved_s = 1e-3 * saved_ms([more, fewer], profile)
    assert decode_s < saved_s < 1.1 * decode_s


def test_expert_parallel_would_move_the_prediction_less_than_the_target() -> None:
    """Whole experts on each GPU: the fuller half of those that are hit is read, not the mean of both."""
    rng = np.random.default_rng(0)
    for concurrency, drawn in ((2, 1.13), (32, 0.91)):
        whole, split = [], []
        for k in (6, 2):
            hit_RE = np.zeros((4000, 64), bool)
            for _ in range(concurrency):
                chosen_RK = rng.random((4000, 64)).argpartition(k, axis=1)[:, :k]
                np.put_along_axis(hit_RE, chosen_RK, values=True, axis=1)
            halves_RG = hit_RE.reshape(4000, 2, 32).sum(axis=2)
            whole.append(halves_RG.max(axis=1).mean())
            split.append(halves_RG.mean())
        assert (whole[0] - whole[1]) / (split[0] - split[1]) == pytest.approx(drawn, abs=0.02)


def test_the_command_explains_itself() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "experiments.fewer_experts", "--help"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert "fewer experts" in done.stdout
