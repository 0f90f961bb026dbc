"""The page: whole HTML, in the promised order, escaped, and with the numbers of its inputs."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.analysis.culprit import Straggler
from moesim.analysis.layer_loads import load_table, slot_bound
from moesim.errors import TimelineError
from moesim.report import breakdown as breakdowns
from moesim.report import comparison_table, html, run_table
from moesim.report.gantt import gantt
from moesim.report.heatmap import EDGES, heatmap
from moesim.report.markup import join, tag
from moesim.report.svg import ticks
from tests.moesim.report_example import example_comparison, example_run, on_plain
from traces.timeline import PHASES, STREAMS, Timeline, WorkTable

run_page, whatif_page = on_plain(html.run_page), on_plain(html.whatif_page)
breakdown, ranked = on_plain(breakdowns.breakdown), on_plain(comparison_table.ranked)
attribution_table, phase_table = on_plain(run_table.attribution_table), on_plain(run_table.phase_table)

Run = tuple[dict[str, Any], Timeline, WorkTable]

VOID = {"meta", "link", "input"}


class Structure(HTMLParser):
    """Checks that every element is closed, and collects elements, attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((name, dict(attributes)))
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, text: str) -> None:
        self.words.append(text)

    def named(self, name: str, class_: str | None = None) -> list[dict[str, str | None]]:
        found = [attributes for element, attributes in self.elements if element == name]
        return [a for a in found if class_ is None or class_ in (a.get("class") or "").split()]


def stragglers_of(result: dict[str, Any]) -> list[Straggler]:
    return [Straggler.model_validate(row) for row in result["stragglers"]]


@pytest.fixture(scope="module")
def run() -> Run:
    return example_run()


def test_everything_in_order_and_nothing_from_outside(run: Run) -> None:
    page = run_page(*run, example_comparison(run[0]))
    structure = Structure(page)
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert headings == [
        "What would help",
        "Who gets the work: assignments by layer and GPU",
        "Where the time goes",
        "The stragglers",
        "One step as it runs",
        "What if",
        "Where the numbers come from",
    ]
    assert page.index("<h1>") < page.index('class="answer"') < page.index("<h2>")
    assert not structure.named("script")
    loads = [v for _, attrs in structure.elements for k, v in attrs.items() if k in ("src", "href", "data")]
    assert loads == ["data:,"]
    assert "url(" not in page
    assert "@import" not in page


def test_equal_inputs_give_equal_bytes(run: Run) -> None:
    comparison = example_comparison(run[0])
    assert run_page(*run, comparison) == run_page(*example_run(), comparison)
    later = run[0] | {"provenance": run[0]["provenance"] | {"wall_s": 99.0}}
    assert run_page(later, *run[1:]) == run_page(*run)


def test_data_cannot_become_markup(run: Run) -> None:
    evil = "\"'><script>alert(1)</script>\x00&"
    result = run[0] | {
        "scenario": run[0]["scenario"] | {"name": evil, "model": {"name": evil}, evil: {evil: [evil]}},
        "trace": run[0]["trace"] | {"name": evil, "origin": evil},
        "provenance": {evil: evil, "command": evil},
    }
    comparison = example_comparison(result)
    comparison["points"][0]["vary"] = {evil: evil}
    for page in (run_page(result, *run[1:], comparison), whatif_page(comparison)):
        structure = Structure(page)
        assert not structure.named("script")
        assert "\x00" not in page
        assert any("<script>alert(1)</script>" in text for text in structure.words)


def test_markup_is_not_escaped_twice() -> None:
    assert tag("p", tag("b", "a & b"), " < c") == "<p><b>a &amp; b</b> &lt; c</p>"
    assert join(["<", tag("i")]) == "&lt;<i></i>"


def test_the_heat_map_holds_every_count(run: Run) -> None:
    _, timeline, work = run
    layers, gpus, steps = 6, 8, 3
    counted: dict[tuple[int, int], int] = {}
    for row in np.flatnonzero(timeline.phase_N == PHASES.index("experts")).tolist():
        key = int(timeline.layer_N[row]), int(timeline.rank_N[row])
        counted[key] = counted.get(key, 0) + int(timeline.assignments_N[row])
    figure = heatmap(timeline, work, gpus, 8, steps)
    cells = re.findall(
        r'class="heat-(\d)"><title>layer (\d+), GPU (\d+): ([\d.]+) × the mean, ([\d.e+]+) assign', figure
    )
    assert len(cells) == layers * gpus
    for class_, layer, gpu, ratio, per_step in cells:
        own = counted[int(layer), int(gpu)]
        mean = sum(counted[int(layer), other] for other in range(gpus)) / gpus
        assert float(ratio) == pytest.approx(own / mean, abs=0.00501)
        assert float(per_step) == pytest.approx(own / steps, rel=1e-3)
        assert int(class_) == sum(own / mean >= edge for edge in EDGES)


def test_the_bound_is_the_hottest_slot(run: Run) -> None:
    _, timeline, work = run
    layers_L, load_LG = load_table(timeline, 8)
    for layer, mean, bound in zip(
        layers_L, load_LG.mean(1), slot_bound(work, layers_L, load_LG), strict=True
    ):
        of_slot: dict[int, int] = {}
        for row in np.flatnonzero(work.layer_N == layer).tolist():
            slot = int(work.destination_N[row])
            of_slot[slot] = of_slot.get(slot, 0) + int(work.count_N[row])
        assert bound == pytest.approx(max(1.0, max(of_slot.values()) / mean))
    assert (slot_bound(work, layers_L, load_LG) <= load_LG.max(1) / load_LG.mean(1) + 1e-12).all()


def test_many_gpus_share_columns() -> None:
    result, timeline, work = example_run(layers=2, gpus=200, steps=1)
    figure = heatmap(timeline, work, 200, 8, 1)
    assert len(re.findall('class="heat-[0-9]"><title>', figure)) == 2 * 100
    assert "GPUs 198 to 199" in figure
    assert "the most loaded of 2 neighbouring GPUs" in figure
    drawn = set(re.findall(r">GPU (\d+)<", gantt(timeline, stragglers_of(result))))
    assert len(drawn) == 32
    assert {str(row["rank"]) for row in result["stragglers"]} <= drawn


def test_the_timeline_window_lies_around_the_worst_layer() -> None:
    result, timeline, _ = example_run(layers=9)
    worst = max(result["stragglers"], key=lambda row: row["lost_s"])
    figure = gantt(timeline, stragglers_of(result))
    shown = [int(layer) for layer in re.findall(r">layer (\d+), [\d.]+ [mµ]s<", figure)]
    assert len(shown) == 3
    assert worst["layer"] in shown
    assert f'class="tick small end strong">GPU {worst["rank"]}<' in figure
    spans = re.findall(r'class="span (\w+)"><title>GPU \d+, layer (\d+)', figure)
    assert {int(layer) for _, layer in spans} == set(shown)
    assert {phase for phase, _ in spans} <= set(PHASES)


def test_overlapping_streams_get_lanes_of_their_own(run: Run) -> None:
    result, timeline, _ = run
    assert "upper half" not in gantt(timeline, stragglers_of(result))
    experts = np.flatnonzero(timeline.phase_N == PHASES.index("experts"))
    stream_N = timeline.stream_N.copy()
    start_s_N = timeline.start_s_N.copy()
    stream_N[experts] = 1 - STREAMS.index("communication")
    start_s_N[experts] -= 20e-6
    overlapping = dataclasses.replace(timeline, stream_N=stream_N, start_s_N=start_s_N)
    assert "upper half" in gantt(overlapping, stragglers_of(result))


def test_stacked_bars_keep_their_proportions(run: Run) -> None:
    result = run[0] | {
        "attribution": {
            **{"hardware_s": -0.001, "imbalance_s": 0.002, "network_s": 0.003},
            **{"overhead_s": 0.0, "ideal_s": 0.004},
        }
    }
    figure = breakdown(result)
    boxes = {
        class_: (float(x), float(width))
        for x, width, class_ in re.findall(
            r'<rect x="([\d.]+)" y="\d+" width="([\d.]+)" height="26" class="(\w+)"', figure
        )
        if class_ in ("hardware", "imbalance", "network", "overhead", "ideal")
    }
    assert "overhead" not in boxes
    scale = (boxes["ideal"][1] + 0.5) / 0.004
    for name, seconds in (("hardware", 0.001), ("imbalance", 0.002), ("network", 0.003)):
        assert boxes[name][1] + 0.5 == pytest.approx(seconds * scale, abs=0.02)
    # What is below zero lies left of it, the rest follows to the right.
    assert boxes["hardware"][0] + boxes["hardware"][1] + 0.5 == pytest.approx(boxes["imbalance"][0], abs=0.02)
    assert boxes["imbalance"][0] < boxes["network"][0] < boxes["ideal"][0]


@given(st.floats(0, 1e6), st.floats(1e-9, 1e6), st.integers(2, 12))
def test_ticks_are_round_few_and_inside(low: float, length: float, most: int) -> None:
    high = low + length
    found = ticks(low, high, most)
    assert len(found) <= most + 1
    slack = 1e-6 * length + 1e-11
    assert all(low - slack <= value <= high + slack for value in found)


def test_points_stand_fastest_first(run: Run) -> None:
    comparison = example_comparison(run[0])
    speedups = [point.speedup for point in ranked(comparison)]
    assert speedups == sorted(speedups, reverse=True)
    table = Structure(whatif_page(comparison))
    assert len(table.named("tr", "best")) == 1
    assert len(table.named("tr", "base")) == 1


def test_a_point_that_is_the_scenario_itself_stands_once(run: Run) -> None:
    comparison = example_comparison(run[0])
    rows = len(Structure(whatif_page(comparison)).named("tr"))
    comparison["points"][2]["as_asked"] = True
    page = whatif_page(comparison)
    assert len(Structure(page).named("tr")) == rows - 1
    assert "as asked: linear" in Structure(page).words
    assert "as asked: placement=linear, capacity_factor=2<" in page


def test_a_run_without_spans_or_stragglers_still_has_a_page(run: Run) -> None:
    result, timeline, work = run
    empty = timeline.select(np.zeros(0, int))
    none = WorkTable(**{name: column[:0] for name, column in vars(work).items()})
    page = run_page(result | {"stragglers": [], "bounds": {}}, empty, none)
    Structure(page)
    assert "The timeline is empty." in page
    assert "No layer has a straggler." in page


def test_several_policies_have_a_row_each(run: Run) -> None:
    result, timeline, work = run
    shares = {"kept": 0.75, "rerouted": 0.125, "dropped": 0.125, "added": 0.0}
    stages = [
        {"policy": "top_p", **shares, "gate_mass_lost": None},
        {"policy": "<drop>", **shares, "gate_mass_lost": 0.5},
    ]
    staged = result | {"metrics": result["metrics"] | {"stages": stages}}
    words = Structure(run_page(staged, timeline, work)).words
    first, second = words.index("top_p"), words.index("<drop>")
    assert words[first + 1 : first + 6] == ["75 %", "12 %", "12 %", "0 %", "–"]
    assert words[second + 5] == "50 %"
    assert "What the policies did" not in run_page(result, timeline, work)


def test_a_timeline_of_another_run_is_refused(run: Run) -> None:
    result, timeline, work = run
    other = dataclasses.replace(timeline, rank_N=timeline.rank_N + np.int32(1))
    with pytest.raises(TimelineError, match=r"rank: must be below 8, the GPUs of the scenario \(got 8\)"):
        run_page(result, other, work)
    deep = timeline.select(np.arange(3000) % len(timeline))
    deep = dataclasses.replace(deep, layer_N=np.arange(3000, dtype=np.int32))
    with pytest.raises(TimelineError, match="must name at most 2000 layers"):
        run_page(result, deep, work)


@pytest.mark.parametrize(
    ("overlap", "step"),
    [
        ("none", "2.00 ms"),
        ("shared_expert", "1.80 ms"),
        ("two_batch", "1.20 ms"),
        (["shared_expert", "two_batch"], "1.20 ms"),
    ],
)
def test_the_bound_of_a_step_leaves_out_what_overlap_hides(run: Run, overlap: Any, step: str) -> None:
    bounds = {"shared_expert": 2e-4, "experts": 1e-3, "dispatch": 3e-4, "combine": 5e-4}
    result = run[0] | {"bounds": bounds, "scenario": run[0]["scenario"] | {"overlap": overlap}}
    last = join([phase_table(result)]).rsplit("<tr", 1)[1]
    assert re.findall(r"([\d.]+ ms)<", last)[1] == step


@pytest.mark.parametrize(("homes_s", "rows"), [(None, 5), (0.0, 5), (4e-19, 5), (-1e-5, 6), (1e-5, 6)])
def test_what_rounding_leaves_is_no_imbalance(run: Run, homes_s: float | None, rows: int) -> None:
    table = join([attribution_table(run[0] | {"attribution": run[0]["attribution"] | {"homes_s": homes_s}})])
    assert table.count("<tr>") == 1 + rows


def test_the_page_says_what_of_the_profile_is_assumed(run: Run) -> None:
    result, timeline, work = run
    words = Structure(run_page(result, timeline, work)).words
    assert "assumed" in words
    assert "fitted to <a table>" in words
    silent = result | {"scenario": result["scenario"] | {"profile": {"name": "mine", "sources": {}}}}
    assert "of the profile" not in Structure(run_page(silent, timeline, work)).words
