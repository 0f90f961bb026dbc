"""The page and the tables of a validation: whole, with the numbers of their inputs."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from moesim.analysis.validation import compare
from moesim.report import validation_page as html
from moesim.report import validation_table
from moesim.report.validation_figures import EDGES, both_timelines, error_map, scatter
from moesim.units import format_share
from tests.moesim.report_example import on_plain
from tests.moesim.test_report_page import Structure
from tests.moesim.validation_example import example_validation
from traces.timeline import PHASES, Timeline

answer, remarks = on_plain(validation_table.answer), on_plain(validation_table.remarks)
validation_page = on_plain(html.validation_page)
validation_tables = on_plain(validation_table.validation_tables)

Example = tuple[dict[str, Any], Timeline, Timeline]


@pytest.fixture(scope="module")
def example() -> Example:
    return example_validation()


def printed(result: dict[str, Any]) -> str:
    console = Console(width=80, record=True, file=None, force_terminal=False)
    with console.capture() as capture:
        for part in validation_tables(result):
            console.print(part)
    return capture.get()


def test_everything_in_order_and_nothing_from_outside(example: Example) -> None:
    page = validation_page(*example)
    structure = Structure(page)
    assert re.findall(r"<h2>(.*?)</h2>", page) == [
        "How far off: phases, layers and steps",
        "Rank by rank: expert time of a layer",
        "Layer by layer",
        "A step as it ran and as it was simulated",
        "Mind",
        "Where the numbers come from",
    ]
    assert not structure.named("script")
    assert "url(" not in page
    assert validation_page(*example_validation()) == page


def test_data_cannot_become_markup(example: Example) -> None:
    evil = "\"'><script>alert(1)</script>\x00&"
    result = example[0] | {
        "scenario": example[0]["scenario"] | {"name": evil, "model": {"name": evil}},
        "notes": [evil],
        "provenance": {evil: evil},
    }
    page = validation_page(result, *example[1:])
    assert not Structure(page).named("script")
    assert "\x00" not in page


def test_the_terminal_shows_errors_of_phases_and_ranks(example: Example) -> None:
    result = example[0]
    text = printed(result)
    assert max(len(line) for line in text.splitlines()) <= 80
    for quantity in ("step", "layer", "experts", "dispatch", "combine"):
        (line,) = (line for line in text.splitlines() if line.startswith(quantity + " "))
        assert format_share(result["error"][quantity]["p95"]) in line
    assert len(re.findall(r"(?m)^[01]  +\d", text)) == 2
    words = " ".join(text.split())
    assert f"straggler ratio is {result['straggler_ratio']['measured']:.3f} measured" in words
    assert "2 ranks share 1 core." in words


def test_noise_and_wrong_counts_are_said_first(example: Example) -> None:
    noisy = example[0] | {"verdict": "noisy", "counts_equal": False}
    assert answer(noisy).startswith("The measurement is noisy")
    assert any("are NOT those of the simulation" in line for line in remarks(noisy))


def test_each_error_is_compared_with_its_noise(example: Example) -> None:
    def said(errors: dict[str, float], noise: float) -> str:
        spreads = {name: {"median": error, "p95": 0.5, "bias": 0.0} for name, error in errors.items()}
        noises = {name: {"median": noise, "p95": 0.5} for name in errors}
        others = {name: None for name in example[0]["error"] if name not in errors}
        found = answer(example[0] | {"verdict": "noisy", "error": spreads | others, "noise": noises})
        return found.partition(" A rank's")[0]

    assert said({"experts": 0.33, "layer": 0.47, "dispatch": 0.01}, 0.022) == (
        "The measurement is noisy, yet errors are larger than its noise: experts (33 % against 2.2 %), layer "
        "(47 % against 2.2 %); of dispatch they cannot be told from it."
    )
    assert said({"experts": 0.02, "layer": 0.01}, 0.022) == (
        "The measurement is noisy, so that errors cannot be told from noise."
    )
    once = answer(example[0] | {"verdict": "noisy", "noise": {}})
    assert once.startswith("How noisy the measurement is cannot be told from one repeat.")


def test_what_was_not_measured_is_said(example: Example) -> None:
    serial = example[0] | {"counts_equal": None, "simulated_phases": ["dispatch", "combine"]}
    lines = remarks(serial)
    assert "Nothing was sent, so no counts were compared." in lines
    assert any("dispatch and combine and the waiting are simulated on both sides" in line for line in lines)


def test_the_error_map_holds_every_error(example: Example) -> None:
    found = compare(*example[1:])
    figure = error_map(found)
    cells = re.findall(r'class="heat-(\d)"><title>layer (\d+), (\w+), rank (\d+): (-?[\d.]+) %', figure)
    assert len(cells) == 3 * 6 * 2
    for class_, layer, phase, rank, said in cells:
        error = float(np.median(found.error(phase)[:, int(layer), int(rank)]))
        assert float(said) == pytest.approx(100 * error, abs=0.51)
        assert int(class_) == sum(error >= edge for edge in EDGES)
    assert len(re.findall(r"<title>layer \d+, layer: ", figure)) == 6


def test_cells_without_an_error_have_a_colour_of_their_own(example: Example) -> None:
    _, measured, simulated = example
    none = (measured.phase_N == PHASES.index("dispatch")) & (measured.layer_N == 2)
    start_s_N = np.where(none, measured.end_s_N, measured.start_s_N)
    silent = dataclasses.replace(measured, start_s_N=start_s_N)
    figure = error_map(compare(silent, simulated))
    assert len(re.findall(r'class="bar"><title>layer 2, dispatch, rank \d: took no time', figure)) == 2


def test_both_timelines_show_the_same_layers_of_the_same_step(example: Example) -> None:
    _, measured, simulated = example
    found = compare(measured, simulated)
    figure = both_timelines(found, measured, simulated)
    step = int(np.abs(found.measured["step"] - found.measured["step"].mean()).argmin())
    longest = int(found.measured["layer"][step].argmax())
    brackets = [int(layer) for layer in re.findall(r">layer (\d+), [\d.]+ [mµ]?s<", figure)]
    assert brackets[:3] == brackets[3:]
    assert longest in brackets
    spans = re.findall(r'class="span (\w+)"><title>GPU (\d), layer (\d+)', figure)
    for phase in ("experts", "dispatch", "combine"):
        drawn = [(gpu, layer) for name, gpu, layer in spans if name == phase]
        assert sorted(drawn) == sorted(2 * [(str(g), str(layer)) for g in (0, 1) for layer in brackets[:3]])


def test_points_stand_where_their_times_are(example: Example) -> None:
    found = compare(*example[1:])
    points = re.findall(
        r'<rect x="([\d.]+)" y="([\d.]+)" width="4" height="4" class="experts"><title>'
        r"step (\d+), layer (\d+), rank (\d+)",
        scatter(found),
    )
    assert len(points) == 2 * 6 * 2
    x_X, measured_X, y_X, simulated_X = [], [], [], []
    for x, y, *cell in points:
        index = tuple(int(each) for each in cell)
        x_X.append(float(x))
        y_X.append(float(y))
        measured_X.append(float(found.measured["experts"][index]))
        simulated_X.append(float(found.simulated["experts"][index]))
    slope, _ = np.polyfit(measured_X, x_X, 1)
    assert np.corrcoef(measured_X, x_X)[0, 1] == pytest.approx(1, abs=1e-6)
    # One scale for both axes, and up is down in SVG.
    assert np.polyfit(simulated_X, y_X, 1)[0] == pytest.approx(-slope, rel=1e-3)


def test_many_ranks_are_thinned_out() -> None:
    result, measured, simulated = example_validation(layers=3, ranks=40, steps=20, repeats=2)
    found = compare(measured, simulated)
    assert len(re.findall(r">rank \d+<", both_timelines(found, measured, simulated))) == 2 * 32
    assert len(re.findall(r'class="experts"><title>', scatter(found))) == 1500
    Structure(validation_page(result, measured, simulated))
