"""What pages and tables take from the resolved scenario and the trace that stand in every result."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from moesim.analysis.record import Checked, Count, Fraction, Record, Size


class _Named(Record):
    name: str


class _Cluster(Record):
    gpu: _Named
    nodes: Size
    gpus_per_node: Size


class _Parallelism(Record):
    ep: Size
    tp: Size


class _Workload(Record):
    phase: str
    tokens_per_gpu: Any
    steps: Count


class _Policy(Record):
    policy: str


class _Dispatch(Record):
    mode: str


class _Rebalance(Record):
    every_steps: Count | None = None
    solver: str = ""


class _Profile(Record):
    sources: dict[str, str] = Field(default_factory=dict)


class _Scenario(Record):
    name: str
    model: _Named
    cluster: _Cluster
    parallelism: _Parallelism
    workload: _Workload
    placement: Any
    routing: _Policy | list[_Policy]
    dispatch: _Dispatch
    overlap: str | list[str] | None = None
    rebalance: _Rebalance | None = None
    profile: _Profile = _Profile()


ScenarioFacts = Annotated[dict[str, Any], Checked(_Scenario)]
"""A resolved scenario as plain values, checked as far as pages and tables rely on it."""


class TraceFacts(Record):
    """What the reader should know of the routing that was replayed."""

    name: str
    origin: str
    tokens: Count
    requests: Count
    skew: Fraction
    generated: bool
