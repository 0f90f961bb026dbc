"""One ``--target METRIC<=VALUE``: a metric of a run, and the bound that it must keep."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from moesim.analysis.metrics import METRICS
from moesim.analysis.record import Record
from moesim.analysis.result_file import Metrics
from moesim.errors import SpecError
from moesim.spec.base import suggest
from moesim.units import format_bytes, format_count, format_seconds, parse_bytes, parse_seconds
from traces.timeline import PHASES

_TARGET: Final = re.compile(r"\s*([\w.]+)\s*(<=|>=|<|>)\s*(.+?)\s*", re.ASCII)
_KEEPS: Final[Mapping[str, Callable[[float, float], bool]]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}


@dataclass(frozen=True)
class Target:
    """A bound on a metric.

    Attributes:
        metric: its path in ``metrics`` of a result, such as ``step_time_s.p99``.
        value: in SI.
    """

    metric: str
    sign: str
    value: float
    text: str

    @classmethod
    def parse(cls, text: str) -> Target:
        """From ``METRIC<=VALUE``, with ``<=``, ``>=``, ``<`` or ``>``; times and sizes with a unit or in SI.

        >>> Target.parse("step_time_s.p99 <= 50ms")
        Target(metric='step_time_s.p99', sign='<=', value=0.05, text='step_time_s.p99<=50ms')
        >>> Target.parse("dropped<1%").value, Target.parse("gpu_memory_bytes.max<=70 GiB").value
        (0.01, 75161927680)

        Raises:
            SpecError: another form, a metric that no result has, or a value that is none of it.
        """
        found = _TARGET.fullmatch(text)
        if found is None:
            rule = "must read METRIC<=VALUE, such as step_time_s.p99<=50ms; operators: <=, >=, < and >"
            raise SpecError(rule, file="--target", got=text)
        metric, sign, bound = found.groups()
        others = {each.key for each in METRICS} - Metrics.model_fields.keys()
        known = sorted(_paths(Metrics) | others)
        if metric not in known:
            rule = f"no such metric; {suggest(metric, known)}known: {', '.join(known)}"
            raise SpecError(rule, file="--target", got=metric)
        try:
            value = _value(metric, bound)
        except SpecError as error:
            error.file, error.field = "--target", metric
            raise
        return cls(metric, sign, value, f"{metric}{sign}{bound}")

    def number(self, metrics: Metrics) -> float | None:
        """The metric of a run; None where the run has none."""
        value: Any = metrics
        for part in self.metric.split("."):
            value = value.get(part) if isinstance(value, dict) else getattr(value, part, None)
        return value if isinstance(value, int | float) else None

    def met(self, metrics: Metrics) -> bool:
        """Whether a run keeps the bound; one without the metric does not."""
        number = self.number(metrics)
        return number is not None and _KEEPS[self.sign](number, self.value)

    def missed_by(self, metrics: Metrics) -> float:
        """How far a run is beyond the bound, as a part of it: 0 where it keeps it.

        A bound of 0 is missed by the metric itself.
        """
        number = self.number(metrics)
        if number is None:
            return math.inf
        if self.met(metrics):
            return 0.0
        return abs(number - self.value) / (abs(self.value) or 1.0)

    def show(self, metrics: Metrics) -> str:
        """The metric of a run as a reader sees it."""
        number = self.number(metrics)
        if number is None:
            return "none"
        unit = _unit(self.metric)
        if unit == "s":
            return format_seconds(number)
        if unit == "B":
            return format_bytes(number)
        return format_count(number) if abs(number) >= 1000 else f"{number:.3g}"


def missed_by(targets: tuple[Target, ...], metrics: Metrics) -> float:
    """By how much a run misses the target that it misses most; 0 where it meets all."""
    return max((target.missed_by(metrics) for target in targets), default=0.0)


def _paths(record: type[Record], above: str = "") -> set[str]:
    """The paths of all numbers of a record."""
    found: set[str] = set()
    for name, field in record.model_fields.items():
        inner = next((each for each in _types(field.annotation) if issubclass(each, Record)), None)
        if inner is not None:
            found |= _paths(inner, f"{above}{name}.")
        elif dict in _types(field.annotation):
            found |= {f"{above}{name}.{phase}" for phase in PHASES}
        elif list not in _types(field.annotation):
            found.add(f"{above}{name}")
    return found


def _types(annotation: Any) -> Iterator[type]:
    """The classes in an annotation, optional or annotated or not."""
    origin = getattr(annotation, "__origin__", None)
    if isinstance(annotation, type) and origin is None:
        yield annotation
    elif origin in (dict, list):
        yield origin
    else:
        for part in getattr(annotation, "__args__", ()):
            yield from _types(part)


def _unit(metric: str) -> str:
    """Of a metric, by its name."""
    first, *_ = metric.split(".")
    last = metric.rsplit(".", 1)[-1]
    if any(part.endswith("_s") and "_per_s" not in part for part in (first, last)):
        return "s"
    return "B" if "bytes" in (*first.split("_"), last) and first != "straggler_ratio" else ""


def _value(metric: str, bound: str) -> float:
    """A bound in SI: a plain number is, for every metric."""
    try:
        value = float(bound)
    except ValueError:
        unit = _unit(metric)
        if unit:
            return parse_seconds(bound) if unit == "s" else parse_bytes(bound)
        try:
            value = float(bound.removesuffix("%")) / 100 if bound.endswith("%") else math.nan
        except ValueError:
            value = math.nan
    if not math.isfinite(value):
        raise SpecError("must be a number, or per cent such as 1%", got=bound) from None
    return value
