"""Sentences: each says what the numbers say, and nothing where they say nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from moesim.analysis.culprit import Straggler
from moesim.analysis.culprit import culprit as culprit_of
from moesim.analysis.culprit import lost_by_cause as lost_of
from moesim.report import comparison_answer, findings, point_names
from moesim.report import comparison_table as comparisons
from moesim.report.markup import join
from moesim.spec.question import question
from moesim.units import format_share
from tests.moesim.report_example import example_comparison, example_run, on_plain

advice, answer = on_plain(findings.advice), on_plain(findings.answer)
whatif_answer, vary = on_plain(comparison_answer.whatif_answer), on_plain(point_names.vary)
comparison_table = on_plain(comparisons.comparison_table)


def rows_of(stragglers: list[dict[str, Any]]) -> list[Straggler]:
    return [Straggler.model_validate(row) for row in stragglers]


def culprit(stragglers: list[dict[str, Any]]) -> dict[str, Any] | None:
    found = culprit_of(rows_of(stragglers))
    return None if found is None else found.plain()


def straggler_summary(stragglers: list[dict[str, Any]]) -> str:
    return findings.straggler_summary(rows_of(stragglers))


def straggler(layer: int, rank: int, cause: str = "tokens", **values: float) -> dict[str, Any]:
    row = {"layer": layer, "rank": rank, "share": 1.0, "load": 2.0, "time": 1.5, "lost_s": 1e-4}
    return row | {"cause": cause, "expert": 3, "expert_share": 0.2, "expert_load": 0.4} | values


def result_with(stragglers: list[dict[str, Any]], **attribution: float) -> dict[str, Any]:
    """A result with a step of 10 ms; terms of the attribution in ms, the rest is ideal."""
    result = copy.deepcopy(example_run()[0])
    result["metrics"]["step_time_s"]["mean"] = 0.01
    terms = {"hardware": 0.0, "imbalance": 0.0, "network": 0.0, "overhead": 0.0} | attribution
    terms["ideal"] = 10.0 - sum(terms.values())
    result["attribution"] = {f"{term}_s": value / 1e3 for term, value in terms.items()}
    return result | {"stragglers": stragglers}


def test_the_question_names_what_was_asked() -> None:
    assert question(example_run(gpus=32)[0]["scenario"]) == (
        "What does a decode step of deepseek-v3 cost on 32 × H800 in 4 nodes (EP32) with 128 tokens a GPU, "
        "a context of 1024, linear placement on 256 slots, no routing policy and per node dispatch?"
    )


def test_a_question_with_stages_lists_and_tensor_parallelism() -> None:
    scenario = copy.deepcopy(example_run()[0]["scenario"])
    scenario["parallelism"] = {"ep": 4, "tp": 2}
    scenario["workload"] |= {"tokens_per_gpu": [64, 256, 128, 64], "context": None}
    scenario["placement"] = {"file": "mine.json"}
    scenario["routing"] = [{"policy": "drop", "capacity_factor": 1.5}, {"policy": "none"}]
    assert question(scenario) == (
        "What does a decode step of deepseek-v3 cost on 4 × H800 in 1 node (EP4, TP2) with 64 to 256 tokens "
        "a GPU, the placement of mine.json, routing policy drop (capacity_factor 1.5), then no routing "
        "policy and per node dispatch?"
    )


def test_one_gpu_holds_up_most_layers() -> None:
    rows = [straggler(layer, 7, load=2.1) for layer in range(5)] + [straggler(5, 2)]
    assert answer(result_with(rows, imbalance=3.1)) == (
        "Imbalance costs 31 % of a 10.0 ms step; GPU 7 is the straggler in 5 of 6 layers because it gets "
        "2.1 times the mean GPU's tokens."
    )


def test_the_cause_is_the_one_that_loses_most() -> None:
    rows = [straggler(0, 1), straggler(1, 1), straggler(2, 1, "weights", lost_s=5e-4)]
    assert straggler_summary(rows) == (
        "GPU 1 is the straggler in 3 of 3 layers because it has more experts with tokens, so it streams "
        "more weights from memory"
    )
    assert list(lost_of(rows_of(rows))) == ["weights", "tokens"]


def test_the_straggler_changes() -> None:
    rows = [straggler(layer, layer, "attention") for layer in range(10)]
    assert straggler_summary(rows) == (
        "the straggler changes from layer to layer (10 different GPUs in 10 layers), mostly because the "
        "straggler takes longer in attention"
    )


def test_where_balance_wins_nothing_it_says_so() -> None:
    assert answer(result_with([straggler(0, 1)], imbalance=0.05, network=4.0)) == (
        "Imbalance costs 0.5 % of a 10.0 ms step, so balancing experts wins next to nothing here; "
        "network costs 40 %."
    )
    # Under overlap evenness may cost, and is not hidden.
    assert "Imbalance costs -3.0 %" in answer(result_with([], imbalance=-0.3))


def test_slow_hardware_comes_first_where_it_costs_more() -> None:
    rows = [straggler(layer, 5, "hardware") for layer in range(4)]
    found = answer(result_with(rows, imbalance=1.0, hardware=3.0))
    assert found.startswith("Slow hardware costs")
    assert "GPU 5 is the straggler in 4 of 4 layers because it is on hardware" in found
    assert answer(result_with(rows, imbalance=3.0, hardware=1.0)).startswith("Imbalance costs")


def test_a_comparison_names_the_gpu_whose_hardware_is_slowest() -> None:
    comparison = example_comparison(example_run()[0])
    healthy, slow, slower = comparison["points"][:3]
    for point, rank, lost in ((healthy, None, 0.0), (slow, 5, 0.1), (slower, 7, 0.3)):
        step_s = point["metrics"]["step_time_s"]["mean"]
        point["vary"] = {"faults": rank}
        point["attribution"] = point["attribution"] | {"hardware_s": lost * step_s}
        cause = "tokens" if rank is None else "hardware"
        point["culprit"] = culprit([straggler(layer, rank or layer % 2, cause) for layer in range(4)])
    assert healthy["culprit"] == {"rank": 0, "layers": 2, "cause": "tokens"}
    some = comparison | {"points": [healthy, slow, slower]}
    assert whatif_answer(some).endswith(
        " Slow hardware costs most with faults=7: 30 % of a step; GPU 7 holds up 4 layers."
    )
    table = join([comparison_table(some)])
    assert "30 %, GPU 7" in table
    assert "10 %, GPU 5" in table
    assert "GPU 0" not in table
    assert "low hardware" not in whatif_answer(comparison | {"points": [healthy]})
    # One that was written before there were culprits.
    del slower["culprit"]
    assert whatif_answer(some).endswith("costs most with faults=7: 30 % of a step.")


def test_nobody_is_to_blame_where_the_straggler_changes() -> None:
    assert culprit([straggler(0, 1, "none")]) is None
    rows = [straggler(layer, layer, "network" if layer else "hardware") for layer in range(9)]
    assert culprit([*rows, straggler(9, 1, "none")]) == {"rank": None, "layers": 9, "cause": "network"}
    assert culprit(rows[:5]) == {"rank": 0, "layers": 1, "cause": "hardware"}


def test_no_named_straggler() -> None:
    assert straggler_summary([straggler(0, 1, "none")]) == ""
    assert answer(result_with([straggler(0, 1, "none")], imbalance=1.0)) == (
        "Imbalance costs 10 % of a 10.0 ms step."
    )


def test_advice_is_sorted_by_what_it_can_win() -> None:
    # The others' stragglers have more in the steps in which they are last than in the run.
    others = [straggler(layer, 1, load=3.0, expert_share=0.5, expert_load=0.9) for layer in (1, 2)]
    rows = [straggler(0, 1, expert_load=1.5), *others]
    lines = advice(result_with(rows, imbalance=2.0, network=3.0, overhead=1.6, hardware=0.5))
    assert [line.split(":")[0].split(" the")[0] for line in lines] == [
        *("Network", "Placements", "In 1 of 3 layers", "Fixed costs", "Hardware")
    ]
    assert "at most 3.00 ms a step" in lines[0]
    assert "spreads the hot experts" in lines[1]


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        ("weights", "fewer experts on each GPU"),
        ("attention", "differ less between GPUs than what comes before them"),
        ("network", "more tokens receives more bytes"),
        ("none", "a fixed placement cannot remove it"),
    ],
)
def test_advice_follows_the_cause(cause: str, words: str) -> None:
    (line,) = advice(result_with([straggler(0, 1, cause)], imbalance=1.0))
    assert words in line


def test_no_placement_wins_what_unequal_ranks_cost() -> None:
    unequal = result_with([straggler(0, 1)], imbalance=3.0)
    unequal["attribution"]["homes_s"] = 0.001
    placements, homes = advice(unequal)
    assert placements.startswith("Placements: at most 2.00 ms a step. The time follows the tokens")
    assert homes.startswith("Homes: 1.00 ms a step, since ranks have unequal tokens or contexts.")
    unequal["attribution"]["homes_s"] = 0.003
    (line,) = advice(unequal)
    assert line.startswith("Homes: 3.00 ms a step")


def test_no_advice_to_spread_experts_where_a_gpu_holds_one() -> None:
    result = result_with([straggler(0, 1)], imbalance=3.0)
    for held, words in ((8, "Each GPU holds one expert"), (16, "a placement that spreads the hot experts")):
        result["metrics"]["slots"] = {"held": held, "active": 8.0, "rows": 100.0}
        (line,) = advice(result)
        assert words in line


def test_routers_win_more_where_fewer_weights_are_read() -> None:
    result = result_with([straggler(0, 1)], imbalance=3.0)
    ceilings = {"placements_s": 0.003, "routers_s": 0.0031}
    assert len(advice(result | {"ceilings": ceilings})) == 1
    _, line = advice(result | {"ceilings": ceilings | {"routers_s": 0.005}})
    assert line.startswith("Routers: at most 5.00 ms a step, since fewer experts")


def test_no_advice_where_nothing_is_to_be_won() -> None:
    assert advice(result_with([straggler(0, 1)], imbalance=0.1, network=1.0, overhead=1.0)) == []


def test_the_best_point_with_its_price_and_the_free_one() -> None:
    comparison = example_comparison(example_run()[0])
    found = whatif_answer(comparison)
    assert found.startswith("Best without dropping more than the scenario is placement=greedy, ")
    assert "placement=greedy, routing.capacity_factor=1 is fastest: " in found
    assert "of it from better balance" in found
    assert found.endswith("it drops 9.0 % of the assignments (6.3 % of the gate mass).")


def test_what_if_nothing_helps() -> None:
    comparison = example_comparison(example_run()[0])
    for point in comparison["points"]:
        point["speedup"] = 0.9
    assert whatif_answer(comparison).startswith("Nothing tried here is faster: the best point, ")
    assert whatif_answer(comparison | {"points": []}) == "Nothing was varied."


def test_the_scenario_itself_is_not_the_best_of_what_was_tried() -> None:
    comparison = example_comparison(example_run()[0])
    itself, other, *_ = comparison["points"]
    itself |= {"speedup": 1.0, "as_asked": True}
    other["speedup"] = 0.9
    found = whatif_answer(comparison | {"points": [itself, other]})
    assert found == f"Nothing tried here is faster: the best point, {vary(other)}, runs 0.90×."
    assert whatif_answer(comparison | {"points": [itself]}) == "Nothing but the scenario itself was tried."


def test_when_only_dropping_is_faster() -> None:
    comparison = example_comparison(example_run()[0])
    comparison["points"] = [point for point in comparison["points"] if point["metrics"]["dropped"]]
    assert whatif_answer(comparison).startswith("No point that drops no more than the scenario is faster.")


def compared(*points: tuple[str, float, dict[str, float]], **saved_ms: float) -> str:
    """The answer to points (policy, speedup, metrics) of a 10 ms step; each saves ``saved_ms`` by cause."""
    base = result_with([], network=4.0, imbalance=2.0)
    made = []
    for policy, factor, metrics in points:
        point = copy.deepcopy({key: base[key] for key in ("metrics", "attribution")})
        point["metrics"] |= metrics
        point["metrics"]["step_time_s"]["mean"] = 0.01 / factor
        point["metrics"]["tokens_per_s"] = base["metrics"]["tokens_per_s"] * factor
        for term, saved in saved_ms.items():
            point["attribution"][f"{term}_s"] -= saved / 1e3
        made.append(point | {"vary": {"routing": {"policy": policy}}, "speedup": factor})
    return whatif_answer({"baseline": base, "points": made})


def test_a_loss_that_is_negligible_is_named_and_hides_no_point() -> None:
    reroute = ("reroute", 1.25, {"dropped": 0.000102, "rerouted": 0.08})
    assert compared(reroute, imbalance=2.0) == (
        "routing=reroute is best: 1.25×, 2.00 ms less per step, 2.00 ms of it from better balance; it drops "
        "0.01 % of the assignments (0 % of the gate mass) and reroutes 8.0 %."
    )
    drop = ("drop", 2.0, {"dropped": 0.2})
    assert compared(drop, reroute, imbalance=2.0).startswith(
        "Best that drops next to nothing is routing=reroute, 1.25×; it drops 0.01 % of the assignments (0 % "
        "of the gate mass) and reroutes 8.0 %. routing=drop is fastest: "
    )


def test_another_router_is_not_the_best() -> None:
    found = compared(("uniform_random", 1.25, {"rerouted": 0.97, "kept": 0.03}), imbalance=2.0)
    assert found.startswith("No point that drops no more than the scenario and reroutes less than half is")
    assert found.endswith("it reroutes 97 % of the assignments.")


def test_added_assignments_are_part_of_the_price() -> None:
    found = compared(("uncertain", 1.25, {"added": 0.03}), imbalance=2.0)
    assert found.endswith("; it adds 3.0 % of the assignments.")


def test_a_part_is_never_larger_than_the_whole() -> None:
    assert compared(("greedy", 1.25, {}), network=3.0, imbalance=-1.0) == (
        "routing=greedy is best: 1.25×, 2.00 ms less per step: 3.00 ms from less network, of which 1.00 ms "
        "are lost elsewhere."
    )


def test_copies_that_do_not_move_are_no_less_network() -> None:
    base = result_with([], network=4.0)
    base["metrics"]["rebalancing"] = {"rebalances": 2, "migration_s": 0.002}
    base["attribution"]["migration_s"] = 0.002
    point = copy.deepcopy(base) | {"vary": {"rebalance.every_steps": 100}, "speedup": 1.25}
    point["metrics"]["rebalancing"]["migration_s"] = 0.0
    point["metrics"]["step_time_s"]["mean"] = 0.008
    point["metrics"]["tokens_per_s"] *= 1.25
    point["attribution"]["migration_s"] = 0.0
    found = whatif_answer({"baseline": base, "points": [point]})
    assert "2.00 ms less per step, 2.00 ms of it from moving fewer experts" in found


def placed(**after: float) -> str:
    """The answer to a placement whose step is 8 ms instead of 10; even work would have won 1.5 ms."""
    base = result_with([], imbalance=3.0)
    base["ceilings"] = {"placements_s": 0.0015, "routers_s": 0.0015}
    base["metrics"]["slots"] = {"held": 16, "active": 12.0, "rows": 100.0}
    point = copy.deepcopy(base) | {"vary": {"placement": "greedy"}, "speedup": 1.25}
    point["metrics"]["step_time_s"]["mean"] = 0.008
    point["metrics"]["tokens_per_s"] *= 1.25
    point["metrics"]["slots"] |= after
    return whatif_answer({"baseline": base, "points": [point]})


def test_what_a_placement_wins_beyond_balance_is_named() -> None:
    assert "Even work would have won" not in placed()
    assert placed(active=10.0, rows=90.0).endswith(
        " Even work would have won 1.50 ms; the rest comes from fewer experts with tokens in a layer (10 for "
        "12), fewer rows of experts in a layer (90 for 100)."
    )


def test_copies_that_are_read_for_nothing_are_named() -> None:
    comparison = example_comparison(example_run()[0])
    base, (point,) = comparison["baseline"], comparison["points"][:1]
    base["metrics"]["slots"] = {"held": 256, "active": 200.0, "rows": 4096.0}
    point |= {"vary": {"placement": {"solver": "eplb", "slots": 40}}, "speedup": 0.95}
    point["metrics"]["slots"] = {"held": 40, "active": 208.0, "rows": 4096.0}
    point["metrics"]["balancedness"] = 1.0
    assert whatif_answer(comparison | {"points": [point]}).endswith(
        " placement=eplb slots=40 balances better and is slower: 8 more experts read in a layer."
    )
    point["speedup"] = 1.05
    assert "balances better" not in whatif_answer(comparison | {"points": [point]})


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (0.0, "0 %"),
        (1e-17, "0 %"),
        (1e-6, "< 0.01 %"),
        (1.02e-4, "0.01 %"),
        (6e-4, "0.1 %"),
        (0.0996, "10 %"),
    ],
)
def test_what_is_not_nothing_does_not_look_like_it(share: float, words: str) -> None:
    assert format_share(share) == words


def moving(run: dict[str, Any], rebalances: int) -> dict[str, Any]:
    """The run with so many rebalances, which cost it nothing."""
    rebalancing = {"rebalances": rebalances, "moved_experts": 0, "bytes": 0.0, "migration_s": 0.0}
    return run | {"metrics": run["metrics"] | {"rebalancing": rebalancing}}


@pytest.mark.parametrize(
    ("base", "points", "words"),
    [
        # The scenario itself rebalances, and is faster than without.
        (2, [(0, 0.9), (1, 0.95)], ""),
        # Nothing was tried that does not rebalance.
        (2, [(1, 0.95)], ""),
        (2, [(1, 0.95), (0, 1.1)], " Rebalancing does not pay here"),
        (0, [(1, 0.95)], " Rebalancing does not pay here"),
        (0, [(1, 1.2), (2, 1.1)], " There a rebalance has paid for itself after 7 steps."),
    ],
)
def test_whether_rebalancing_pays(base: int, points: list[tuple[int, float]], words: str) -> None:
    asked = moving(result_with([]), base)
    tried = [
        moving(asked, rebalances)
        | {"vary": {"rebalance.every_steps": rebalances}, "speedup": factor, "payback_steps": 7.0}
        for rebalances, factor in points
    ]
    found = whatif_answer({"baseline": asked, "points": tried})
    assert words in found
    assert words or "ebalancing" not in found


def test_slow_hardware_of_the_scenario_itself_counts() -> None:
    """It costs 30 % as asked, and less with every point."""
    asked = result_with([straggler(0, 3, "hardware")], hardware=3.0)
    point = result_with([], hardware=1.0) | {"vary": {"placement": "greedy"}, "speedup": 1.2}
    found = whatif_answer({"baseline": asked, "points": [point]})
    assert found.endswith(" Slow hardware costs most as asked: 30 % of a step; GPU 3 holds up 1 layer.")
