"""DeepEP on H100 and H800: the targets, the built-in profiles, the counting behind them, which link binds."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from experiments.comparison import Comparison, Row, summary
from experiments.network import h100
from experiments.network.cases import EXPERTS, TOP_K, Case, routing
from experiments.network.experiment import MOST_TOKENS, ORDERS, SERVED_SMS, name_of, network
from experiments.network.fits import cluster, predicted, profile, profile_links
from experiments.network.h800 import LOW_LATENCY_TOKENS, NORMAL_TOKENS, low_latency_cases, normal_cases
from moesim.units import parse_bandwidth

H800 = ("H800 normal, one node", "H800 normal, relaying", "H800 low latency")
H100 = ("H100 normal, one node", "H100 normal, relaying", "H100 low latency")


@pytest.fixture(scope="module")
def result(shared: Path) -> Comparison:
    """With the tables of H100."""
    assert h100.h100_cases(), shared
    return network()


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return normal_cases() + low_latency_cases()


def rows(result: Comparison, kind: str) -> list[Row]:
    """Of one machine and kind of kernels."""
    machine, kernels = kind.split(" ", 1)
    kernels, _, where = kernels.partition(", ")
    found = [row for row in result.rows if row.case.startswith(f"{machine} {kernels}")]
    one_node = {"one node": True, "relaying": False}.get(where)
    return [row for row in found if one_node is None or ("EP8," in row.case) == one_node]


@pytest.mark.parametrize(("kind", "count"), list(zip(H100, (36, 72, 86), strict=True)))
def test_h100_from_one_token_on(result: Comparison, kind: str, count: int) -> None:
    found = rows(result, kind)
    assert len(found) == count
    totals = summary(found)
    assert totals["mean_abs_error"] <= 0.08
    assert totals["max_abs_error"] <= 0.25
    assert totals["loo_mean_abs_error"] <= 0.08


@pytest.mark.parametrize(("kind", "count"), list(zip(H800, (2, 6, 8), strict=True)))
def test_h800_within_6_percent(result: Comparison, kind: str, count: int) -> None:
    found = rows(result, kind)
    assert len(found) == count
    assert summary(found)["max_abs_error"] <= 0.06
    assert summary(found)["loo_mean_abs_error"] <= 0.03


def test_at_most_five_parameters_inside_physical_bounds(result: Comparison) -> None:
    for kind in (*H100, *H800):
        assert 1 <= sum(parameter.name.startswith(f"{kind}:") for parameter in result.parameters) <= 5
    rates = [each for each in result.parameters if each.name.endswith((": NVLink", ": NIC"))]
    assert len(rates) == 9
    for each in rates:
        assert parse_bandwidth(each.value) <= parse_bandwidth(
            each.bound.removeprefix("of ").rsplit(" ", 1)[0]
        )
    # The floors of a combine, the rate of a multiprocessor, the growth with nodes.
    names = {parameter.name for parameter in result.parameters}
    assert {"H100 normal, one node: fixed_combine", "H100 low latency: fixed_combine"} <= names
    assert {"H100 normal, relaying: rate", "H100 normal, relaying: grows"} <= names


def test_the_slope_in_the_middle(result: Comparison) -> None:
    """Between 128 and 1,024 tokens, where neither the floor nor bandwidth alone says how long it takes."""
    found = {row.case: row for row in result.rows}
    for gpus, sms in ((8, 20), (16, 20), (16, 24)):
        for phase in ("dispatch", "combine"):
            few, many = (
                found[f"H100 normal {phase}, EP{gpus}, {tokens} tokens, {sms} SMs"] for tokens in (128, 1024)
            )
            measured, model = many.measured - few.measured, many.predicted - few.predicted
            assert model == pytest.approx(measured, rel=0.2)


def test_other_numbers_of_multiprocessors_follow(result: Comparison) -> None:
    """Rows that no fit saw: of 4 to 16 multiprocessors of 16 GPUs."""
    measured = [
        case
        for case in h100.h100_cases()
        if case.mode == "per_node" and case.sms not in SERVED_SMS[case.gpus] and case.tokens <= MOST_TOKENS
    ]
    errors = [abs(predicted(case, profile_links(case)) / case.measured - 1) for case in measured]
    assert len(errors) == 4 * 36
    assert np.mean(errors) <= 0.10
    assert max(errors) <= 0.30


def test_the_order_of_both_kinds_of_kernels(result: Comparison) -> None:
    orders = [remark for remark in result.remarks if remark.startswith("order, ")]
    assert len(orders) == len(ORDERS)
    assert all(remark.endswith(": the same order") for remark in orders)


def test_larger_groups_than_the_fit_saw(result: Comparison) -> None:
    """The published combine of EP128 is slower than that of EP256, which no count of bytes explains."""
    errors = {row.case: row.error for row in result.checks if row.case.startswith("H800")}
    assert len(errors) == 4
    worst = errors.pop("H800 low latency combine, EP128, 128 tokens, 256 experts")
    assert abs(worst) <= 0.15
    assert max(map(abs, errors.values())) <= 0.08


def test_nccl_inside_a_node(result: Comparison) -> None:
    assert summary(rows(result, "H100 NCCL"))["max_abs_error"] <= 0.2


def test_the_built_in_profiles_say_what_the_fits_found(result: Comparison) -> None:
    """To the digits that they have."""
    measured = {row.case: row for row in result.rows}
    assert profile("H100").name == "h100"
    assert profile("H800").name == "h800"
    for case in [*h100.h100_cases(), *normal_cases(), *low_latency_cases(), *h100.plain_cases()]:
        links = profile_links(case)
        if case.mode == "plain":
            links = links.model_copy(update={"counts": 0.0})
        if (row := measured.get(name_of(case))) is not None:
            assert predicted(case, links) == pytest.approx(row.predicted, rel=0.01)


def test_without_the_tables_of_h100_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MOESIM_SHARED", str(tmp_path))
    alone = network()
    assert not any(row.case.startswith("H100") for row in alone.rows if "NCCL" not in row.case)
    assert any("H100 skipped" in remark and "MOESIM_SHARED" in remark for remark in alone.remarks)
    for kind in H800:
        assert summary(rows(alone, kind))["max_abs_error"] <= 0.06


@pytest.mark.parametrize(("gpus", "binding"), [(16, "nvlink"), (32, "nic"), (64, "nic")])
def test_which_link_binds_normal_kernels(cases: list[Case], gpus: int, binding: str) -> None:
    h800 = cluster("H800")
    for case in cases:
        if (case.mode, case.gpus) != ("per_node", gpus):
            continue
        links = profile_links(case).model_copy(
            update={"fixed": 0.0, "fixed_combine": 0.0, "grows": 0.0, "spread": 0.0}
        )
        asked = predicted(case, links)
        for link, line in (("nvlink", h800.gpu.nvlink.bandwidth), ("nic", h800.nic.bandwidth)):
            assert links.sms * (links.rate or 0) > line  # multiprocessors do not limit H800
            slower = predicted(case, links.model_copy(update={link: 0.9 * getattr(links, link)}))
            # Latencies, and a GPU of many whose other link is the slower one, blur the exact ratio.
            assert slower == pytest.approx(asked * 0.9 if link == binding else asked, rel=0.01)


@pytest.mark.parametrize(("groups", "top"), [(1, 1), (8, 4)])
def test_routing_is_top_k_inside_the_groups_with_the_best_single_scores(groups: int, top: int) -> None:
    ids_TK = routing(3, 20, seed=5, groups=groups, top_groups=top)
    rng = np.random.default_rng(5)
    size = EXPERTS // groups
    for first in range(0, 60, 20):
        for ids_K, score_E in zip(
            ids_TK[first : first + 20], rng.random((20, EXPERTS), np.float32), strict=True
        ):
            best = sorted(range(groups), key=lambda g, s=score_E: -max(s[g * size : (g + 1) * size]))  # type: ignore[misc]
            allowed = [e for g in best[:top] for e in range(g * size, (g + 1) * size)]
            chosen = sorted(allowed, key=lambda e, s=score_E: -s[e])[:TOP_K]  # type: ignore[misc]
            assert sorted(ids_K.tolist()) == sorted(chosen)


def test_logical_bytes_of_normal_kernels_are_those_of_random_choice(cases: list[Case]) -> None:
    """A place with m of 256 experts is missed with probability C(256 - m, 8) / C(256, 8)."""
    places = {8: 8, 16: 2, 32: 4}  # GPUs of the one node; nodes
    for case in cases:
        if case.mode != "per_node" or case.gpus not in places:
            continue
        count = places[case.gpus]
        missed = math.comb(EXPERTS - EXPERTS // count, TOP_K) / math.comb(EXPERTS, TOP_K)
        copy_bytes = 7168 + 56 * 4 if case.phase == "dispatch" else 7168 * 2
        expected = NORMAL_TOKENS * count * (1 - missed) * copy_bytes
        assert case.logical_bytes == pytest.approx(expected, rel=2e-3)


def test_low_latency_kernels_move_every_choice_that_is_not_at_home(cases: list[Case]) -> None:
    for case in cases:
        if case.mode != "per_expert":
            continue
        moved = np.mean([(each.first_GG + each.second_GG).sum() / case.gpus for each in case.transfers])
        copies = LOW_LATENCY_TOKENS * TOP_K * (1 - 1 / case.gpus)
        assert case.copy_bytes in (7392.0, 14336.0)
        assert moved == pytest.approx(copies * case.copy_bytes, rel=0.03)
