"""Tolerances: wide enough for every order of adding up, too narrow for a wrong result, never a figure."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tolerance import rounding

LEAST = 1e-6
"""What is smaller must come from ``rounding``."""
COMPARE = {"approx", "allclose", "assert_allclose", "assert_close", "isclose"}
TOLERANCES = {"abs", "rel", "atol", "rtol"}


@given(seed=st.integers(0, 2**32), terms=st.integers(2, 300), dtype=st.sampled_from(["float16", "float32"]))
def test_any_order_of_adding_up_is_within_and_a_wrong_sum_is_not(seed: int, terms: int, dtype: str) -> None:
    rng = np.random.default_rng(seed)
    a_N, b_N = (rng.normal(size=terms).astype(dtype) for _ in range(2))
    products_N = a_N.astype(np.float64) * b_N
    bound = rounding(terms, dtype) * np.abs(products_N).sum()
    for order_N in (np.arange(terms), rng.permutation(terms), np.argsort(products_N)):
        found = np.zeros((), dtype)
        for n in order_N:
            found = found + a_N[n] * b_N[n]
        assert abs(float(found) - products_N.sum()) <= bound
    # The largest product left out, or two factors that went astray.
    largest = int(np.abs(products_N).argmax())
    wrong = (products_N.sum() - products_N[largest], float(np.roll(a_N, 1).astype(np.float64) @ b_N), np.nan)
    if dtype == "float32":
        assert not any(abs(each - products_N.sum()) <= bound for each in wrong)


def figures(source: str) -> list[str]:
    """Tolerances of comparisons that are written as figures, or left to torch."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        given = {word.arg: word.value for word in node.keywords if name in COMPARE and word.arg in TOLERANCES}
        if name == "assert_close" and "atol" not in given:
            found.append(ast.unparse(node))
        for value in given.values():
            numbers = [each.value for each in ast.walk(value) if isinstance(each, ast.Constant)]
            if any(isinstance(number, float) and 0 < number < LEAST for number in numbers):
                found.append(ast.unparse(node))
    return found


def test_no_tolerance_is_a_figure() -> None:
    paths = sorted(Path(__file__).parent.rglob("*.py"))
    assert not {path.name: found for path in paths if (found := figures(path.read_text("utf-8")))}


@pytest.mark.parametrize("source", ["assert x == approx(1, rel=1e-12)", "np.isclose(x, y, atol=2e-9 * z)"])
def test_a_figure_is_found(source: str) -> None:
    assert len(figures(source)) == 1
    assert not figures(source.replace("e-12", "e-3").replace("e-9", "e-3"))
