"""What if: every combination of some values, each simulated and laid beside the scenario itself."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Any

from joblib import Parallel, delayed, parallel_config

from moesim.analysis.intervals import check_samples, drawn_tokens_per_s, ends, faster_shares
from moesim.analysis.rebalancing import payback_steps
from moesim.analysis.result import simulate_scenario
from moesim.analysis.result_file import Comparison, Infeasible, Outcome, Result
from moesim.analysis.target import Target
from moesim.errors import MoesimError, SpecError
from moesim.spec.scenario import Scenario
from moesim.studies.points import Point
from moesim.studies.store import Store
from traces.base.processes import end_with

_SCHEDULER_TIMEOUT_S = 10


def compare(
    base: Scenario | MoesimError,
    points: Sequence[Point],
    *,
    targets: Sequence[Target] = (),
    samples: int = 0,
    jobs: int = 1,
    scheduler: str | None = None,
    store: Store | None = None,
    baseline: Result | None = None,
    progress: Callable[[float], None] = lambda _: None,
) -> Comparison:
    """Simulate the base and all points; format ``moesim.whatif/1``.

    Args:
        base: the scenario itself, or why it is none.
        targets: bounds that the best point shall meet.
        samples: profiles to draw for intervals, the same for all points; 0 asks for none.
        jobs: worker processes; the result does not depend on it.
        scheduler: address of a dask scheduler whose workers simulate instead; they must reach the files
            that the scenario names.
        store: where finished points survive an interruption; what it holds is not run again.
        baseline: the result of the base, where it is known already.
        progress: told of parts of the base as it runs, and of each point; all are 1 each.

    A point that cannot be, for lack of memory say, is a row that says why. A base that cannot be yields to
    the first point that can.

    Raises:
        MoesimError: no point can be simulated, or, where there are none, the base.
    """
    check_samples(samples)
    known: dict[str, Result | MoesimError] = {}
    if baseline is not None and isinstance(base, Scenario):
        known[_name(base)] = baseline
    asked, found = _first([Point({}, base), *points], samples, store, known, progress)
    results = _results(points, known, samples, store, _workers(jobs, scheduler), progress)
    ran = [each for each in zip(points, results, strict=True) if isinstance(each[1], Result)]
    faults = [result for result in results if isinstance(result, MoesimError)]
    if faults and not ran:
        raise faults[0]
    others = [result for _, result in ran if isinstance(result, Result)]
    scenarios = [point.scenario for point, _ in ran if isinstance(point.scenario, Scenario)]
    _, *paybacks = _paybacks([asked, *scenarios], [found, *others])
    payback = iter(paybacks)
    rows = [
        Infeasible(vary=point.vary, infeasible=str(result))
        if isinstance(result, MoesimError)
        else _outcome(point, result, asked, found, next(payback), targets)
        for point, result in zip(points, results, strict=True)
    ]
    extra: dict[str, Any] = {"faster": faster_shares([found, *others])} if samples else {}
    if targets:
        extra["targets"] = [target.text for target in targets]
    if base is not asked:
        extra["infeasible"] = str(base if isinstance(base, MoesimError) else known[_name(base)])
    return Comparison(format="moesim.whatif/1", baseline=found, points=rows, **extra)


def _first(
    candidates: Sequence[Point],
    samples: int,
    store: Store | None,
    known: dict[str, Result | MoesimError],
    progress: Callable[[float], None],
) -> tuple[Scenario, Result]:
    """The first that can be, with its result; ``known`` learns what became of those before it.

    It runs here: it compiles, and the workers find everything in the cache.

    Raises:
        MoesimError: the fault of the first, where none can be.
    """
    faults, left = [], 1.0

    def tell(part: float) -> None:
        nonlocal left
        left -= part
        progress(part)

    for point in candidates:
        if isinstance(point.scenario, Scenario):
            name = _name(point.scenario)
            if name not in known:
                stored = _stored(point.scenario, store)
                known[name] = stored or _simulate(name, point, samples, tell)[1]
                if stored is None:
                    _keep(point, known[name], store)
            if isinstance(found := known[name], Result):
                progress(left)
                return point.scenario, found
            faults.append(found)
        else:
            faults.append(point.scenario)
    raise faults[0]


def _outcome(
    point: Point,
    result: Result,
    base: Scenario,
    baseline: Result,
    payback: float | None,
    targets: Sequence[Target],
) -> Outcome:
    assert isinstance(point.scenario, Scenario)  # it has been simulated
    verdict: dict[str, Any] = {}
    if targets:
        verdict["meets"] = all(target.met(result.metrics) for target in targets)
    return Outcome(
        vary=point.vary,
        metrics=result.metrics,
        attribution=result.attribution,
        culprit=result.culprit,
        gpus=point.scenario.parallelism.ep,
        # Points may differ in tokens a step, so what counts is tokens a second.
        speedup=result.metrics.tokens_per_s / baseline.metrics.tokens_per_s,
        **_interval(baseline, result),
        payback_steps=payback,
        **verdict,
        # Combinations of values that the scenario has anyway.
        as_asked=_name(point.scenario) == _name(base),
        notes=result.notes,
        unseen=result.unseen,
        mode=result.mode,
    )


def _interval(baseline: Result, result: Result) -> dict[str, Any]:
    """The interval of a point's speedup, where draws were asked for."""
    if result.intervals is None:
        return {}
    return {"speedup_interval": ends((drawn_tokens_per_s(result) / drawn_tokens_per_s(baseline)).tolist())}


def _results(
    points: Sequence[Point],
    known: dict[str, Result | MoesimError],
    samples: int,
    store: Store | None,
    workers: AbstractContextManager[Any],
    progress: Callable[[float], None],
) -> list[Result | MoesimError]:
    """The result of each point, or why it cannot be. Equal ones, and those known, are not simulated again."""
    made = {at: each.scenario for at, each in enumerate(points) if isinstance(each.scenario, Scenario)}
    names = {at: _name(scenario) for at, scenario in made.items()}
    copies = Counter(names.values())
    missing: dict[str, Point] = {}
    for at, point in enumerate(points):
        if at in made and names[at] not in known and (found := _stored(made[at], store)) is not None:
            known[names[at]] = found
        if at not in made or names[at] in known:
            progress(1.0)
        else:
            missing[names[at]] = point
    work = (delayed(_simulate)(name, point, samples) for name, point in missing.items())
    # One by one, so that each is kept as soon as it is there; and none goes on when this ends early.
    with workers, closing(Parallel(return_as="generator_unordered", batch_size=1)(work)) as done:
        for name, result in done:
            known[name] = result
            _keep(missing[name], result, store)
            for _ in range(copies[name]):
                progress(1.0)
    faults = {at: each.scenario for at, each in enumerate(points) if isinstance(each.scenario, MoesimError)}
    return [faults[at] if at in faults else known[names[at]] for at in range(len(points))]


def _paybacks(scenarios: Sequence[Scenario], results: Sequence[Result]) -> list[float | None]:
    """Steps after which a rebalance is won back; None without a run that differs only in that it has none."""
    names = [_name(each.model_copy(update={"rebalance": None})) for each in scenarios]
    never = {
        name: result.metrics.step_time_s.mean
        for name, each, result in zip(names, scenarios, results, strict=True)
        if each.rebalance is None or each.rebalance.every_steps is None
    }
    return [
        payback_steps(
            result.metrics.step_time_s.mean,
            never[name],
            result.metrics.rebalancing,
            each.workload.steps,
            each.rebalance.every_steps,
        )
        if name in never and each.rebalance is not None and each.rebalance.every_steps is not None
        else None
        for name, each, result in zip(names, scenarios, results, strict=True)
    ]


def _name(scenario: Scenario) -> str:
    """Equal for equal scenarios."""
    return json.dumps(scenario.resolved(), sort_keys=True)


def _simulate(
    name: str, point: Point, samples: int, progress: Callable[[float], None] = lambda _: None
) -> tuple[str, Result | MoesimError]:
    """In a worker: one point, or why it cannot be, with the name it was sent under."""
    assert isinstance(point.scenario, Scenario)  # those that are none are not sent
    try:
        return name, simulate_scenario(point.scenario, samples, progress)[1]
    except MoesimError as error:
        return name, error


def _workers(jobs: int, scheduler: str | None) -> AbstractContextManager[Any]:
    """Where points are simulated: in processes here, or on the workers of a dask cluster.

    Raises:
        SpecError: no scheduler answers at the address, or the package for it is not installed.
    """
    if scheduler is None:
        return _in_processes(jobs)
    try:
        from distributed import Client
    except ImportError as error:
        rule = "needs the package distributed: pip install 'moesim[cluster]'"
        raise SpecError(rule, file="--scheduler", got=scheduler) from error
    try:
        client: Any = Client(scheduler, timeout=_SCHEDULER_TIMEOUT_S)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:  # no answer in time is an OSError, too
        raise SpecError("no dask scheduler answers there", file="--scheduler", got=scheduler) from error
    return _on_cluster(client)


@contextmanager
def _in_processes(jobs: int) -> Iterator[None]:
    """Workers end with this process, however it ends."""
    with parallel_config("loky", n_jobs=jobs, initializer=end_with, initargs=(os.getpid(),)):
        yield


@contextmanager
def _on_cluster(client: Any) -> Iterator[None]:
    with client, parallel_config(backend="dask", n_jobs=-1):
        yield


def _stored(scenario: Scenario, store: Store | None) -> Result | None:
    return None if store is None else store.find(scenario)


def _keep(point: Point, result: Result | MoesimError, store: Store | None) -> None:
    if store is not None and isinstance(point.scenario, Scenario) and isinstance(result, Result):
        store.keep(point.scenario, result)
