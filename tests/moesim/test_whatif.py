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
from moesim.errors import MemoryFitError, OutputError, SpecError
from moesim.report.notes import comparison_notes
from moesim.spec.override import Override
from moesim.spec.scenario import Scenario
from moesim.spec.vary import Vary
from moesim.studies import whatif
from moesim.studies.points import Point, demo_points, plan
from moesim.studies.store import Store
from moesim.studies.whatif import compare
from tests.moesim.command import files
from tests.traces.random_traces import random_trace
from traces.trace_writer import write_trace

pytestmark = pytest.mark.usefixtures("here")

TRACE = Override(("trace",), {"file": "t.parquet"})


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seeds of the scenarios that have been simulated in this process."""
    seeds: list[int] = []

    def counted(scenario: Scenario, samples: int) -> Any:
        seeds.append(scenario.seed)
        return simulate_scenario(scenario, samples)

    monkeypatch.setattr(whatif, "simulate_scenario", counted)
    return seeds


def seeds(*values: int) -> tuple[Scenario, list[Point]]:
    return plan("s.yaml", [TRACE], [Vary.of("seed", *values)])


def timeless(comparison: Comparison) -> Comparison:
    return comparison.made(wall_s=0)


# The plan


def test_the_first_key_varies_slowest() -> None:
    base, points = plan("s.yaml", [], [Vary.of("seed", 1, 2), Vary.of("workload.steps", 3, 4)])
    assert [tuple(point.vary.values()) for point in points] == [(1, 3), (1, 4), (2, 3), (2, 4)]
    assert [(point.scenario.seed, point.scenario.workload.steps) for point in points] == [
        (1, 3),
        (1, 4),
        (2, 3),
        (2, 4),
    ]
    assert (base.seed, base.workload.steps) == (0, 2)


def test_a_varied_key_comes_after_the_options() -> None:
    _, (point,) = plan("s.yaml", [Override(("seed",), 7)], [Vary.of("seed", 8)])
    assert point.scenario.seed == 8


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
    assert [point.scenario.parallelism.ep for point in points] == [2, 2, 4, 4]
    assert [point.scenario.cluster.gpus for point in points] == [2, 2, 4, 4]


def test_the_points_of_the_demo_can_be_simulated() -> None:
    points = demo_points()
    assert len({json.dumps(point.vary) for point in points}) == len(points) >= 3


# The comparison


def test_points_are_the_results_of_their_scenarios() -> None:
    base, points = seeds(1, 2)
    comparison = compare(base, points)
    assert comparison.format == "moesim.whatif/1"
    for row, point in zip(comparison.outcomes, points, strict=True):
        _, alone = simulate_scenario(point.scenario)
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
    told: list[int] = []
    base, points = seeds(0, 1, 1, 2)
    comparison = compare(base, points, progress=lambda: told.append(1))
    assert simulated == [0, 1, 2]
    assert len(told) == 5
    assert [row.vary["seed"] for row in comparison.points] == [0, 1, 1, 2]
    assert comparison.outcomes[0].speedup == 1
    assert [row.as_asked for row in comparison.outcomes] == [True, False, False, False]
    assert comparison.points[1] == comparison.points[2]


def test_a_known_baseline_is_not_simulated_again(simulated: list[int]) -> None:
    base, points = seeds(1)
    _, known = simulate_scenario(base)
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
    assert comparison_notes(comparison)[0].startswith(
        "workload.context=10000000 cannot be: cluster.gpu.memory"
    )
    assert Comparison.model_validate_json(json.dumps(comparison.plain())) == comparison
    with pytest.raises(MemoryFitError, match=r"cluster\.gpu\.memory: tiny"):
        compare(points[0].scenario, points[1:], jobs=jobs)


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
    told: list[int] = []

    def interrupt() -> None:
        told.append(1)
        if len(told) == 3:
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
    assert store.find(base) is not None


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
    result = simulate_scenario(base)[1]
    assert store.find(base) is None
    for _ in range(2):
        store.keep(base, result)
        assert len(files(folder)) == 1
    assert store.find(base) == result
    # The same file with other routing in it.
    write_trace(random_trace(1, layers=(1, 2), lengths=(12,) * 6), "t.parquet")
    assert store.find(base) is None
    store.keep(base, result)
    assert len(files(folder)) == 2
    monkeypatch.setattr("moesim.studies.store.__version__", "9.9.9")
    assert store.find(base) is None


def test_a_point_is_known_by_the_code_of_its_policy(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(here))
    written = here / "written_policy.py"
    content = (Path(__file__).parent / "own_policy.py").read_text()
    written.write_text(content)
    store = Store(here / "points")
    base, _ = plan("s.yaml", [TRACE, Override(("routing",), "written_policy:FirstOnly")], [])
    compare(base, [], store=store)
    assert store.find(base) is not None
    written.write_text(content.replace("self.places :]", "2 * self.places :]"))
    assert store.find(base) is None


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
    store.keep(base, simulate_scenario(base)[1])
    assert store.find(base) is not None
    write(list(np.random.default_rng(0).permutation(8).tolist()))
    assert store.find(base) is None


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
    base, points = plan("s.yaml", [], [Vary.of("workload.context", 10**7)])
    (cannot,) = compare(base, points, scheduler=scheduler).infeasible
    assert cannot.infeasible.startswith("cluster.gpu.memory: tiny")


def test_an_address_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(whatif, "_SCHEDULER_TIMEOUT_S", 0.2)
    base, points = seeds(1)
    for address in ("", "nope", "zzz://a:1", "tcp://127.0.0.1:1"):
        with pytest.raises(SpecError, match=r"^--scheduler: no dask scheduler answers there"):
            compare(base, points, scheduler=address)
