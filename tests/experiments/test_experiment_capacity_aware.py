"""Capacity-Aware Inference: the routing that is assumed, the fit to a column, the front of policies."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.capacity_aware import front as fronts
from experiments.capacity_aware.experiment import (
    GAMMAS,
    METHODS,
    SETTINGS,
    fitted_skew,
    order,
)
from experiments.capacity_aware.figure import draw
from experiments.capacity_aware.front import FAMILIES, Choice, draw_front, front, front_table
from experiments.capacity_aware.layer import Assumed, expert_peak, layer_s, scenario_of, speedup
from experiments.capacity_aware.routing import REQUESTS, SEQUENCE, routing
from experiments.comparison import Comparison, Row
from moesim.routing.policies import policies_from
from moesim.spec.model import Model
from traces.statistics import expert_loads

OLMOE, _, MIXTRAL = SETTINGS
SMALL = Assumed(tokens_per_gpu=256)


@pytest.fixture(scope="module")
def mixtral() -> Model:
    return scenario_of(MIXTRAL.model, None, SMALL).model


def choice(speedup: float, perplexity: float, family: str = "skip") -> Choice:
    return Choice(family, FAMILIES[family][0], speedup, perplexity, 0.1, 0.0, 0.02)


def test_routing_is_valid_and_the_same_with_scores_or_without(mixtral: Model) -> None:
    known, unknown = routing(mixtral, 1.0), routing(mixtral, 1.0, scores=False)
    known.validate()
    assert known.tokens == REQUESTS * SEQUENCE
    assert (known.ids_TLK == unknown.ids_TLK).all()
    assert known.candidate_ids_TLC is not None
    assert known.candidate_ids_TLC.shape[2] == mixtral.experts.count
    assert unknown.candidate_ids_TLC is None


def test_skew_is_that_of_popularity(mixtral: Model) -> None:
    """At 0 an expert gets a quarter of the tokens; more than all of them, 4 times the mean, none can."""
    peaks = [expert_peak(mixtral.name, skew, SMALL) for skew in (0.0, 1.0, 3.0)]
    assert peaks == sorted(peaks)
    assert peaks[0] < 1.15
    assert 3.5 < peaks[2] <= 4.0


def test_kept_affinities_make_neighbours_alike_and_leave_popularity(mixtral: Model) -> None:
    alone, alike = (routing(mixtral, 1.0, kept=kept, scores=False) for kept in (0.0, 0.9))
    repeats = [(trace.ids_TLK[1:, :, :1] == trace.ids_TLK[:-1, :, :1]).mean() for trace in (alone, alike)]
    assert repeats[1] > repeats[0] + 0.2
    share_LE, other_LE = (expert_loads(trace) / trace.tokens for trace in (alone, alike))
    np.testing.assert_allclose(share_LE, other_LE, atol=0.08)


def test_less_capacity_is_faster_and_ample_capacity_costs_its_policy_alone() -> None:
    def times(gamma: float) -> float:
        return speedup(MIXTRAL.model, 1.5, {"policy": "drop", "capacity_factor": gamma}, SMALL)

    found = [times(gamma) for gamma in (8.0, *GAMMAS)]
    assert found == sorted(found)
    assert 0.95 < found[0] <= 1.0


def test_expanded_drop_serves_more_and_so_wins_less() -> None:
    skew, assumed = 1.0, SMALL
    drop, expanded = (OLMOE.predicted(method, 2.0, skew, assumed) for method in METHODS)
    assert 1.0 < expanded < drop


def test_the_skew_is_where_the_cell_comes_out() -> None:
    skew = fitted_skew(MIXTRAL, (1.5,), SMALL)
    assert MIXTRAL.predicted("token drop", 1.5, skew, SMALL) == pytest.approx(1.89, rel=5e-3)


def test_what_counts_as_a_layer() -> None:
    """Without attention a layer is shorter."""
    part = dataclasses.replace(SMALL, part="moe")
    assert layer_s(MIXTRAL.model, 1.0, None, part) < layer_s(MIXTRAL.model, 1.0, None, SMALL)


def test_order_by_hand() -> None:
    """b above a and d is lost; c above all of them is kept, and a and d are equal."""
    pairs = {"a": (1.0, 1.2), "b": (1.1, 1.1), "c": (2.0, 1.3), "d": (1.0, 1.25)}
    found = order([Row(case, "×", *pair) for case, pair in pairs.items()])
    assert (found.measured, found.predicted) == (5, 3)


def test_the_figure_has_all_cells_and_equal_bytes(tmp_path: Path) -> None:
    rows = tuple(
        Row(f"{setting.name}, {method}, γ {gamma:g}", "×", setting.measured(method, gamma), 1.5)
        for setting in SETTINGS
        for method in METHODS
        for gamma in GAMMAS
    )
    comparison = Comparison("capacity_aware", "nowhere", rows, (), ())
    paths = [tmp_path / f"{name}.svg" for name in "ab"]
    for path in paths:
        draw(comparison, path)
    first, second = (path.read_text() for path in paths)
    assert first == second
    for setting in SETTINGS:
        assert setting.name in first


@given(st.lists(st.tuples(st.sampled_from([1.0, 1.2, 1.5]), st.sampled_from([2.0, 2.5, 3.0])), max_size=8))
def test_the_front_is_what_nothing_beats(pairs: list[tuple[float, float]]) -> None:
    choices = [choice(*pair) for pair in pairs]

    def beaten(pair: tuple[float, float]) -> bool:
        return any(other != pair and other[0] >= pair[0] and other[1] <= pair[1] for other in pairs)

    found = [(each.speedup, each.perplexity) for each in front(choices)]
    assert found == sorted({pair for pair in pairs if not beaten(pair)})


def test_the_table_and_the_figure_of_the_front(tmp_path: Path) -> None:
    choices = [choice(1.0, 2.9, "no policy"), choice(1.3, 3.0), choice(1.2, 3.1, "top-p")]
    rendered = front_table(choices)
    assert [str(row.style) for row in rendered.rows] == ["bold", "bold", "None"]
    assert list(rendered.columns[4].cells) == ["+0.0%", "+3.4%", "+6.9%"]
    paths = [tmp_path / f"{name}.svg" for name in "ab"]
    for path in paths:
        draw_front(choices, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_every_policy_of_the_front_is_known_and_simulated_as_it_is_written() -> None:
    for specs in FAMILIES.values():
        for spec in specs:
            policies_from(spec)
    none, strong = fronts.tokens_per_s({"policy": "none"}), fronts.tokens_per_s({"policy": "top_k", "k": 1})
    assert strong > 1.5 * none


@pytest.mark.executor
def test_compare_lays_speed_beside_quality(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch")
    from experiments.capacity_aware import pareto
    from experiments.tiny_moe.model import Config, TinyMoe
    from experiments.tiny_moe.train import save_model

    rng = np.random.default_rng(0)
    for number in range(160):
        page = tmp_path / "_sources" / f"{number}.rst.txt"
        page.parent.mkdir(exist_ok=True)
        page.write_bytes(rng.integers(64, 127, 100).astype(np.uint8).tobytes())
        (tmp_path / f"{number}.py").write_bytes(rng.integers(1, 127, 100).astype(np.uint8).tobytes())
    torch.manual_seed(0)
    shape = {"context": 8, "layers": 1, "hidden": 16, "heads": 2, "experts": 16, "top_k": 3}
    save_model(TinyMoe(Config(**shape, width=8, shared_width=8)), tmp_path / "weights.safetensors")
    kinds = {name: FAMILIES[name][-1:] for name in ("no policy", "token drop")}
    monkeypatch.setattr(pareto, "FAMILIES", kinds)
    pareto.main(["--json", "--text", str(tmp_path), "--weights", str(tmp_path / "weights.safetensors")])
    none, drop = json.loads(capsys.readouterr().out)["points"]
    assert none["speedup"] == 1.0
    assert none["dropped"] == 0.0
    assert drop["speedup"] > 1.0
    assert drop["dropped"] > 0.2
    assert drop["perplexity"] != none["perplexity"]

    with pytest.raises(SystemExit) as stopped:
        pareto.main(["--text", str(tmp_path / "nowhere"), "--weights", str(tmp_path / "weights.safetensors")])
    assert stopped.value.code == 2
    assert "holds no code" in capsys.readouterr().err
