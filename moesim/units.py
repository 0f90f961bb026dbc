"""Quantities: text with units at the edge, SI inside.

Sizes are bytes, rates bytes per second, times seconds, speeds FLOP per second. A file or an option may
write ``80 GiB``, ``400 Gb/s``, ``2 us`` or ``989 TFLOPS``; a plain number is taken as SI already.

>>> parse_bytes("80 GiB"), parse_bandwidth("400 Gb/s"), parse_seconds("2 us"), parse_flops("989 TFLOPS")
(85899345920, 50000000000.0, 2e-06, 989000000000000.0)
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from moesim.errors import UnitError

_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(.*)", re.ASCII | re.DOTALL)

_DECIMAL = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}

_BYTES = {prefix + "B": scale for prefix, scale in (_DECIMAL | _BINARY).items()}
_BANDWIDTH = {f"{unit}/s": scale for unit, scale in _BYTES.items()} | {
    # Network equipment is sold in bits.
    prefix + bits: scale / 8
    for prefix, scale in _DECIMAL.items()
    for bits in ("b/s", "bit/s", "bps")
}
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9, "min": 60.0, "h": 3600.0}
_FLOPS = {prefix + unit: scale for prefix, scale in _DECIMAL.items() for unit in ("FLOPS", "FLOP/s")}


def parse_bytes(value: Any) -> int:
    """Bytes of ``value``, to the nearest whole byte: ``"80 GiB"``, ``"141 GB"``, ``85899345920``."""
    return round(_parse(value, _BYTES, "a size", "80 GiB"))


def parse_bandwidth(value: Any) -> float:
    """Bytes per second of ``value``: ``"450 GB/s"``, ``"400 Gb/s"`` (bits), ``4.5e11``."""
    return _parse(value, _BANDWIDTH, "a bandwidth", "450 GB/s")


def parse_seconds(value: Any) -> float:
    """Seconds of ``value``: ``"2 us"``, ``"1.5 ms"``, ``2e-6``."""
    return _parse(value, _SECONDS, "a time", "2 us")


def parse_flops(value: Any) -> float:
    """FLOP per second of ``value``: ``"989 TFLOPS"``, ``"67 TFLOP/s"``, ``9.89e14``."""
    return _parse(value, _FLOPS, "a speed", "989 TFLOPS")


def _parse(value: Any, units: Mapping[str, float], thing: str, example: str) -> float:
    """``value`` in SI.

    Raises:
        UnitError: neither a number nor text; not finite; a unit that is missing, unknown, or of
            another dimension.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise UnitError(f"must be {thing} such as '{example}', or a number in SI", got=value)
    number, scale = value, 1.0
    if isinstance(value, str):
        match = _QUANTITY.fullmatch(value.strip())
        if match is None:
            raise UnitError(f"must be {thing} such as '{example}'", got=value)
        unit = match[2]
        if not unit:
            raise UnitError(f"needs a unit, such as '{example}'", got=value)
        if unit not in units:
            raise UnitError(f"'{unit[:20]}' is not a unit of {thing}; write it like '{example}'", got=value)
        number, scale = match[1], units[unit]
    try:
        result = float(number) * scale
    except OverflowError:  # an integer beyond the range of floats
        result = math.inf
    if not math.isfinite(result):
        raise UnitError("must be finite", got=value)
    return result


def _edge(parse: Callable[[Any], float]) -> BeforeValidator:
    """A pydantic validator from a parser; pydantic passes on only its own errors and ValueErrors."""

    def validate(value: Any) -> float:
        try:
            return parse(value)
        except UnitError as error:
            raise PydanticCustomError("unit", "{rule}", {"rule": error.rule}) from error

    return BeforeValidator(validate)


# Far beyond any hardware, and near enough that no time, product or sum of them leaves the numbers.
Bytes = Annotated[int, _edge(parse_bytes), Field(gt=0, le=1 << 60)]
"""A size in bytes, above zero."""

BytesPerSecond = Annotated[float, _edge(parse_bandwidth), Field(ge=1, le=1e18)]
"""A bandwidth in bytes per second, from one."""

Seconds = Annotated[float, _edge(parse_seconds), Field(ge=0, le=1e6)]
"""A time in seconds; zero is allowed (a latency that one wants to neglect)."""

FlopPerSecond = Annotated[float, _edge(parse_flops), Field(ge=1, le=1e24)]
"""A speed in FLOP per second, from one."""


UNKNOWN = "–"
"""What stands for a quantity that is not known, or that there is none of."""

# What adding floating-point numbers leaves of 0; one assignment of a run is more.
_ROUNDING = 1e-12


def format_share(share: float | None, decimals: int | None = None, gap: str = " ") -> str:
    """A fraction as per cent; what is not 0 never looks like 0 unless ``decimals`` are fixed.

    >>> format_share(0.314), format_share(0.0123), format_share(-0.0004), format_share(0.0)
    ('31 %', '1.2 %', '-0.04 %', '0 %')
    >>> format_share(2e-5), format_share(0.125, 1), format_share(0.125, 1, gap=""), format_share(None)
    ('< 0.01 %', '12.5 %', '12.5%', '–')
    """
    if share is None:
        return UNKNOWN
    if decimals is None:
        if abs(share) < _ROUNDING:
            return "0 %"
        if abs(share) < 5e-5:
            return "< 0.01 %" if share > 0 else "> -0.01 %"
        decimals = 0 if abs(share) >= 0.0995 else 1 if abs(share) >= 0.0005 else 2
    return f"{100 * share:.{decimals}f}{gap}%"


def format_count(count: float | None) -> str:
    """A whole number, thousands apart.

    >>> format_count(1234567), format_count(0.6), format_count(None)
    ('1,234,567', '1', '–')
    """
    return UNKNOWN if count is None else f"{round(count):,}"


def format_number(value: float | None, decimals: int = 2) -> str:
    """A number without a unit: a ratio, an index.

    >>> format_number(1.309), format_number(0.5, 3), format_number(None)
    ('1.31', '0.500', '–')
    """
    return UNKNOWN if value is None else f"{value:.{decimals}f}"


def format_seconds(seconds: float | None) -> str:
    """Three significant digits and the unit that suits them.

    >>> format_seconds(1.2e-4), format_seconds(0.0312), format_seconds(-2.5), format_seconds(0)
    ('120 µs', '31.2 ms', '-2.50 s', '0 s')
    """
    if seconds is None:
        return UNKNOWN
    return _format(seconds, [(1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")], "s")


def format_range(ends: Sequence[float], show: Callable[[float], str]) -> str:
    """From one value to another, a unit that both have written once.

    >>> format_range([0.0281, 0.0352], format_seconds), format_range([0.0009, 0.002], format_seconds)
    ('28.1 to 35.2 ms', '900 µs to 2.00 ms')
    """
    low, high = map(show, ends)
    if low == high:
        return high
    unit = high.rpartition(" ")[2]
    return f"{low.removesuffix(f' {unit}')} to {high}"


def format_bytes(size: float) -> str:
    """Three significant digits and a binary unit, as memory is counted.

    >>> format_bytes(85899345920), format_bytes(1000)
    ('80.0 GiB', '1000 B')
    """
    return _format(size, [(scale, prefix + "B") for prefix, scale in reversed(_BINARY.items())], "B")


def format_rate(rate: float, unit: str = "B/s") -> str:
    """Three significant digits and a decimal prefix before ``unit``.

    >>> format_rate(4.5e11), format_rate(9.894e14, "FLOP/s"), format_rate(51234.0, "tokens/s")
    ('450 GB/s', '989 TFLOP/s', '51.2 ktokens/s')
    """
    prefixes = [(_DECIMAL[prefix], prefix + unit) for prefix in "EPTGMk"]
    return _format(rate, prefixes, unit)


def _format(value: float, scales: list[tuple[float, str]], plain: str) -> str:
    """``value`` in the first of ``scales`` (falling) that leaves at least 1 before the point."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g} {plain}"
    rounded = abs(float(f"{value:.3g}"))  # first: 999.9 µs is 1.00 ms, not 1000 µs
    # A hair below 1, since 1e-6 / 1e-6 need not be exactly 1 in floats.
    scale, unit = next(((s, u) for s, u in scales if rounded / s >= 1 - 1e-9), (1.0, plain))
    if plain == "s" and rounded < 1e-9:
        scale, unit = 1e-9, "ns"
    shown = value / scale
    if scale == 1.0 and float(shown).is_integer():
        return f"{shown:.0f} {unit}"
    digits = max(0, 2 - math.floor(math.log10(rounded / scale * (1 + 1e-9))))
    return f"{shown:.{min(digits, 6)}f} {unit}"
