"""Tables in the terminal: whole at 80 and 120 columns, plain where they are piped."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from moesim.report import comparison_table as comparisons
from moesim.report import console, html, notes
from moesim.report.markup import join
from tests.moesim.report_example import example_comparison, example_run, on_plain
from tests.moesim.test_report_page import Structure

run_tables, whatif_table = on_plain(console.run_tables), on_plain(console.whatif_table)
whatif_tables, whatif_page = on_plain(console.whatif_tables), on_plain(html.whatif_page)
comparison_table, comparison_notes = on_plain(comparisons.comparison_table), on_plain(notes.comparison_notes)


def printed(parts: list[Any], width: int) -> str:
    out = io.StringIO()
    terminal = Console(file=out, width=width)
    for part in parts:
        terminal.print(part)
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_nothing_is_cut_and_nothing_is_coloured(width: int) -> None:
    result = example_run(layers=58, gpus=32)[0]
    result["metrics"] |= {"dropped": 0.031, "rerouted": 0.01, "gate_mass_lost": 0.02}
    text = printed([*run_tables(result), whatif_table(example_comparison(result))], width)
    assert "\x1b" not in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    assert "What does a decode step of deepseek-v3 cost" in text
    for words in ("critical path", "imbalance", "hottest expert", "capacity_factor", "dropped", "rerouted"):
        assert words in text


def test_figures_are_those_of_the_result() -> None:
    result = example_run()[0]
    result["metrics"] |= {"tokens_per_s": 123456.0, "balancedness": 0.4321}
    text = printed(run_tables(result), 100)
    assert "123,456" in text
    assert "0.432" in text
    assert "rerouted" not in text
    assert text.count("experts") >= 1


def test_stragglers_are_those_that_lose_most() -> None:
    result = example_run(layers=8)[0]
    order = sorted(result["stragglers"], key=lambda row: -row["lost_s"])
    lines = printed(run_tables(result), 100).splitlines()
    head = next(index for index, line in enumerate(lines) if "lost a step" in line)
    shown = [int(line.split()[0]) for line in lines[head + 1 : head + 6]]
    assert shown == [row["layer"] for row in order[:5]]
    assert "the 5 layers of 8 that lose most" in lines[head + 6]


def test_points_are_sorted_and_long_values_share_a_column() -> None:
    comparison = example_comparison(example_run()[0])
    _, _, *short = printed([whatif_table(comparison)], 80).splitlines()
    assert short[0].split()[:3] == ["placement", "capacity_factor", "speedup"]
    assert short[1].startswith("as asked")
    factors = [float(line.split()[2].rstrip("×")) for line in short[2:8]]
    assert factors == sorted(factors, reverse=True)
    for number, point in enumerate(comparison["points"]):
        point["vary"]["placement"] = {"solver": ("greedy", "eplb")[number % 2], "slots": 288 + number}
    assert printed([whatif_table(comparison)], 80).splitlines()[2].startswith("what if ")


def test_what_all_points_have_is_said_once() -> None:
    """Also inside mappings with the same keys; keys keep as many of their parts as tell them apart."""
    comparison = example_comparison(example_run()[0])
    for number, point in enumerate(comparison["points"]):
        point["vary"] = {
            "placement": {"solver": "eplb", "slots": 256 + number},
            "profile.dispatch.per_gpu.host": number % 2,
            "profile.dispatch.per_node.host": number % 3,
            "seed": 7,
        }
    for found in (printed([whatif_table(comparison)], 200), Structure(whatif_page(comparison)).words):
        assert "Every point has placement.solver=eplb, seed=7." in found
        assert "slots=261, per_gpu.host=1, per_node.host=2" in found
    head = printed([whatif_table(comparison)], 200).splitlines()[2]
    assert head.startswith("what if ")
    # One point alone is told by all that it has.
    (point, *_) = comparison["points"]
    assert "Every point" not in printed([whatif_table(comparison | {"points": [point]})], 200)


def test_mappings_with_other_keys_stay_whole() -> None:
    comparison = example_comparison(example_run()[0])
    for number, point in enumerate(comparison["points"]):
        policy = {"policy": "drop", "capacity_factor": 1.0} if number else {"policy": "skip", "ratio": 0.3}
        point["vary"] = {"routing": policy, "seed": number}
    text = printed([whatif_table(comparison)], 200)
    assert "routing=skip ratio=0.3, seed=0" in text
    assert "routing=drop capacity_factor=1, seed=1" in text


def test_a_point_that_is_the_scenario_itself_stands_once() -> None:
    comparison = example_comparison(example_run()[0])
    comparison["points"][2]["as_asked"] = True  # linear, 2.0
    _, _, *lines = printed([whatif_table(comparison)], 100).splitlines()
    assert lines[1].split()[:5] == ["as", "asked:", "linear", "2", "1.00×"]
    assert [line.split()[:2] for line in lines[2:7]].count(["linear", "2"]) == 0
    assert sum("×" in line for line in lines[1:7]) == 6


def test_columns_that_tell_nothing_are_left_out() -> None:
    comparison = example_comparison(example_run()[0])
    for point in comparison["points"]:
        point["metrics"] = point["metrics"] | {"dropped": 0.0}
    head = printed([whatif_table(comparison)], 80).splitlines()[2]
    assert "drops" not in head
    assert "reroutes" not in head


def test_names_are_not_cut_where_a_comparison_is_wide() -> None:
    comparison = example_comparison(example_run()[0])
    for point in comparison["points"]:
        point["vary"] = {"routing": {"policy": "expert_choice", "capacity_factor": 1.0}}
        point["metrics"]["tokens_per_s"] *= 10
        point["metrics"] |= {"rerouted": 0.11, "added": 0.02}
    text = printed([whatif_table(comparison)], 80)
    assert "routing=expert_choice " in text
    assert max(map(len, text.splitlines())) <= 80
    assert "adds" in text.splitlines()[2]
    assert "2.0 %" in text


def test_memory_and_gpus_are_told_where_they_differ() -> None:
    comparison = example_comparison(example_run()[0])
    for number, point in enumerate(comparison["points"]):
        point |= {"vary": {"seed": number}, "gpus": 8}
    for found in (printed([whatif_table(comparison)], 100), join([comparison_table(comparison)])):
        assert "memory" not in found
        assert "GPUs" not in found
    point = comparison["points"][0]
    point["metrics"] = point["metrics"] | {"gpu_memory_bytes": {"mean": 2.0**35, "max": 41.0 * 2**30}}
    for found in (printed([whatif_table(comparison)], 100), join([comparison_table(comparison)])):
        assert "memory" in found
        assert "41.0 GiB" in found
        assert "GPUs" not in found
    point["gpus"] = 1024
    for found in (printed([whatif_table(comparison)], 100), join([comparison_table(comparison)])):
        assert "GPUs" in found
        assert "1,024" in found


def test_notes_of_points_are_told_with_their_names() -> None:
    result = example_run()[0] | {"notes": ["All have it.", "Only as asked."]}
    comparison = example_comparison(result)
    first, second, *others = comparison["points"]
    first["notes"] = ["All have it.", "Two have it."]
    for point in (second, *others):
        point["notes"] = ["All have it."]
    second["notes"] = second["notes"] + ["Two have it."]
    (all_have, asked, two) = comparison_notes(comparison)
    assert (all_have, asked) == ("All have it.", "As asked: Only as asked.")
    assert two == "With placement=linear, routing.capacity_factor=1 and 1 other point: Two have it."
    for found in (printed(whatif_tables(comparison), 200), whatif_page(comparison)):
        assert "Mind" in found
        assert "As asked: Only as asked." in found
    second["notes"] += [f"Note {number}." for number in range(9)]
    assert len(comparison_notes(comparison)) == 7
    assert comparison_notes(comparison)[-1] == "6 more notes of other points are in the JSON."


def test_without_notes_there_is_nothing_to_mind() -> None:
    comparison = example_comparison(example_run()[0] | {"notes": []})
    assert "Mind" not in printed(whatif_tables(comparison), 100)
