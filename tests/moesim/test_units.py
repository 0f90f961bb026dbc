"""Quantities with units: hand-worked values, refusals, and the way back through text."""

from __future__ import annotations

import math

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import SpecError, UnitError
from moesim.spec.base import Strict, validate
from moesim.units import (
    Bytes,
    BytesPerSecond,
    FlopPerSecond,
    Seconds,
    format_bytes,
    format_rate,
    format_seconds,
    parse_bandwidth,
    parse_bytes,
    parse_flops,
    parse_seconds,
)
from tests.tolerance import rounding


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("80 GiB", 80 * 2**30),
        ("141GB", 141e9),
        ("1.5 KiB", 1536),
        (" 81559  MiB ", 81559 * 2**20),
        (7, 7),
        ("1e3 B", 1000),
    ],
)
def test_sizes_are_bytes(text: object, expected: float) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("450 GB/s", 450e9),
        ("400 Gb/s", 50e9),
        ("400 Gbit/s", 50e9),
        ("400 Gbps", 50e9),
        ("3.35 TB/s", 3.35e12),
        (2.5, 2.5),
    ],
)
def test_bandwidths_are_bytes_per_second_and_bits_are_eighths(text: object, expected: float) -> None:
    assert parse_bandwidth(text) == pytest.approx(expected, rel=rounding(4))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2 us", 2e-6), ("2 µs", 2e-6), ("2 μs", 2e-6), ("1.5ms", 1.5e-3), ("2 min", 120.0), (".5 s", 0.5)],
)
def test_times_are_seconds(text: object, expected: float) -> None:
    assert parse_seconds(text) == pytest.approx(expected, rel=rounding(4))


def test_speeds_are_flop_per_second() -> None:
    assert parse_flops("989 TFLOPS") == parse_flops("989 TFLOP/s") == parse_flops(989e12) == 989e12


@pytest.mark.parametrize(
    "wrong",
    [
        "80",
        "80 Gib",
        "80 GB/s",
        "GiB",
        "",
        "eighty GiB",
        "80 GiB GiB",
        "nan GB",
        "1e999 GB",
        None,
        True,
        [80],
        10**400,
        math.inf,
        "8_0 GB",
        "٣ GB",
    ],
)
def test_a_wrong_size_is_refused(wrong: object) -> None:
    with pytest.raises(UnitError):
        parse_bytes(wrong)


def test_the_message_shows_how_to_write_it() -> None:
    with pytest.raises(
        UnitError, match=r"'Gb' is not a unit of a size; write it like '80 GiB' \(got '4 Gb'\)"
    ):
        parse_bytes("4 Gb")


class _Quantities(Strict):
    size: Bytes = 1
    bandwidth: BytesPerSecond = 1.0
    time: Seconds = 0.0
    speed: FlopPerSecond = 1.0


def test_fields_parse_and_keep_si() -> None:
    parsed = validate(
        _Quantities, {"size": "1 KiB", "bandwidth": "8 Gb/s", "time": "3 ms", "speed": "1 GFLOPS"}
    )
    assert parsed == _Quantities(size=1024, bandwidth=1e9, time=3e-3, speed=1e9)
    assert _Quantities.model_validate(parsed.model_dump(mode="json")) == parsed


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": "0 B"}, "size: must be greater than 0"),
        ({"bandwidth": "-1 GB/s"}, "bandwidth: must be at least 1"),
        ({"time": "-1 s"}, "time: must be at least 0"),
        ({"speed": "3 GB/s"}, "speed: 'GB/s' is not a unit of a speed"),
        ({"time": float("nan")}, "time: must be finite"),
    ],
)
def test_fields_refuse_what_cannot_be(fields: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        validate(_Quantities, fields)
    assert str(caught.value).startswith(message)


def test_zero_latency_is_allowed() -> None:
    assert validate(_Quantities, {"time": 0}).time == 0.0


def test_pydantic_itself_sees_an_ordinary_validation_error() -> None:
    with pytest.raises(pydantic.ValidationError):
        _Quantities.model_validate({"size": "1 parsec"})


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1.2e-4, "120 µs"),
        (9.996e-4, "1.00 ms"),
        (1e-6, "1.00 µs"),
        (3.14159e-7, "314 ns"),
        (2e-12, "0.00200 ns"),
        (12.34, "12.3 s"),
        (4000, "4000 s"),
        (0, "0 s"),
        (-1.5e-3, "-1.50 ms"),
    ],
)
def test_times_are_shown_with_three_digits(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_sizes_and_rates_are_shown_with_their_customary_prefixes() -> None:
    assert format_bytes(80 * 2**30) == "80.0 GiB"
    assert format_bytes(1023) == "1023 B"
    assert format_rate(4.5e11) == "450 GB/s"
    assert format_rate(1.979e15, "FLOP/s") == "1.98 PFLOP/s"


@given(st.floats(1e-9, 1e5))
def test_a_shown_time_reads_back_within_its_digits(seconds: float) -> None:
    assert parse_seconds(format_seconds(seconds)) == pytest.approx(seconds, rel=6e-3)


@given(st.floats(1.0, 1e18))
def test_a_shown_size_and_rate_read_back_within_their_digits(value: float) -> None:
    assert parse_bytes(format_bytes(value)) == pytest.approx(value, rel=6e-3, abs=0.5)
    assert parse_bandwidth(format_rate(value)) == pytest.approx(value, rel=6e-3)
