"""What imbalance costs, against steps whose work is made even here, by loops, and run on the event clock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from moesim.analysis.even import EvenHomes, Pairs, even_experts, even_homes, fewest_slots
from moesim.analysis.result import simulate_deployment, simulate_scenario
from moesim.analysis.result_file import Result
from moesim.deployment.deployment import Deployment, deploy
from moesim.dispatch.modes import MODES
from moesim.dispatch.work import Work
from moesim.hardware.gemm import Rows
from moesim.hardware.kernels import Kernels
from moesim.report.comparison_answer import fewer_of
from moesim.simulation.conditions import Conditions
from moesim.simulation.costs import Costs
from moesim.simulation.loop import simulate
from moesim.simulation.part import Attended, Part
from moesim.simulation.price import priced
from moesim.spec.presets import preset_source
from moesim.spec.scenario import Scenario, load_scenario
from tests.examples import examples
from tests.moesim.tiny import tiny_scenario, write_scenario
from tests.tolerance import rounding

FloatArray = NDArray[np.float64]
RANKS, PER_NODE = 4, 2
some = settings(max_examples=examples(40))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("attribution")


def scenario(folder: Path, **changes: Any) -> Scenario:
    return load_scenario(str(write_scenario(folder, tiny_scenario(**changes))))


def alike(one: int, other: int, relayed: bool) -> int:
    """The class of a pair of GPUs: 0 nothing is ever sent, 1 inside a node, 2 between nodes."""
    if one == other:
        return 0
    if one // PER_NODE == other // PER_NODE:
        return 1
    return 2 if not relayed or one % PER_NODE == other % PER_NODE else 0


def naive_even(copies_LGG: Any, relayed: bool) -> FloatArray:
    """[L, G, G]: each copy's place taken by the mean over its class."""
    even_LGG = np.zeros(copies_LGG.shape)
    pairs = [(i, j) for i in range(RANKS) for j in range(RANKS)]
    for layer, copies_GG in enumerate(copies_LGG):
        for class_ in (1, 2):
            own = [pair for pair in pairs if alike(*pair, relayed) == class_]
            for pair in own:
                even_LGG[layer][pair] = sum(float(copies_GG[each]) for each in own) / len(own)
    return even_LGG


class NaivePart(Part):
    """A part made even by hand: what is asked of each GPU is a quarter of what is asked of all."""

    def experts_s(self, kernels: Kernels, slot_gpu_S: NDArray[np.int32]) -> FloatArray:
        kind, profile = kernels.model.kinds[0], kernels.profile
        seconds_LG = np.zeros((len(self.work.tokens_LS), RANKS))
        for layer, tokens_S in enumerate(self.work.tokens_LS):
            rows, active = tokens_S.sum() / RANKS, np.count_nonzero(tokens_S) / RANKS
            if not active:
                continue
            aligned = np.ceil(rows / active / kernels.links.align) * kernels.links.align
            tiles_M1 = np.array([[active * np.ceil(aligned / tile.rows)] for tile in profile.tiles])
            each = Rows(tiles_M1, np.array([active]), np.array([rows]))
            seconds_LG[layer] = kernels._feed_forward(each, kind.width, kind.dtype, profile.grouped_gemm)
        return seconds_LG


def naive(part: Part, deployment: Deployment) -> Part:
    work, relayed = part.work, deployment.scenario.dispatch.record.relayed
    sent_LGG = naive_even(work.sent_LGG, relayed)
    if work.asked_LGG is not None:
        apart_GG = 1 - np.eye(RANKS)
        pairs = RANKS * (RANKS - 1)
        sent_LGG = np.array([asked_GG.sum() / pairs * apart_GG for asked_GG in work.asked_LGG])
    quarter_LG = np.repeat(work.served_LG.sum(axis=1, keepdims=True) / RANKS, RANKS, axis=1)
    even = Work(
        work.tokens_LS,
        quarter_LG,
        np.repeat(work.unique_LG.sum(axis=1, keepdims=True) / RANKS, RANKS, axis=1),
        sent_LGG,
        naive_even(work.relayed_LGG, relayed),
        None if work.returned_LGG is None else naive_even(work.returned_LGG, relayed),
    )
    return NaivePart(EvenHomes(part.tokens), even)


def naive_even_s(deployment: Deployment) -> float:
    """Seconds of a mean step with even work, on the event clock."""
    costs, profile = Costs(deployment), deployment.scenario.profile
    programs = [
        costs.program([naive(part, deployment) for part in step.parts], profile)
        for step in priced(deployment)
    ]
    clocks = simulate(programs, RANKS, Conditions([deployment.pricing.network(profile)]))
    return clocks[-1].end_s / len(clocks)


amounts = st.one_of(st.integers(1, 40), st.lists(st.integers(0, 40), min_size=4, max_size=4).filter(any))
asked = {
    "mode": st.sampled_from(list(MODES)),
    "skew": st.floats(0.0, 2.0),
    "slots": st.sampled_from([8, 12]),
    "tokens": amounts,
    "phase": st.sampled_from(["decode", "prefill"]),
    "seed": st.integers(0, 99),
}


def deployed(folder: Path, **fields: Any) -> Deployment:
    """A scenario without policies and overlap."""
    padded = {"padded": True} if fields.get("padded") and MODES[fields["mode"]].can_pad else {}
    dispatch = {"mode": fields["mode"], "dtype": "fp8", "combine_dtype": "bf16"} | padded
    workload = {"phase": fields["phase"], "tokens_per_gpu": fields["tokens"], "context": 16, "steps": 2}
    if fields.get("contexts"):
        workload["context"] = fields["contexts"]
    synth = {"requests": 40, "tokens_per_request": 50, "skew": fields["skew"]}
    placement = {"solver": fields.get("solver", "linear"), "slots": fields["slots"]}
    return deploy(
        scenario(
            folder,
            dispatch=dispatch,
            workload=workload,
            trace={"synth": synth},
            placement=placement,
            seed=fields["seed"],
        )
    )


@some
@given(
    **asked,
    padded=st.booleans(),
    contexts=st.sampled_from([None, [4000, 16, 16, 16]]),
    solver=st.sampled_from(["linear", "greedy"]),
)
def test_imbalance_is_what_a_step_with_even_work_is_faster(folder: Path, **fields: Any) -> None:
    deployment = deployed(folder, **fields)
    _, found = simulate_deployment(deployment)
    step_s, terms = found.metrics.step_time_s.mean, found.attribution
    assert terms.step_s == pytest.approx(step_s, rel=rounding(10**6))
    parts = (terms.homes_s, terms.experts_s, terms.traffic_s)
    assert sum(part for part in parts if part is not None) == pytest.approx(
        terms.imbalance_s, abs=rounding(10**6) * step_s
    )
    # One in a hundred is asked; both are sums of the same kind, so that more is reached.
    assert terms.imbalance_s == pytest.approx(step_s - naive_even_s(deployment), abs=1e-6 * step_s)


@some
@given(**asked, solver=st.sampled_from(["round_robin", "greedy", "eplb"]), more=st.sampled_from([8, 12]))
def test_no_placement_wins_more_than_its_ceiling_but_by_less_work(folder: Path, **fields: Any) -> None:
    _, before = simulate_deployment(deployed(folder, **{**fields, "solver": "linear"}))
    _, after = simulate_deployment(deployed(folder, **{**fields, "slots": fields["more"]}))
    assert before.ceilings is not None
    won_s = before.metrics.step_time_s.mean - after.metrics.step_time_s.mean
    most_s = before.ceilings.placements_s * (1 + 1e-6) + 1e-9
    assert won_s <= most_s or fewer_of(before.metrics, after.metrics)
    assert before.ceilings.routers_s >= before.ceilings.placements_s


def test_four_gpus_by_hand(folder: Path) -> None:
    """Rank 0 has the only tokens: each GPU gets a quarter of them, and of the copies that left rank 0."""
    work = Work(
        tokens_LS=np.array([[8, 0, 0, 4]], np.int32),
        served_LG=np.array([[8, 0, 0, 4]], np.int32),
        unique_LG=np.array([[8, 0, 0, 4]], np.int32),
        sent_LGG=np.array([[[0, 0, 4, 0], [0] * 4, [0] * 4, [0] * 4]], np.int32),
        relayed_LGG=np.array([[[0] * 4, [0] * 4, [0, 0, 0, 4], [0] * 4]], np.int32),
    )
    part = Part(Home(np.array([8, 0, 0, 0])), work)
    pairs = Pairs(RANKS, PER_NODE, relayed=True)
    home = even_homes(part, pairs)
    assert home.tokens.tokens_G.tolist() == [2.0] * 4
    # Four copies cross to a rail mate: one from each GPU. Each is relayed once, inside its node.
    assert home.work.sent_LGG[0].tolist() == [[0, 0, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 0]]
    assert home.work.relayed_LGG[0].sum() == 4
    spread = even_experts(home, 1)
    assert (spread.rows_LC.tolist(), spread.active_LC.tolist()) == ([[3.0]], [[0.5]])
    # Eight tokens, three assignments a GPU: one expert could take them.
    assert fewest_slots(spread).active_LC.tolist() == [[1.0]]


class Home:
    """Tokens that attend to nothing."""

    def __init__(self, tokens_G: NDArray[np.int64]) -> None:
        self.tokens_G, self.last_G = tokens_G, tokens_G.astype(np.float64)
        self.prefilling_G = np.zeros(len(tokens_G))

    def keys_G(self, attended: Attended, *, prefill: bool) -> FloatArray:
        return np.zeros(len(self.tokens_G))


def found(folder: Path, **changes: Any) -> Result:
    return simulate_scenario(scenario(folder, **changes))[1]


def test_uneven_bytes_are_imbalance(folder: Path) -> None:
    """Kernels cost next to nothing, so all that even routing wins is traffic, and it is called so."""
    cluster = tiny_scenario()["cluster"]
    cluster["gpu"] |= {"flops": {"bf16": "10000 TFLOPS"}, "memory_bandwidth": "100 TB/s"}
    cluster["nic"] = {"bandwidth": "10 MB/s", "latency": "0 us"}
    workload = tiny_scenario()["workload"] | {"tokens_per_gpu": 400}
    synth = {"requests": 100, "tokens_per_request": 40}
    skewed, even = (
        found(folder, cluster=cluster, workload=workload, trace={"synth": synth | {"skew": skew}})
        for skew in (1.5, 0.0)
    )
    won_s = skewed.metrics.step_time_s.mean - even.metrics.step_time_s.mean
    terms = skewed.attribution
    assert terms.traffic_s == pytest.approx(terms.imbalance_s, rel=0.02)
    assert terms.imbalance_s == pytest.approx(won_s, rel=0.2)
    assert terms.imbalance_s > 0.2 * skewed.metrics.step_time_s.mean


def test_a_slow_network_is_still_network_where_bytes_are_even(folder: Path) -> None:
    terms = found(
        folder, dispatch={"mode": "all_gather", "dtype": "bf16", "combine_dtype": "bf16"}
    ).attribution
    assert terms.traffic_s == pytest.approx(0.0, abs=rounding(10**6) * terms.step_s)
    assert terms.network_s > 0


def test_profiles_that_loop_over_experts_are_evened_slot_by_slot(folder: Path) -> None:
    """On a loop two half-filled slots cost two GEMMs of half the rows."""
    profile = preset_source("profiles", "generic").value | {"loop": True}
    deployment = deploy(scenario(folder, profile=profile))
    kernels = deployment.pricing.kernels(deployment.scenario.profile)
    rows_LC, active_LC = np.array([[64.0]]), np.array([[2.0]])
    whole = kernels.experts(np.array([[32, 32]], np.int32), np.zeros(2, np.int32), 1)
    assert kernels.even_experts(rows_LC, active_LC) == pytest.approx(whole[0], rel=rounding(1000))
