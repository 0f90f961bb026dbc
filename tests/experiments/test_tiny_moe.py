"""The small model of our own: its layers by hand, its training seeded and resumable, its record valid."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

torch = pytest.importorskip("torch", reason="the small model needs the extra executor")

from safetensors.torch import save_file  # noqa: E402 - after torch is known to be there

from executor.experts.weights import ExpertWeights  # noqa: E402
from experiments.tiny_moe import evaluate as evaluation  # noqa: E402
from experiments.tiny_moe.corpus import Corpus, read_corpus  # noqa: E402
from experiments.tiny_moe.curve import Curve, curve_table, draw_curves  # noqa: E402
from experiments.tiny_moe.evaluate import evaluate, quality_table  # noqa: E402
from experiments.tiny_moe.model import Config, Experts, Routing, TinyMoe, balancing_loss  # noqa: E402
from experiments.tiny_moe.record import CANDIDATES, passages, record  # noqa: E402
from experiments.tiny_moe.train import Recipe, held_out_loss, load_model, save_model, train  # noqa: E402
from moesim.errors import MoesimError  # noqa: E402
from moesim.routing.none import NoPolicy  # noqa: E402
from moesim.routing.policies import policies_from  # noqa: E402
from moesim.routing.policy import Batch, Outcome  # noqa: E402
from tests.executor.exact_layers import exact_layer  # noqa: E402
from tests.tolerance import rounding  # noqa: E402

pytestmark = pytest.mark.executor

SMALL = Config(context=16, layers=2, hidden=16, heads=2, experts=16, top_k=3, width=8, shared_width=8)
RECIPE = Recipe(steps=4, batch=4, warm_up=2, save_every=2)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """As the commands have it: more would wait for each other longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Files enough that both domains have some that are held out."""
    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    for number in range(160):
        (folder / f"{number}.py").write_bytes(rng.integers(1, 127, 300).astype(np.uint8).tobytes())
        page = folder / "_sources" / f"{number}.rst.txt"
        page.parent.mkdir(exist_ok=True)
        page.write_bytes(rng.integers(64, 127, 300).astype(np.uint8).tobytes())
    return read_corpus(folder)


def test_the_corpus_is_split_by_content(corpus: Corpus) -> None:
    for domain in ("code", "prose"):
        assert len(corpus.train[domain]) + len(corpus.held_out[domain]) == 160 * 301
        assert 0 < len(corpus.held_out[domain]) < len(corpus.train[domain])


def test_what_is_no_trained_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MoesimError, match="none: cannot be read: No such file"):
        load_model(tmp_path / "none")
    for name, content in (("text", b"no weights"), ("other", None)):
        file = tmp_path / name
        if content is None:
            save_file({"x": torch.zeros(2)}, file)
        else:
            file.write_bytes(content)
        with pytest.raises(MoesimError, match=f"{name}: holds no model"):
            load_model(file)


def test_a_folder_without_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MoesimError, match=r"holds no code .* fetch --text /"):
        read_corpus(tmp_path)


def test_experts_are_the_sum_over_each_tokens_choice() -> None:
    torch.manual_seed(0)
    experts = Experts(SMALL)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter)
    x_TH, ids_TK = (
        torch.randn(5, 16),
        torch.tensor([[0, 3, 9], [3, -1, 1], [15, 0, 3], [-1, -1, -1], [3, 2, 1]]),
    )
    weights_TK = torch.rand(5, 3)
    found_TH = experts(x_TH, Routing(ids_TK, weights_TK, torch.zeros(5, 16)))
    up_ENH, down_EHF = (each.detach().transpose(1, 2) for each in (experts.gate_up, experts.down))
    wanted = exact_layer(x_TH, ids_TK, weights_TK, ExpertWeights(up_ENH, down_EHF, gated=True))
    assert wanted.error(found_TH.detach()) <= 1


def test_the_balancing_loss_is_1_when_all_is_uniform_and_e_when_all_is_one() -> None:
    uniform = Routing(torch.arange(4)[:, None], torch.ones(4, 1), torch.full((4, 4), 0.25))
    assert float(balancing_loss([uniform])) == pytest.approx(1.0)
    one = Routing(torch.zeros(4, 1, dtype=torch.long), torch.ones(4, 1), torch.tensor([[1.0, 0, 0, 0]] * 4))
    assert float(balancing_loss([one, one])) == pytest.approx(4.0)


def test_the_dense_model_multiplies_as_many_parameters_for_a_token() -> None:
    config = Config()
    dense = config.dense()
    assert dense.shared_width == config.shared_width + config.top_k * config.width
    sparse = sum(parameter.numel() for parameter in TinyMoe(config).parameters())
    idle = config.layers * (config.experts - config.top_k) * 3 * config.hidden * config.width
    routers = config.layers * config.experts * config.hidden
    assert sparse <= 7_000_000
    assert sum(p.numel() for p in TinyMoe(dense).parameters()) == sparse - idle - routers


def test_later_bytes_change_nothing_before_them() -> None:
    torch.manual_seed(0)
    model = TinyMoe(SMALL)
    bytes_BC = torch.randint(256, (1, 16))
    changed = bytes_BC.clone()
    changed[0, 10:] = 7
    before, after = (model(each)[:, :10] for each in (bytes_BC, changed))
    allowed = rounding(1000, "float32") * float(before.detach().abs().max())
    torch.testing.assert_close(after, before, rtol=0, atol=allowed)


def test_an_interrupted_training_ends_where_a_whole_one_does(corpus: Corpus, tmp_path: Path) -> None:
    whole = train(corpus, SMALL, RECIPE, tmp_path / "whole")
    # A run that was cut after its first checkpoint: its file is that of a run of the same recipe.
    cut = tmp_path / "cut"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", _replace_once())
        with pytest.raises(KeyboardInterrupt):
            train(corpus, SMALL, RECIPE, cut)
    resumed = train(corpus, SMALL, RECIPE, cut)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(MoesimError, match="of another recipe"):
        train(corpus, SMALL, replace(RECIPE, rate=1.0), cut)


def _replace_once() -> object:
    """Path.replace that works, then interrupts."""
    move = Path.replace

    def interrupted(self: Path, target: Path) -> Path:
        move(self, target)
        raise KeyboardInterrupt

    return interrupted


def test_a_training_leaves_its_curve(corpus: Corpus, tmp_path: Path) -> None:
    train(corpus, SMALL.dense(), replace(RECIPE, steps=2), tmp_path)
    curve = Curve.read(tmp_path / "curve.json")
    assert curve.column("step") == [2]
    draw_curves({"experts": curve, "dense": curve}, tmp_path / "one.svg")
    draw_curves({"experts": curve, "dense": curve}, tmp_path / "two.svg")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert curve_table({"dense": curve}).row_count == 1


def test_weights_come_back_as_they_were_but_for_half_precision(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TinyMoe(SMALL)
    save_model(model, tmp_path / "w.safetensors")
    loaded = load_model(tmp_path / "w.safetensors")
    assert loaded.config == SMALL
    for one, other in zip(model.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(one.half().float(), other)


def test_policies_cost_quality_only_where_they_change_the_routing(corpus: Corpus) -> None:
    torch.manual_seed(0)
    model = TinyMoe(SMALL).eval()
    without = evaluate(model, corpus, {"policy": "none"})
    assert without.loss == held_out_loss(model, corpus)
    assert without.tally.dropped == without.tally.gate_mass_lost == 0
    roomy = evaluate(model, corpus, {"policy": "drop", "capacity_factor": 100.0})
    assert roomy.loss == without.loss
    tight = evaluate(model, corpus, {"policy": "drop", "capacity_factor": 0.5})
    assert tight.tally.dropped > 0.4 * tight.tally.wished
    assert tight.loss != without.loss
    assert tight.perplexity == pytest.approx(math.exp(np.mean(list(tight.loss.values()))))
    printed = io.StringIO()
    Console(file=printed, width=80).print(quality_table([without, tight]))
    assert "…" not in printed.getvalue()
    assert "capacity_factor" in printed.getvalue()
    assert model.policy is None


@pytest.mark.parametrize(
    ("spec", "dropped"),
    [
        ({"policy": "reroute", "capacity_factor": 1.25}, 0.0),  # every expert is a candidate
        ({"policy": "top_k", "k": 2}, 1 / 3),
        ([{"policy": "one_device"}, {"policy": "drop", "capacity_factor": 9.0}], 1 / 3),  # 2 experts of each
    ],
)
def test_policies_that_look_at_candidates_and_placement(corpus: Corpus, spec: object, dropped: float) -> None:
    torch.manual_seed(0)
    found = evaluate(TinyMoe(SMALL), corpus, spec)
    assert found.tally.dropped / found.tally.wished == pytest.approx(dropped)
    assert all(map(math.isfinite, found.loss.values()))


def test_policies_see_all_that_a_trace_could_tell_them_and_are_applied_in_turns(corpus: Corpus) -> None:
    seen: list[Batch] = []

    class Watch(NoPolicy):
        def apply(self, batch: Batch) -> Outcome:
            seen.append(batch)
            return super().apply(batch)

    torch.manual_seed(0)
    model = TinyMoe(SMALL)
    drop = {"policy": "drop", "capacity_factor": 0.5}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "policies_from", lambda spec: (*policies_from(spec), Watch()))
        found = evaluate(model, corpus, [drop])
    assert found.loss == evaluate(model, corpus, drop).loss
    assert [batch.layer for batch in seen] == [0, 1, 0, 1]
    assert [batch.draw for batch in seen] == [0, 1, 2, 3]
    for number, batch in enumerate(seen):
        assert (batch.ids_TK < 0).any()  # what drop left
        assert batch.category_T is not None
        assert {batch.categories[code] for code in batch.category_T} == {("code", "prose")[number // 2]}
        assert batch.candidates is not None
        assert np.all(np.diff(batch.candidates.scores_TC, axis=1) <= 0)
        assert np.array_equal(np.sort(batch.candidates.ids_TC, axis=1)[0], np.arange(SMALL.experts))
        assert batch.held is not None
        assert batch.held.gpus_EG.sum(axis=0).tolist() == [2] * 8


def test_the_record_is_a_valid_trace_with_candidates(corpus: Corpus) -> None:
    torch.manual_seed(0)
    text = passages(corpus, SMALL.context, requests=6)
    assert text.bytes_BC.shape == (6, 16)
    assert text.category_B.tolist() == [0, 1, 0, 1, 0, 1]
    trace = record(TinyMoe(SMALL), text)
    trace.validate()
    assert trace.tokens == 6 * 16
    assert trace.categories == ("code", "prose")
    assert trace.candidate_ids_TLC is not None
    assert trace.candidate_ids_TLC.shape == (96, 2, CANDIDATES)
    assert np.array_equal(trace.candidate_ids_TLC[:, :, :3], trace.ids_TLK)
