"""What-if: every combination once, in order, durable where a folder is given, the same on any workers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.analysis.culprit import Culprit
from moesim.analysis.result import simulate_scenario
from moesim.analysis.result_file import Comparison, Infeasible
from moesim.errors import MoesimError, OutputError, SpecError
from moesim.report.comparison_table import refused_table
from moesim.spec.override import Override
from moesim.spec.scenario import Scenario
from moesim.spec.vary import Vary
from moesim.studies import whatif
from moesim.studies.points import Point, demo_points, plan
from moesim.studies.store import Store
from moesim.studies.whatif import compare
from tests.moesim.command import files, moesim, refused
from tests.traces.random_traces import random_trace
from traces.trace_writer import write_trace

pytestmark = pytest.mark.usefixtures("here")

TRACE = Override(("trace",), {"file": "t.parquet"})


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seeds of the scenarios that have been simulated in this process."""
    seeds: list[int] = []

    def counted(scenario: Scenario, *others: Any) -> Any:
        seeds.append(scenario.seed)
        return simulate_scenario(scenario, *others)

    monkeypatch.setattr(whatif, "simulate_scenario", counted)
    return seeds


def whole(scenario: Scenario | MoesimError) -> Scenario:
    """One that is no fault."""
    assert isinstance(scenario, Scenario)
    return scenario


def seeds(*values: int) -> tuple[Scenario, list[Point]]:
    base, points = plan("s.yaml", [TRACE], [Vary.of("seed", *values)])
    return whole(base), points


def timeless(comparison: Comparison) -> Comparison:
    return comparison.made(wall_s=0)


# The plan


def test_the_first_key_varies_slowest() -> None:
    base, points = plan("s.yaml", [], [Vary.of("seed", 1, 2), Vary.of("workload.steps", 3, 4)])
    assert [tuple(point.vary.values()) for point in points] == [(1, 3), (1, 4), (2, 3), (2, 4)]
    assert [(whole(point.scenario).seed, whole(point.scenario).workload.steps) for point in points] == [
        (1, 3),
        (1, 4),
        (2, 3),
        (2, 4),
    ]
    assert (whole(base).seed, whole(base).workload.steps) == (0, 2)


def test_a_varied_key_comes_after_the_options() -> None:
    _, (point,) = plan("s.yaml", [Override(("seed",), 7)], [Vary.of("seed", 8)])
    assert whole(point.scenario).seed == 8


def test_values_are_yaml() -> None:
    vary = Vary.parse("placement=[linear, {solver: greedy, slots: 12}, null, 1.5]")
    assert vary == Vary.of("placement", "linear", {"solver": "greedy", "slots": 12}, None, 1.5)
    # Only the first "=" separates.
    assert Vary.parse("name=[a=b]") == Vary.of("name", "a=b")


def test_keys_that_vary_together() -> None:
    option = "parallelism.ep,cluster.nodes,seed=[[2, 1, 5], [4, 2, 6]]"
    _, points = plan("s.yaml", [], [Vary.parse(option), Vary.of("workload.steps", 3, 4)])
    assert [point.vary for point in points] == [
        {"parallelism.ep": ep, "cluster.nodes": nodes, "seed": seed, "workload.steps": steps}
        for ep, nodes, seed in ((2, 1, 5), (4, 2, 6))
        for steps in (3, 4)
    ]
    assert [whole(point.scenario).parallelism.ep for point in points] == [2, 2, 4, 4]
    assert [whole(point.scenario).cluster.gpus for point in points] == [2, 2, 4, 4]


def test_the_points_of_the_demo_can_be_simulated() -> None:
    points = demo_points()
    assert len({json.dumps(point.vary) for point in points}) == len(points) >= 3


# The comparison


def test_points_are_the_results_of_their_scenarios() -> None:
    base, points = seeds(1, 2)
    comparison = compare(base, points)
    assert comparison.format == "moesim.whatif/1"
    for row, point in zip(comparison.outcomes, points, strict=True):
        _, alone = simulate_scenario(whole(point.scenario))
        assert row.vary == point.vary
        assert row.metrics == alone.metrics
        assert row.attribution == alone.attribution
        asked = comparison.baseline.metrics
        assert row.speedup == alone.metrics.tokens_per_s / asked.tokens_per_s


def test_a_fault_is_laid_at_the_door_of_its_gpu() -> None:
    base, points = plan("s.yaml", [TRACE], [Vary.of("faults", [{"gpu": 2, "clock": 0.01}], [])])
    slow, healthy = compare(base, points).outcomes
    assert slow.culprit == Culprit(rank=2, layers=2, cause="hardware")
    assert healthy.culprit is None or healthy.culprit.cause != "hardware"


def test_equal_scenarios_are_simulated_once(simulated: list[int]) -> None:
    told: list[float] = []
    base, points = seeds(0, 1, 1, 2)
    comparison = compare(base, points, progress=told.append)
    assert simulated == [0, 1, 2]
    # The two steps of the base as they run, and each point.
    assert told == [0.5, 0.5, 0.0, 1.0, 1.0, 1.0, 1.0]
    assert [row.vary["seed"] for row in comparison.points] == [0, 1, 1, 2]
    assert comparison.outcomes[0].speedup == 1
    assert [row.as_asked for row in comparison.outcomes] == [True, False, False, False]
    assert comparison.points[1] == comparison.points[2]


def test_a_known_baseline_is_not_simulated_again(simulated: list[int]) -> None:
    base, points = seeds(1)
    _, known = simulate_scenario(whole(base))
    assert compare(base, points, baseline=known).baseline is known
    assert simulated == [1]


def test_the_number_of_workers_changes_nothing(here: Path) -> None:
    base, points = seeds(1, 2, 3)
    one = compare(base, points, store=Store(here / "one"))
    two = compare(base, points, jobs=2, store=Store(here / "two"))
    assert timeless(one) == timeless(two)
    assert files(here / "one").keys() == files(here / "two").keys()


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_point_that_cannot_be_is_a_row_that_says_why(jobs: int) -> None:
    base, points = plan("s.yaml", [], [Vary.of("workload.context", 10**7, 8)])
    comparison = compare(base, points, jobs=jobs)
    cannot, ran = comparison.points
    assert isinstance(cannot, Infeasible)
    assert cannot.vary == {"workload.context": 10**7}
    assert cannot.infeasible.startswith("cluster.gpu.memory: tiny on 4 GPUs needs")
    assert comparison.outcomes == [ran]
    table = refused_table(comparison)
    assert table is not None
    assert table.rows == [("workload.context=10000000", cannot.infeasible)]
    assert Comparison.model_validate_json(json.dumps(comparison.plain())) == comparison


REFUSALS: dict[str, tuple[str, Any, str]] = {
    # While a scenario is made: a value, a key, a rule between fields.
    "a value": ("seed", -1, "--vary seed: must be at least 0 (got -1)"),
    "a key": ("workload", {"stepz": 1}, "--vary workload: workload.stepz: unknown key"),
    "divisibility": ("parallelism.ep", 3, "--vary parallelism.ep: must divide the cluster's 4 GPUs"),
    "a solver": ("placement", "magic", "--vary placement: placement.solver: no such solver"),
    "slots": ("placement.slots", 9, "--vary placement.slots: does not divide over 4 GPUs"),
    "a policy": ("routing", "magic", "--vary routing: routing.policy: no such policy"),
    # While it is deployed: memory, a trace, a placement, what a policy needs.
    "memory": ("workload.context", 10**7, "cluster.gpu.memory: tiny on 4 GPUs needs"),
    "a file": ("trace", {"file": "none.parquet"}, "none.parquet"),
    "another model's trace": ("model.layers", 4, "t.parquet: trace: the trace is of another shape"),
    "a placement": ("placement", {"file": "none.json"}, "none.json"),
    "candidates": ("routing", {"policy": "reroute", "capacity_factor": 1.0}, "candidates"),
    "a solver's rule": ("placement", {"solver": "eplb", "fit_fraction": 0.01}, "too few requests to fit"),
    # While it runs: the solver of a rebalance finds nothing.
    "a rebalance": (
        "rebalance",
        {"every_steps": 1, "solver": "eplb", "max_moves": 1},
        "rebalance, before step 1: ",
    ),
}


@pytest.mark.parametrize(("key", "value", "why"), REFUSALS.values(), ids=REFUSALS)
def test_every_refusal_of_a_point_is_a_row(key: str, value: Any, why: str) -> None:
    feasible = {"trace": {"file": "t.parquet"}, "routing": {"policy": "none"}, "model.layers": 3}
    option = Vary((key, "name"), ((value, "cannot"), (feasible.get(key, whole_value(key)), "can")))
    base, points = plan("s.yaml", [TRACE], [option])
    comparison = compare(base, points)
    cannot, ran = comparison.points
    assert isinstance(cannot, Infeasible)
    assert why in cannot.infeasible
    assert comparison.outcomes == [ran]


def whole_value(key: str) -> Any:
    """What the tiny scenario has under a key."""
    base, _ = plan("s.yaml", [], [])
    value: Any = whole(base).resolved()
    for part in key.split("."):
        value = value[part]
    return value


def test_a_base_that_cannot_be_yields_to_the_first_point_that_can(here: Path) -> None:
    faulty = Override(("parallelism", "ep"), 3)
    arguments = ["whatif", "s.yaml", "-s", "workload.context=10000000", "-s", "trace={file: t.parquet}"]
    for options in (arguments, [*arguments, "-s", "parallelism.ep=3"]):
        ways = "[[10000000, 4], [8, 4], [9, 4], [8, 4]]"
        done = moesim(*options, "--vary", f"workload.context,parallelism.ep={ways}", "--json", "-o", "out")
        assert done.code == 0, done.err
        found = json.loads(done.out)
        assert found["infeasible"].startswith(
            "cluster.gpu.memory: tiny" if options is arguments else f"-s {faulty.key}: must divide"
        )
        assert [set(point) >= {"speedup"} for point in found["points"]] == [False, True, True, True]
        assert [point["as_asked"] for point in found["points"][1:]] == [True, False, True]
        assert found["points"][1]["metrics"] == found["baseline"]["metrics"]
        assert found["baseline"]["scenario"]["workload"]["context"] == 8
    text = " ".join(moesim(*arguments, "--vary", "workload.context=[10000000, 8, 9]").out.split())
    assert "The scenario itself cannot be; points are compared with workload.context=8." in text
    assert "as asked cluster.gpu.memory: tiny on 4 GPUs needs" in text
    page = (here / "out" / "report.html").read_text()
    assert "What points are compared with: workload.context=8, parallelism.ep=4" in page


def test_a_what_if_of_which_nothing_can_be_is_refused() -> None:
    # What is wrong with all of them; what is wrong with the scenario; what with each point alone.
    assert refused("whatif", "s.yaml", "--vary", "workload.stepz=[1, 2]").startswith(
        "--vary workload.stepz: unknown key; did you mean 'steps'?"
    )
    everywhere = ("whatif", "s.yaml", "-s", "workload.context=10000000", "--vary", "seed=[1, 2]")
    assert refused(*everywhere).startswith("s.yaml: cluster.gpu.memory: tiny on 4 GPUs needs")
    assert refused("whatif", "s.yaml", "--vary", "workload.context=[10000000, 20000000]").startswith(
        "s.yaml: cluster.gpu.memory: tiny on 4 GPUs needs"
    )


def test_what_could_not_be_is_not_tried_twice(simulated: list[int]) -> None:
    base, points = plan(
        "s.yaml",
        [TRACE, Override(("workload", "context"), 10**7)],
        [Vary(("seed", "workload.context"), ((0, 10**7), (1, 8), (0, 10**7)))],
    )
    comparison = compare(base, points)
    assert simulated == [0, 1]
    assert len(comparison.refused) == 3


# The store


def test_finished_points_are_not_run_again(here: Path, simulated: list[int]) -> None:
    store = Store(here / "points")
    base, points = seeds(1, 2)
    first = compare(base, points, store=store)
    assert simulated == [0, 1, 2]
    base, more = seeds(1, 3, 2)
    second = compare(base, more, store=store)
    assert simulated == [0, 1, 2, 3]
    assert second.baseline == first.baseline
    assert [second.points[0], second.points[2]] == first.points
    assert len(files(here / "points")) == 4


def test_an_interrupted_comparison_goes_on(here: Path, simulated: list[int]) -> None:
    store = Store(here / "points")
    base, points = seeds(1, 2, 3)
    told: list[float] = []

    def interrupt(part: float) -> None:
        told.append(part)
        if sum(told) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(base, points, store=store, progress=interrupt)
    kept = files(here / "points")
    assert len(kept) == 3
    simulated.clear()
    whole = compare(base, points, store=store)
    assert simulated == [3]
    assert files(here / "points").items() >= kept.items()
    assert timeless(whole) == timeless(compare(base, points))


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def other_metrics(content: bytes) -> bytes:
    return content.replace(b'"metrics"', b'"matrix"')


def other_scenario(content: bytes) -> bytes:
    return content.replace(b'"seed": 0', b'"seed": 1')


def other_version(content: bytes) -> bytes:
    result = json.loads(content)
    return json.dumps(result | {"provenance": result["provenance"] | {"moesim": "0.0.0"}}).encode()


@pytest.mark.parametrize(
    "damage",
    [half, other_metrics, other_scenario, other_version, lambda _: b"", lambda _: b"[]", lambda _: b"\xff"],
)
def test_a_damaged_point_is_run_again(here: Path, simulated: list[int], damage: Any) -> None:
    store = Store(here / "points")
    base, _ = seeds()
    before = compare(base, [], store=store)
    (path,) = (here / "points").iterdir()
    path.write_bytes(damage(path.read_bytes()))
    after = compare(base, [], store=store)
    assert simulated == [0, 0]
    assert timeless(after) == timeless(before)
    assert store.find(whole(base)) is not None


def test_a_folder_in_the_place_of_a_point_is_refused_when_writing(here: Path) -> None:
    store = Store(here / "points")
    base, _ = seeds()
    compare(base, [], store=store)
    (path,) = (here / "points").iterdir()
    path.unlink()
    path.mkdir()
    with pytest.raises(OutputError, match="is a folder, a file was expected"):
        compare(base, [], store=store)


def test_a_point_is_known_by_all_that_determines_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = here / "points"
    store = Store(folder)
    base, _ = seeds()
    result = simulate_scenario(whole(base))[1]
    assert store.find(whole(base)) is None
    for _ in range(2):
        store.keep(whole(base), result)
        assert len(files(folder)) == 1
    assert store.find(whole(base)) == result
    # The same file with other routing in it.
    write_trace(random_trace(1, layers=(1, 2), lengths=(12,) * 6), "t.parquet")
    assert store.find(whole(base)) is None
    store.keep(whole(base), result)
    assert len(files(folder)) == 2
    monkeypatch.setattr("moesim.studies.store.__version__", "9.9.9")
    assert store.find(whole(base)) is None


def test_a_point_is_known_by_the_code_of_its_policy(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(here))
    written = here / "written_policy.py"
    content = (Path(__file__).parent / "own_policy.py").read_text()
    written.write_text(content)
    store = Store(here / "points")
    base, _ = plan("s.yaml", [TRACE, Override(("routing",), "written_policy:FirstOnly")], [])
    compare(base, [], store=store)
    assert store.find(whole(base)) is not None
    written.write_text(content.replace("self.places :]", "2 * self.places :]"))
    assert store.find(whole(base)) is None


def test_a_point_is_known_by_the_content_of_its_placement(here: Path) -> None:
    def write(order: list[int]) -> None:
        content = {
            "format": "moesim.placement/1",
            "origin": "a test",
            "experts": 8,
            "gpus": 4,
            "layers": [1, 2],
            "slot_gpu": [0, 0, 1, 1, 2, 2, 3, 3],
            "slot_expert": [order] * 2,
        }
        (here / "p.json").write_text(json.dumps(content))

    write(list(range(8)))
    base, _ = plan("s.yaml", [TRACE, Override(("placement",), {"file": "p.json"})], [])
    store = Store(here / "points")
    store.keep(whole(base), simulate_scenario(whole(base))[1])
    assert store.find(whole(base)) is not None
    write(list(np.random.default_rng(0).permutation(8).tolist()))
    assert store.find(whole(base)) is None


# A cluster of dask


@pytest.fixture
def scheduler() -> Iterator[str]:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
    ) as cluster:
        yield cluster.scheduler_address


def test_a_cluster_gives_the_same_results(here: Path, scheduler: str) -> None:
    base, points = seeds(1, 2)
    there = compare(base, points, scheduler=scheduler, store=Store(here / "points"))
    assert len(files(here / "points")) == 3
    assert timeless(there) == timeless(compare(base, points))


def test_faults_come_back_from_the_cluster(scheduler: str) -> None:
    base, points = plan("s.yaml", [], [Vary.of("workload.context", 10**7, 8)])
    (cannot,) = compare(base, points, scheduler=scheduler).refused
    assert cannot.infeasible.startswith("cluster.gpu.memory: tiny")


def test_an_address_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(whatif, "_SCHEDULER_TIMEOUT_S", 0.2)
    base, points = seeds(1)
    for address in ("", "nope", "zzz://a:1", "tcp://127.0.0.1:1"):
        with pytest.raises(SpecError, match=r"^--scheduler: no dask scheduler answers there"):
            compare(base, points, scheduler=address)
