"""What always holds of a whole run, from trace to timeline."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.analysis.result import simulate_scenario
from moesim.analysis.result_file import Attribution, Result
from moesim.analysis.stragglers import stragglers
from moesim.deployment.deployment import Deployment, deploy
from moesim.dispatch.modes import MODES
from moesim.errors import SpecError
from moesim.simulation.run import Run, run
from moesim.spec.override import Override
from moesim.spec.scenario import Scenario, load_scenario
from moesim.studies.convert import convert_trace, named_hints
from placement.problem.placement import Placement
from tests.examples import examples
from tests.moesim.tiny import on_generic, tiny_scenario, write_scenario
from tests.tolerance import rounding
from traces.routing import RoutingTrace
from traces.timeline import PHASES

# A run is small, but each example simulates: fewer of them.
some = settings(max_examples=examples(25))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tmp_path_factory.mktemp("runs")


def scenario(folder: Any, **changes: Any) -> Scenario:
    return load_scenario(str(write_scenario(folder, tiny_scenario(**changes))))


DROP = {"policy": "drop", "capacity_factor": 1.0}
modes = st.sampled_from(list(MODES))
policies = st.sampled_from([{"policy": "none"}, DROP, DROP | {"scope": "global"}])
placements = st.sampled_from(["linear", "round_robin", "greedy", {"solver": "greedy", "slots": 12}])


@some
@given(mode=modes, routing=policies, placement=placements, seed=st.integers(0, 99))
def test_conservation(folder: Any, mode: str, routing: Any, placement: Any, seed: int) -> None:
    dispatch = {"mode": mode, "dtype": "fp8", "combine_dtype": "bf16"}
    asked = scenario(folder, dispatch=dispatch, routing=routing, placement=placement, seed=seed)
    done = run(deploy(asked))
    tally, work, timeline = done.tallies[-1], done.work(), done.timeline
    timeline.validate()
    work.validate()
    steps, layers, tokens = 2, 2, 16
    assert tally.wished == steps * layers * tokens * 2 == tally.kept + tally.rerouted + tally.dropped
    served = tally.kept + tally.rerouted + tally.added
    experts = work.phase_N == PHASES.index("experts")
    assert work.count_N[experts].sum() == served
    assert timeline.assignments_N[timeline.phase_N == PHASES.index("experts")].sum() == served
    for phase in ("dispatch", "combine"):
        rows = work.phase_N == PHASES.index(phase)
        spans = timeline.phase_N == PHASES.index(phase)
        # What ranks receive in the timeline is what was counted on the wires.
        assert work.bytes_N[rows].sum() == timeline.bytes_N[spans].sum()
        assert (work.source_N[rows] != work.destination_N[rows]).all()
    out, back = (work.count_N[work.phase_N == PHASES.index(phase)].sum() for phase in ("dispatch", "combine"))
    if mode != "expert_to_expert":  # whose ways out and back differ; tests/moesim/test_anchor.py counts them
        assert back == (2 * out if mode == "all_reduce" else out)


@some
@given(mode=modes, placement=placements, seed=st.integers(0, 99))
def test_loads_are_the_placements_own(folder: Any, mode: str, placement: Any, seed: int) -> None:
    """Without replicas, simulated loads per GPU are the solver's on the same tokens."""
    if isinstance(placement, dict):
        placement = "greedy"
    dispatch = {"mode": mode, "dtype": "bf16", "combine_dtype": "bf16"}
    deployment = deploy(scenario(folder, dispatch=dispatch, placement=placement, seed=seed))
    done = run(deployment)
    slots = done.slots
    load_LE = np.zeros((2, 8))
    expert = deployment.placement.slot_expert_LS[slots.layer_N - 1, slots.destination_N]
    np.add.at(load_LE, (slots.layer_N - 1, expert), slots.count_N)
    spans = done.timeline.phase_N == PHASES.index("experts")
    simulated_LG = np.zeros((2, 4))
    at = (done.timeline.layer_N[spans] - 1, done.timeline.rank_N[spans])
    np.add.at(simulated_LG, at, done.timeline.assignments_N[spans])
    np.testing.assert_array_equal(simulated_LG, deployment.placement.gpu_load_LG(load_LE))


@some
@given(mode=modes, routing=st.sampled_from([{"policy": "none"}, DROP]), seed=st.integers(0, 99))
def test_relabelling_experts_with_the_placement_changes_nothing(
    folder: Any, mode: str, routing: Any, seed: int
) -> None:
    dispatch = {"mode": mode, "dtype": "bf16", "combine_dtype": "bf16"}
    deployment = deploy(scenario(folder, dispatch=dispatch, routing=routing, seed=seed))
    new_E = np.random.default_rng(seed).permutation(8)
    relabelled = _relabel(deployment, new_E)
    before, after = run(deployment), run(relabelled)
    for column in ("start_s_N", "end_s_N", "assignments_N", "bytes_N"):
        np.testing.assert_array_equal(getattr(before.timeline, column), getattr(after.timeline, column))


def _relabel(deployment: Deployment, new_E: np.ndarray) -> Deployment:
    def trace(old: RoutingTrace) -> RoutingTrace:
        return RoutingTrace(**{**old.__dict__, "ids_TLK": new_E[old.ids_TLK].astype(old.ids_TLK.dtype)})

    old = deployment.placement
    placement = Placement(
        new_E[old.slot_expert_LS], old.slot_gpu_S, experts=old.experts, gpus=old.gpus, layers=old.layers
    )
    return Deployment(
        deployment.scenario,
        trace(deployment.trace),
        trace(deployment.replayed),
        placement,
        deployment.policies,
        deployment.memory,
    )


def done(folder: Any, **changes: Any) -> tuple[Run, Result]:
    return simulate_scenario(scenario(folder, **changes))


def test_attribution_adds_up(folder: Any) -> None:
    for dispatch in MODES:
        _, found = done(folder, dispatch={"mode": dispatch, "dtype": "bf16", "combine_dtype": "bf16"})
        assert found.attribution.step_s == pytest.approx(found.metrics.step_time_s.mean, rel=rounding(1000))
        assert sum(found.metrics.phase_time_s.values()) == pytest.approx(
            found.metrics.step_time_s.mean, rel=rounding(1000)
        )
        assert found.attribution.hardware_s == 0.0
        for term in ("network_s", "overhead_s", "ideal_s"):
            assert getattr(found.attribution, term) > 0.0


@pytest.mark.parametrize("overlap", ["none", "shared_expert"])
def test_what_ranks_tell_each_other_for_a_policy_is_network(folder: Any, overlap: str) -> None:
    """A limit that is never reached. Counts of 8 experts from 2 GPUs over the NIC, 2 us, in each of 2 layers.

    The profile's NICs reach a share of 1 GB/s in every mode.
    """
    cluster = tiny_scenario()["cluster"]
    cluster["gpu"]["sms"] = 100
    found: dict[str, Attribution] = {}
    for scope in ("source", "global"):
        routing = DROP | {"capacity_factor": 1e6, "scope": scope}
        finished, outcome = done(folder, routing=routing, cluster=cluster, overlap=overlap)
        found[scope] = outcome.attribution
    links = finished.deployment.pricing.links(finished.deployment.scenario.profile)
    more_s = found["global"].network_s - found["source"].network_s
    assert more_s == pytest.approx(2 * (2 * 8 * 4 / (1e9 * links.nic) + 2e-6), rel=1e-6)
    assert found["global"].ideal_s - found["source"].ideal_s == pytest.approx(0.0, abs=rounding(1000))


def test_one_gpu_has_neither_network_nor_imbalance(folder: Any) -> None:
    cluster = tiny_scenario()["cluster"] | {"nodes": 1, "gpus_per_node": 1}
    finished, found = done(folder, cluster=cluster, parallelism={"ep": 1})
    assert found.attribution.network_s == 0.0
    assert found.attribution.imbalance_s == pytest.approx(0.0, abs=rounding(1000))
    assert found.metrics.balancedness == 1.0
    assert found.metrics.cross_node_bytes == 0.0
    assert not (finished.timeline.phase_N == PHASES.index("wait")).any()


def test_a_hot_expert_names_its_gpu(folder: Any) -> None:
    """Every token visits expert 5 on GPU 2: the straggler of both layers, because of its tokens."""
    workload = {"tokens_per_gpu": 64, "context": 16, "steps": 2}
    deployment = deploy(scenario(folder, workload=workload))
    ids = deployment.replayed.ids_TLK.copy()
    ids[:, :, 0], ids[:, :, 1] = 5, np.where(ids[:, :, 1] == 5, 4, ids[:, :, 1])
    hot = RoutingTrace(**{**deployment.replayed.__dict__, "ids_TLK": ids})
    # Slow arithmetic, so that tokens and not weights decide.
    gpu = deployment.scenario.cluster.gpu.model_copy(update={"flops": {"bf16": 1e9}, "sms": 1})
    asked = deployment.scenario.model_copy(
        update={"cluster": deployment.scenario.cluster.model_copy(update={"gpu": gpu})}
    )
    finished = run(
        Deployment(asked, deployment.trace, hot, deployment.placement, deployment.policies, deployment.memory)
    )
    found = stragglers(finished.timeline, finished.slots, deployment.placement)
    assert [(entry.layer, entry.rank, entry.expert) for entry in found] == [(1, 2, 5), (2, 2, 5)]
    for entry in found:
        assert entry.share == 1.0
        assert entry.load > 2.0
        assert entry.lost_s > 0.0
        assert entry.cause == "tokens"


def test_more_tensor_parallelism_shares_attention(folder: Any) -> None:
    one, two = (done(folder, parallelism={"ep": 4, "tp": tp})[1] for tp in (1, 2))
    assert one.metrics.gpu_memory_bytes.max > two.metrics.gpu_memory_bytes.max
    # The experts' work is the same: tensor parallelism is attention's alone.
    assert one.metrics.straggler_ratio.assignments == two.metrics.straggler_ratio.assignments


@pytest.mark.shared
def test_gpt_oss_balancedness_by_hand(shared: Any, folder: Any) -> None:
    """EP8, linear placement: counted by hand from the trace, 0.678 ± 0.007."""
    trace = folder / "gptoss.parquet"
    convert_trace(shared / "data/gptoss20b/decode_routing.npz", trace, named_hints("gpt-oss-20b"))
    asked = {
        "name": "gpt-oss",
        "model": "gpt-oss-20b",
        "cluster": "h100-1x8",
        "parallelism": {"ep": 8},
        "trace": {"file": str(trace)},
        "workload": {"tokens_per_gpu": 64, "context": 1024, "steps": 10},
    }
    _, found = simulate_scenario(load_scenario(str(write_scenario(folder, asked, "gptoss.yaml"))))
    assert 0.66 <= found.metrics.balancedness <= 0.695
    assert found.trace.generated is False


def test_unequal_ranks_are_a_cause_of_their_own(folder: Any) -> None:
    """Rank 0 has long contexts: what it costs beyond equal ones is the ranks' part of the imbalance."""
    workload = tiny_scenario()["workload"]
    even = done(folder)[1]
    assert even.attribution.homes_s == 0.0
    uneven = done(folder, workload=workload | {"context": [40_000, 16, 16, 16]})[1]
    level = done(folder, workload=workload | {"context": (40_000 + 3 * 16) // 4})[1]
    assert uneven.attribution.homes_s == pytest.approx(
        uneven.metrics.step_time_s.mean - level.metrics.step_time_s.mean, rel=rounding(10**6)
    )
    homes_s = uneven.attribution.homes_s
    assert homes_s is not None
    assert 0.0 < homes_s <= uneven.attribution.imbalance_s
    # Its contexts, not its tokens, make rank 0 the last to enter the dispatch.
    assert {entry.cause for entry in uneven.stragglers} <= {"attention", "none"}


@pytest.mark.parametrize("overlap", ["shared_expert", "two_batch"])
def test_multiprocessors_that_transfers_take_are_network(folder: Any, overlap: str) -> None:
    """On a free network nothing takes them: ideal is the same, however many transfer kernels occupy."""
    model = tiny_scenario()["model"] | {"hidden": 512}
    model["experts"]["shared_width"] = 512
    cluster = tiny_scenario()["cluster"]
    cluster["gpu"] |= {"sms": 100, "memory_bandwidth": "10 TB/s"}
    workload = tiny_scenario()["workload"] | {"tokens_per_gpu": 256}
    found = {}
    for sms in (0, 50):
        profile = on_generic(plain={"sms": sms}, transfers=None)
        changes = {"model": model, "cluster": cluster, "workload": workload, "profile": profile}
        found[sms] = done(folder, overlap=overlap, **changes)[1].attribution
    for term in ("overhead_s", "ideal_s"):
        assert getattr(found[50], term) == pytest.approx(getattr(found[0], term), rel=rounding(10**6))
    more_s = found[50].network_s - found[0].network_s
    if overlap == "two_batch":
        assert more_s > 0
    else:  # the dispatch hides a slower shared expert
        assert found[50].step_s == pytest.approx(found[0].step_s, rel=rounding(1000))


@pytest.mark.parametrize("overlap", ["shared_expert", "two_batch"])
def test_overlap_invents_no_stragglers(folder: Any, overlap: str) -> None:
    """What ranks lose to each other is of the size of the imbalance, not of all that a lane waits for."""
    model = tiny_scenario()["model"]
    model["experts"]["shared_width"] = 64
    cluster = tiny_scenario()["cluster"]
    cluster["gpu"]["sms"] = 100
    _, found = done(folder, model=model, cluster=cluster, overlap=overlap)
    lost_s = sum(entry.lost_s for entry in found.stragglers)
    assert lost_s < 0.5 * found.metrics.step_time_s.mean
    assert found.metrics.step_time_s.mean >= max(found.bounds.values())


def test_prefill_positions_make_ranks_unequal(folder: Any) -> None:
    workload = {"phase": "prefill", "tokens_per_gpu": 8, "context": 0, "steps": 4}
    trace = {"synth": {"requests": 8, "tokens_per_request": 4000, "skew": 0.0}}
    profile = on_generic(eager_launch=None)  # so few tokens that launching them would hide it
    _, found = done(folder, workload=workload, trace=trace, profile=profile)
    assert (found.attribution.homes_s or 0.0) > 0.0


def test_two_batches_pay_the_fixed_cost_of_a_step_once(folder: Any) -> None:
    cluster = tiny_scenario()["cluster"]
    cluster["gpu"]["sms"] = 100
    profile = on_generic(plain={"host": 0.0})
    one, two = (
        done(folder, cluster=cluster, profile=profile, overlap=overlap)[1]
        for overlap in ("none", "two_batch")
    )
    step = 1e-3  # of the generic profile
    assert one.attribution.overhead_s > step
    assert two.attribution.overhead_s < 2 * step


@pytest.mark.parametrize(("tokens", "wins"), [(32, False), (256, True)])
def test_two_batches_lose_where_batches_are_small_and_win_where_they_are_large(
    tokens: int, wins: bool
) -> None:
    """DeepSeek-V3 on 4 × 8 H800, low-latency kernels: weights stream twice, launches and latencies double."""
    seconds = {}
    for overlap in ("none", "two_batch"):
        fields = {
            "overlap": overlap,
            "dispatch": {"mode": "per_expert", "dtype": "fp8", "combine_dtype": "bf16"},
            "workload": {"tokens_per_gpu": tokens, "context": 1024, "steps": 1},
            "trace": {"synth": {"requests": 16, "tokens_per_request": 16, "skew": 0.5}},
        }
        overrides = [Override((key,), value) for key, value in fields.items()]
        seconds[overlap] = run(deploy(load_scenario("demo", overrides))).timeline.end_s_N.max()
    assert (seconds["two_batch"] < seconds["none"]) == wins


def test_equal_splits_send_more(folder: Any) -> None:
    dispatch = {"mode": "per_gpu", "dtype": "bf16", "combine_dtype": "bf16"}
    one, two = (done(folder, dispatch=dispatch | {"padded": padded})[1] for padded in (False, True))
    assert two.metrics.cross_node_bytes > one.metrics.cross_node_bytes


@some
@given(mode=modes, placement=placements, seed=st.integers(0, 99))
def test_a_step_without_overlap_takes_no_less_than_all_its_phases_at_peak(
    folder: Any, mode: str, placement: Any, seed: int
) -> None:
    dispatch = {"mode": mode, "dtype": "bf16", "combine_dtype": "bf16"}
    _, found = done(folder, dispatch=dispatch, placement=placement, seed=seed)
    assert found.metrics.step_time_s.mean >= sum(found.bounds.values())


def test_a_draw_without_tokens_is_refused(folder: Any) -> None:
    with pytest.raises(SpecError, match="draws no token for any rank"):
        done(folder, workload=tiny_scenario()["workload"] | {"tokens_per_gpu": {"uniform": [0, 0]}})


@pytest.mark.parametrize("overlap", ["none", "shared_expert", "two_batch"])
def test_the_moe_part_is_the_whole_model_without_the_rest(folder: Any, overlap: str) -> None:
    workload = {"tokens_per_gpu": 4, "context": 16, "steps": 2}
    dispatch = {"mode": "per_expert"}  # whose kernels leave the multiprocessors alone
    whole, _ = done(folder, overlap=overlap, dispatch=dispatch, workload=workload)
    moe, found = done(folder, overlap=overlap, dispatch=dispatch, workload=workload | {"part": "moe"})
    left = {PHASES[code] for code in set(moe.timeline.phase_N.tolist())}
    assert left - {"wait"} == {"router", "dispatch", "experts", "combine"}
    for column in ("phase_N", "count_N", "bytes_N", "destination_N"):
        assert (getattr(moe.work(), column) == getattr(whole.work(), column)).all()
    phases = found.metrics.phase_time_s
    assert phases["attention"] == phases["dense"] == phases["other"] == 0
    assert (moe.deployment.memory.total_G < whole.deployment.memory.total_G).all()
    assert (moe.deployment.memory.cache_G == 0).all()
