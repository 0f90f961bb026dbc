"""What if: every combination of some values, each simulated and laid beside the scenario itself."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from joblib import Parallel, delayed, parallel_config

from moesim.analysis.intervals import drawn_profiles, drawn_tokens_per_s, ends, faster_shares
from moesim.analysis.rebalancing import payback_steps
from moesim.analysis.result import simulate_scenario
from moesim.analysis.result_file import Comparison, Infeasible, Outcome, Result
from moesim.errors import MoesimError, SpecError
from moesim.spec.scenario import Scenario
from moesim.studies.points import Point
from moesim.studies.store import Store

_SCHEDULER_TIMEOUT_S = 10


def compare(
    base: Scenario,
    points: Sequence[Point],
    *,
    samples: int = 0,
    jobs: int = 1,
    scheduler: str | None = None,
    store: Store | None = None,
    baseline: Result | None = None,
    progress: Callable[[], None] = lambda: None,
) -> Comparison:
    """Simulate the base and all points; format ``moesim.whatif/1``.

    Args:
        samples: profiles to draw for intervals, the same for all points; 0 asks for none.
        jobs: worker processes; the result does not depend on it.
        scheduler: address of a dask scheduler whose workers simulate instead; they must reach the files
            that the scenario names.
        store: where finished points survive an interruption; what it holds is not run again.
        baseline: the result of the base, where it is known already.
        progress: called once for the base and for each point, when its result is there.

    A point that cannot be, for lack of memory say, is a row that says why.

    Raises:
        MoesimError: the base cannot be simulated.
    """
    for each in (base, *(point.scenario for point in points)):
        drawn_profiles(each.profile, samples)
    # The base runs here and first: it compiles, and the workers find everything in the cache.
    if baseline is None:
        baseline = _stored(base, store) or _kept(base, simulate_scenario(base, samples)[1], store)
    progress()
    results = _results(base, baseline, points, samples, store, _workers(jobs, scheduler), progress)
    ran = [each for each in zip(points, results, strict=True) if isinstance(each[1], Result)]
    found = [result for _, result in ran if isinstance(result, Result)]
    _, *paybacks = _paybacks([base, *(point.scenario for point, _ in ran)], [baseline, *found])
    payback = iter(paybacks)
    rows = [
        Infeasible(vary=point.vary, infeasible=result)
        if isinstance(result, str)
        else _outcome(point, result, base, baseline, next(payback))
        for point, result in zip(points, results, strict=True)
    ]
    pairs = {"faster": faster_shares([baseline, *found])} if samples else {}
    return Comparison(format="moesim.whatif/1", baseline=baseline, points=rows, **pairs)


def _outcome(
    point: Point, result: Result, base: Scenario, baseline: Result, payback: float | None
) -> Outcome:
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
        # Combinations of values that the scenario has anyway.
        as_asked=_name(point.scenario) == _name(base),
        notes=result.notes,
        unseen=result.unseen,
        mode=result.mode,
    )


def _interval(baseline: Result, result: Result) -> dict[str, list[float]]:
    """The interval of a point's speedup, where draws were asked for."""
    if result.intervals is None:
        return {}
    return {"speedup_interval": ends((drawn_tokens_per_s(result) / drawn_tokens_per_s(baseline)).tolist())}


def _results(
    base: Scenario,
    baseline: Result,
    points: Sequence[Point],
    samples: int,
    store: Store | None,
    workers: AbstractContextManager[Any],
    progress: Callable[[], None],
) -> list[Result | str]:
    """The result of each point, or why it cannot be. Equal ones, or equal to the base, are simulated once."""
    names = [_name(point.scenario) for point in points]
    copies = Counter(names)
    known: dict[str, Result | str] = {_name(base): baseline}
    missing: dict[str, Point] = {}
    for name, point in zip(names, points, strict=True):
        if name not in known and (found := _stored(point.scenario, store)) is not None:
            known[name] = found
        if name in known:
            progress()
        else:
            missing[name] = point
    work = (delayed(_simulate)(name, point, samples) for name, point in missing.items())
    with workers:
        for name, result in Parallel(return_as="generator_unordered")(work):
            kept = isinstance(result, Result)
            known[name] = _kept(missing[name].scenario, result, store) if kept else result
            for _ in range(copies[name]):
                progress()
    return [known[name] for name in names]


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


def _simulate(name: str, point: Point, samples: int) -> tuple[str, Result | str]:
    """In a worker: one point, or why it cannot be, with the name it was sent under."""
    try:
        return name, simulate_scenario(point.scenario, samples)[1]
    except MoesimError as error:
        return name, str(error)


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
    with parallel_config(n_jobs=jobs):
        yield


@contextmanager
def _on_cluster(client: Any) -> Iterator[None]:
    with client, parallel_config(backend="dask", n_jobs=-1):
        yield


def _stored(scenario: Scenario, store: Store | None) -> Result | None:
    return None if store is None else store.find(scenario)


def _kept(scenario: Scenario, result: Result, store: Store | None) -> Result:
    if store is not None:
        store.keep(scenario, result)
    return result
