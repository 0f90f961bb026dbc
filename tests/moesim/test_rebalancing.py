"""Runs that place their experts anew: what is decided, what it costs, and what serves when."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.analysis.rebalancing import payback_steps
from moesim.analysis.result import simulate_deployment, simulate_scenario
from moesim.analysis.result_file import Rebalancing
from moesim.analysis.stragglers import stragglers
from moesim.deployment.batch import StepTokens
from moesim.deployment.deployment import Deployment, deploy
from moesim.errors import PlacementError, SpecError
from moesim.live.scenario import executable, own_cluster
from moesim.report.folder import write_run
from moesim.report.html import whatif_page
from moesim.simulation.price import priced
from moesim.simulation.rebalancing import NEVER, Move, expert_N, in_slots_of
from moesim.simulation.run import Run, run
from moesim.spec.scenario import Scenario, load_scenario
from moesim.studies.points import Point
from moesim.studies.whatif import compare
from placement.files.native import read_placement
from placement.problem.placement import Placement
from placement.problem.problem import Problem
from placement.solvers.solution import Search
from placement.solvers.solvers import solver_named
from tests.examples import examples
from tests.moesim.command import moesim
from tests.moesim.tiny import tiny_scenario, write_scenario
from tests.tolerance import rounding
from tests.traces.random_traces import random_trace
from traces.timeline import PHASES

STEPS, EVERY = 9, 3
SOME = settings(max_examples=examples(6))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rebalancing")


def scenario(folder: Path, rebalance: dict[str, Any] | None = None, **changes: Any) -> Scenario:
    workload, cluster = tiny_scenario()["workload"] | {"steps": STEPS}, tiny_scenario()["cluster"]
    # Transfers beside kernels take 24 multiprocessors.
    cluster["gpu"]["sms"] = 100
    changes = {
        "workload": workload,
        "cluster": cluster,
        "rebalance": None if rebalance is None else {"every_steps": EVERY} | rebalance,
    } | changes
    return load_scenario(str(write_scenario(folder, tiny_scenario(**changes))))


def stalls(done: Run) -> dict[int, float]:
    """By step: seconds from the start of its first stalled GPU to the end of its last."""
    timeline = done.timeline
    moving = (timeline.phase_N == PHASES.index("other")) & (timeline.stream_N == 1)
    return {
        step: float(timeline.end_s_N[of].max() - timeline.start_s_N[of].min())
        for step in np.unique(timeline.step_N[moving]).tolist()
        for of in [moving & (timeline.step_N == step)]
    }


def as_sent(move: Move, before: Placement) -> dict[tuple[int, int], int]:
    """(layer, GPU): experts that the GPU serves after it and had no copy of before it; counted one by one."""
    missing = {}
    for row in range(len(before.layers)):
        for gpu in range(before.gpus):
            had, has = (
                {int(each.slot_expert_LS[row, slot]) for slot in np.flatnonzero(each.slot_gpu_S == gpu)}
                for each in (before, move.placement)
            )
            missing[row, gpu] = len(has - had - {-1})
    return missing


@SOME
@given(
    mode=st.sampled_from(["sync", "layerwise"]),
    solver=st.sampled_from(["greedy", "eplb", "swap"]),
    window=st.sampled_from([None, 1, 2, 50]),
    slots=st.sampled_from([8, 12]),
    overlap=st.sampled_from(["none", "two_batch"]),
    seed=st.integers(0, 99),
)
def test_every_assignment_is_served_by_a_slot_that_holds_its_expert_then(
    folder: Path, mode: str, solver: str, window: int | None, slots: int, overlap: str, seed: int
) -> None:
    """Counted from the trace, step by step; and every decision is the solver's on the last steps' loads."""
    asked = scenario(
        folder,
        {"mode": mode, "solver": solver, "window": window},
        placement={"solver": "linear", "slots": slots},
        overlap=overlap,
        seed=seed,
    )
    deployment = deploy(asked)
    done = run(deployment)
    ids_TLK = deployment.replayed.ids_TLK
    load_WLE = np.zeros((STEPS, 2, 8), np.int64)
    for step, made in enumerate(priced(deployment)):
        for part in made.parts:
            assert isinstance(part.tokens, StepTokens)
            for row in part.tokens.row_T.tolist():
                for layer in range(2):
                    load_WLE[step, layer, ids_TLK[row, layer]] += 1
    slots_table = done.slots
    row_N = slots_table.layer_N - 1
    held_N = expert_N(deployment.placement, done.moves, slots_table.step_N, row_N, slots_table.destination_N)
    served_WLE = np.zeros_like(load_WLE)
    np.add.at(served_WLE, (slots_table.step_N, row_N, held_N), slots_table.count_N)
    np.testing.assert_array_equal(served_WLE, load_WLE)

    served_LGE = np.zeros((2, 4, 8), np.int64)
    gpu_N = deployment.placement.slot_gpu_S[slots_table.destination_N]
    np.add.at(served_LGE, (row_N, gpu_N, held_N), slots_table.count_N)
    for entry in stragglers(done.timeline, slots_table, deployment.placement, moves=done.moves):
        own_E = served_LGE[entry.layer - 1, entry.rank]
        assert own_E[entry.expert] == own_E.max()
        assert entry.expert_share == own_E.max() / own_E.sum()
        # Over all steps, though the rank may be the last in some of them only.
        mean_G = served_LGE[entry.layer - 1].sum() / 4
        assert entry.expert_load == pytest.approx(own_E.max() / mean_G)

    assert done.moves
    before = deployment.placement
    for move in done.moves:
        assert move.step % EVERY == 0
        seen_LE = load_WLE[max(0, move.step - (window or EVERY)) : move.step].sum(axis=0)
        problem = Problem.of(seen_LE, 4, slots, layers=(1, 2), gpus_per_node=2, previous=before)
        wanted = solver_named(solver).solve(problem, Search(seed=seed)).placement
        np.testing.assert_array_equal(move.placement.gpu_load_LG(seen_LE), wanted.gpu_load_LG(seen_LE))
        assert move.copies == sum(as_sent(move, before).values())
        assert move.bytes == move.copies * asked.model.expert_bytes_LE[0, 0]
        assert (move.from_L >= move.step).all()
        before = move.placement


@pytest.mark.parametrize("mode", ["sync", "layerwise"])
@pytest.mark.parametrize("faults", [[], [{"gpu": 1, "clock": 0.5, "from_s": 0.002}, {"jitter": 0.1}]])
def test_attribution_adds_up_and_lanes_do_not_overlap(folder: Path, mode: str, faults: list[Any]) -> None:
    done = run(deploy(scenario(folder, {"mode": mode, "solve": "10 us"}, faults=faults)))
    done.timeline.validate()
    _, found = simulate_deployment(done.deployment)
    step_s = found.metrics.step_time_s.mean
    assert found.attribution.step_s == pytest.approx(step_s, rel=rounding(10**6))
    assert sum(found.metrics.phase_time_s.values()) == pytest.approx(step_s, rel=rounding(10**6))
    assert found.metrics.rebalancing.rebalances == len(found.rebalances) == len(done.moves) > 0
    if faults:
        assert found.attribution.hardware_s > 0


@pytest.mark.parametrize("network", ["ports", "fluid"])
def test_a_stall_takes_what_the_network_takes_for_the_plan(folder: Path, network: str) -> None:
    deployment = deploy(scenario(folder, {"solve": "1 ms"}, network=network))
    done, settled = run(deployment), run(deploy(scenario(folder, network=network)))
    model = deployment.pricing.network(deployment.scenario.profile)
    before, expert_bytes = deployment.placement, deployment.scenario.model.expert_bytes_LE[0, 0]
    seconds = stalls(done)
    assert list(seconds) == [move.step for move in done.moves] == [3, 6]
    for move in done.moves:
        # Without replicas every copy comes from the one GPU that has it.
        bytes_GG = np.zeros((4, 4))
        for row in range(2):
            was_E, is_E = (
                each.slot_gpu_S[np.argsort(each.slot_expert_LS[row])] for each in (before, move.placement)
            )
            np.add.at(bytes_GG, (was_E, is_E), np.where(was_E != is_E, expert_bytes, 0.0))
        end_G = model.collective(np.zeros(4), bytes_GG, np.zeros((4, 4)))
        assert seconds[move.step] == pytest.approx(float(end_G.max()) + 0.001, rel=rounding(10**6))
        before = move.placement
    # Until the first rebalance nothing differs.
    for name in ("start_s_N", "end_s_N"):
        early, late = (getattr(each.timeline, name)[each.timeline.step_N < EVERY] for each in (done, settled))
        np.testing.assert_array_equal(early, late)
    metrics = simulate_deployment(done.deployment)[1].metrics.rebalancing
    # GPUs that receive little begin with their attention before the others.
    assert metrics.migration_s * STEPS <= sum(seconds.values()) * (1 + 1e-9)
    assert metrics.migration_s * STEPS >= 0.002


@pytest.mark.parametrize("mode", ["sync", "layerwise"])
def test_the_same_placement_again_moves_nothing_and_costs_nothing(folder: Path, mode: str) -> None:
    still = run(deploy(scenario(folder, {"mode": mode, "max_moves": 0})))
    settled = run(deploy(scenario(folder)))
    assert [move.copies for move in still.moves] == [0, 0]
    assert simulate_deployment(still.deployment)[1].metrics.rebalancing.migration_s == 0.0
    for name in ("start_s_N", "end_s_N", "assignments_N", "phase_N", "bytes_N"):
        np.testing.assert_array_equal(getattr(still.timeline, name), getattr(settled.timeline, name))


@pytest.mark.parametrize("mode", ["sync", "layerwise"])
def test_loads_after_a_rebalance_are_the_solvers_own(folder: Path, mode: str) -> None:
    """Requests that choose the same experts in every token: each step is the window over again."""
    asked = scenario(folder, {"mode": mode})
    trace = random_trace(layers=(1, 2), lengths=(2000,) * 6)
    trace = replace(trace, ids_TLK=np.ascontiguousarray(trace.ids_TLK[trace.request_T * 2000]))
    made = deploy(asked)
    deployment = Deployment(asked, trace, trace, made.placement, made.policies, made.memory)
    done = run(deployment)
    move = done.moves[0]
    assert move.copies > 0
    served_WLG = np.zeros((STEPS, 2, 4))
    gpu_N = deployment.placement.slot_gpu_S[done.slots.destination_N]
    np.add.at(served_WLG, (done.slots.step_N, done.slots.layer_N - 1, gpu_N), done.slots.count_N)
    load_LE = np.zeros((2, 8))
    first = done.slots.step_N == 0
    held_S = deployment.placement.slot_expert_LS
    row_N, slot_N = done.slots.layer_N[first] - 1, done.slots.destination_N[first]
    np.add.at(load_LE, (row_N, held_S[row_N, slot_N]), done.slots.count_N[first])
    for step in range(STEPS):
        for row in range(2):
            serves = move.placement if step >= move.from_L[row] else deployment.placement
            np.testing.assert_array_equal(served_WLG[step, row], serves.gpu_load_LG(load_LE)[row])
    assert served_WLG[-1].max() < served_WLG[0].max()


def test_a_slow_network_carries_layers_one_after_another(folder: Path) -> None:
    cluster = tiny_scenario()["cluster"]
    cluster["nic"]["bandwidth"], cluster["gpu"]["nvlink"]["bandwidth"] = "4 MB/s", "4 MB/s"
    workload = tiny_scenario()["workload"] | {"steps": 40}
    asked = scenario(folder, {"mode": "layerwise", "every_steps": 2}, cluster=cluster, workload=workload)
    done = run(deploy(asked))
    (first, second) = (move.from_L.tolist() for move in done.moves[:2])
    assert 2 < first[0] < first[1]
    # Nothing is decided while something is on its way.
    assert done.moves[1].step >= first[1]
    assert all(move.step % 2 == 0 for move in done.moves)
    assert second[0] > done.moves[1].step
    assert not stalls(done)
    _, found = simulate_deployment(done.deployment)
    assert found.metrics.rebalancing.migration_s > 0
    # Experts travel beside the tokens, and are none of their bytes.
    work, timeline = done.work(), done.timeline
    for phase in (PHASES.index("dispatch"), PHASES.index("combine")):
        spans, copies = timeline.phase_N == phase, work.phase_N == phase
        assert timeline.bytes_N[spans].sum() == work.bytes_N[copies].sum()
    if NEVER in done.moves[-1].from_L:
        assert None in found.rebalances[-1].from_step
        assert any("is under way" in note for note in found.notes)


def test_slots_keep_their_gpus() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        gpu_S = rng.integers(0, 3, 9, np.int32)
        before = Placement(rng.permutation(9).astype(np.int16)[None], gpu_S, 9, 3, (0,))
        after = Placement(rng.permutation(9).astype(np.int16)[None], np.sort(gpu_S), 9, 3, (0,))
        found = in_slots_of(before, after)
        np.testing.assert_array_equal(found.slot_gpu_S, before.slot_gpu_S)
        for gpu in range(3):
            held, wanted = (sorted(each.slot_expert_LS[0, each.slot_gpu_S == gpu]) for each in (found, after))
            assert held == wanted


def test_a_run_writes_every_placement_that_it_decided(folder: Path) -> None:
    done = run(deploy(scenario(folder, {})))
    _, found = simulate_deployment(done.deployment)
    write_run(folder / "out", done, found)
    assert sorted(path.name for path in (folder / "out" / "placements").iterdir()) == [
        "step-3.json",
        "step-6.json",
    ]
    for move, row in zip(done.moves, found.rebalances, strict=True):
        assert read_placement(folder / "out" / "placements" / f"step-{row.step}.json") == move.placement
        assert row.from_step == [row.step] * 2


def test_whatif_says_whether_it_pays_for_any_number_of_workers(here: Path) -> None:
    write_scenario(here, tiny_scenario(workload=tiny_scenario()["workload"] | {"steps": 8}), "s.yaml")
    arguments = ["whatif", "s.yaml", "--vary", "rebalance.every_steps=[null, 2]"]
    arguments += ["--vary", "placement.slots=[8, 12]"]
    one, two = (moesim(*arguments, "--jobs", jobs) for jobs in (1, 2))
    assert one.code == two.code == 0
    assert one.out == two.out
    assert "moving" in one.out
    assert "pays after" in one.out
    assert "Rebalancing does not pay here" in one.out
    assert "rebalanced" in moesim("run", "s.yaml", "-s", "rebalance.every_steps=2").out


def test_the_page_has_columns_for_moving_where_something_moves(folder: Path) -> None:
    never, moving = scenario(folder), scenario(folder, {})
    for points, shown in (([Point({"seed": 0}, never)], False), ([Point({"every_steps": 3}, moving)], True)):
        page = whatif_page(compare(never, points))
        assert ("moving experts" in page) == ("pays after" in page) == shown


def test_pay_back_needs_a_gain_and_a_move() -> None:
    def payback(mean_s: float, rebalances: int, migration_s: float) -> float | None:
        """Of a run of 10 steps that rebalances every 5, beside one whose mean step is 1 s."""
        moved = Rebalancing(rebalances=rebalances, migration_s=migration_s)
        return payback_steps(mean_s, 1.0, moved, 10, 5)

    assert payback(1.0, 0, 0.0) is None
    assert payback(1.2, 1, 0.2) is None
    # 0.1 s a step over 10 steps are lost at once; 0.2 s a step are won in the 5 steps after it.
    assert payback(1.0, 1, 0.1) == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("rebalance", "message"),
    [
        ({"solver": "linear"}, r"rebalance\.solver: must be a solver that looks at loads: .*greedy.*linear"),
        ({"solver": "best"}, r"rebalance\.solver: must be a solver that looks at loads: .*best"),
        ({"every_steps": 0}, r"rebalance\.every_steps: must be at least 1"),
        ({"window": -1}, r"rebalance\.window: must be at least 1"),
        ({"solve": "-1 s"}, r"rebalance\.solve"),
        ({"mode": "async"}, r"rebalance\.mode: must be one of 'sync' or 'layerwise'"),
        ({"every": 3}, r"rebalance\.every: unknown key; did you mean 'every_steps'"),
    ],
)
def test_what_makes_no_sense_is_refused(folder: Path, rebalance: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        scenario(folder, rebalance)


def test_a_solver_that_cannot_keep_to_the_limit_is_refused(folder: Path) -> None:
    with pytest.raises(PlacementError, match=r"rebalance, before step 3: .*at most 0 copies"):
        run(deploy(scenario(folder, {"solver": "greedy", "max_moves": 0})))


def test_without_effect_is_named(folder: Path) -> None:
    _, found = simulate_scenario(scenario(folder, {"every_steps": STEPS}))
    assert f"rebalance has no effect: its first is before step {STEPS} of {STEPS}." in found.notes
    _, never = simulate_scenario(scenario(folder, {"every_steps": None}))
    assert not any("rebalance" in note for note in never.notes)


def test_a_real_run_leaves_experts_where_they_are(folder: Path) -> None:
    scenario(folder, {})
    found = executable(str(folder / "scenario.yaml"), [], 2, own_cluster)
    assert found.scenario.rebalance is None
    assert any("experts stay where they are" in note for note in found.notes)
