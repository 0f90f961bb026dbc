"""The small model's MoE layers through the executor, with real gates, against the model's own."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the small model needs the extra executor")

from torch import Tensor  # noqa: E402 - after torch is known to be there

from executor.dispatch.transport import Groups  # noqa: E402
from experiments.tiny_moe.model import Config, Layer, TinyMoe  # noqa: E402
from experiments.tiny_moe.spread import moe_layers, spread  # noqa: E402
from placement.problem.placement import Placement  # noqa: E402
from placement.solvers.solvers import solve  # noqa: E402
from tests.executor.lockstep import run_ranks  # noqa: E402
from tests.tolerance import rounding  # noqa: E402

pytestmark = pytest.mark.executor

RANKS = 4
CONFIG = Config(context=16, layers=3, hidden=16, heads=2, experts=8, top_k=3, width=8, shared_width=8)
LAYERS = tuple(range(CONFIG.layers))
# Of sums of 16, 8 and 4 terms: inner products, an output, and the shared expert and three others.
SUMS = 4 * rounding(16 + 8 + 4, "float32")


def placements() -> dict[str, Placement]:
    """In order; with copies; and slots of any number on any rank, some of them empty."""
    rng = np.random.default_rng(0)
    load_LE = rng.random((CONFIG.layers, CONFIG.experts)) ** 3
    anywhere = [rng.permutation([*range(8), 0, 0, 5, -1, -1]) for _ in LAYERS]
    return {
        "linear": solve("linear", None, experts=8, gpus=RANKS, layers=LAYERS),
        "copies": solve("greedy", load_LE, experts=8, gpus=RANKS, layers=LAYERS, slots=16),
        "anywhere": Placement(
            experts=8,
            gpus=RANKS,
            layers=LAYERS,
            slot_expert_LS=np.array(anywhere, np.int16),
            slot_gpu_S=rng.integers(0, RANKS, 13).astype(np.int32),
        ),
    }


@pytest.fixture(scope="module")
def model() -> TinyMoe:
    torch.manual_seed(0)
    return TinyMoe(CONFIG).eval()


@pytest.mark.parametrize("mode", ["per_gpu", "per_node", "all_gather"])
@pytest.mark.parametrize("name", placements())
def test_each_layer_gives_what_the_models_own_does(model: TinyMoe, name: str, mode: str) -> None:
    placement = placements()[name]
    inputs = [torch.randn(tokens, 16) for tokens in (5, 0, 31, 2)]

    def work(groups: Groups) -> list[Tensor]:
        with torch.no_grad():
            return [layer(inputs[groups.rank]) for layer in moe_layers(model, placement, groups, mode)]

    with torch.no_grad():
        for x_TH, found in zip(inputs, run_ranks(RANKS, 2, work), strict=True):
            for layer, y_TH in zip(model.layers, found, strict=True):
                assert isinstance(layer, Layer)
                wanted_TH = layer.shared(x_TH) + layer.experts(x_TH, layer.router(x_TH))
                size = wanted_TH.abs().max() if len(wanted_TH) else 0.0
                torch.testing.assert_close(y_TH, wanted_TH, rtol=0, atol=SUMS * size)


def test_the_whole_model_gives_the_same_logits(model: TinyMoe) -> None:
    """Ranks read other passages, one of them none; what the model is made of stays as it was."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    texts = [torch.randint(256, (sequences, 12)) for sequences in (2, 1, 0, 3)]

    def work(groups: Groups) -> Tensor:
        with torch.no_grad():
            logits: Tensor = spread(model, placements()["anywhere"], groups)(texts[groups.rank])
            return logits

    with torch.no_grad():
        for text, logits in zip(texts, run_ranks(RANKS, 2, work), strict=True):
            wanted = model(text)
            size = wanted.abs().max() if len(wanted) else 0.0
            # Each layer adds its own rounding, and attention and norms as much again.
            torch.testing.assert_close(logits, wanted, rtol=0, atol=2 * len(LAYERS) * SUMS * size)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
