"""Lines that no terminal can misread, and JSON that every reader takes."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from traces.base.errors import MoesimError
from traces.base.text import to_json, visible

ANY_TEXT = st.text(st.characters(exclude_categories=()))  # halves of surrogate pairs too
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(ANY_TEXT, inner),
    max_leaves=8,
)


@given(ANY_TEXT)
def test_what_is_visible_is_one_line_that_can_be_encoded(text: str) -> None:
    shown = visible(text)
    assert shown.isprintable()
    assert shown.encode("utf-8").decode("utf-8") == shown
    assert visible(shown) == shown
    assert "".join(c for c in text if c.isprintable()) == shown or not text.isprintable()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, µ × 专家", "plain, µ × 专家"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("a\u202eb\u2066", r"a\u202eb\u2066"),
        ("a\r\nb\tc\u2028", r"a\r\nb\tc\u2028"),
        ("\udcff", r"\udcff"),
    ],
)
def test_what_controls_show_as(text: str, shown: str) -> None:
    assert visible(text) == shown


def finite(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    return not isinstance(value, list) or all(map(finite, value))


@given(JSON)
def test_json_is_exact_and_ascii_or_refused(value: object) -> None:
    if not finite(value):
        with pytest.raises(MoesimError, match="beyond all numbers"):
            to_json(value)
        return
    text = to_json(value)
    assert text.isascii()
    assert text.isprintable()
    assert json.loads(text) == value


def test_the_place_of_what_is_not_finite_is_named() -> None:
    with pytest.raises(MoesimError, match=r"^a\.1\.b: came out beyond all numbers.*\(got inf\)$"):
        to_json({"a": [0, {"b": math.inf}]})
