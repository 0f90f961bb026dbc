"""What a routing policy costs in quality: the model's held-out loss with the policy in all its MoE layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from rich.table import Table

from experiments.tiny_moe.corpus import Corpus
from experiments.tiny_moe.model import Routing, TinyMoe
from experiments.tiny_moe.train import held_out_loss
from moesim.routing.catalogue import policy_from
from moesim.routing.policy import Batch, Policy
from moesim.simulation.tally import Tally


@dataclass(frozen=True)
class Quality:
    """Held-out quality under one policy.

    Attributes:
        loss: nats a byte, by domain.
        dropped, gate_mass_lost: fractions of the assignments and of their gate weights.
    """

    policy: Mapping[str, object]
    loss: dict[str, float]
    dropped: float
    gate_mass_lost: float

    @property
    def perplexity(self) -> float:
        """Of a byte, over all domains alike."""
        return math.exp(sum(self.loss.values()) / len(self.loss))


def evaluate(model: TinyMoe, corpus: Corpus, spec: Mapping[str, object], *, ranks: int = 8) -> Quality:
    """Held-out loss with a policy, the tokens of each batch at home on ``ranks`` ranks.

    Raises:
        PolicyError: the policy is unknown or a parameter wrong.
    """
    applied = _Applied(policy_from(spec), ranks)
    model.policy = applied
    try:
        loss = held_out_loss(model, corpus)
    finally:
        model.policy = None
    tally = applied.tally
    return Quality(spec, loss, tally.dropped / tally.wished, tally.gate_mass_lost / tally.gate_mass)


class _Applied:
    """A policy of the simulator's in the place of the model's routing."""

    def __init__(self, policy: Policy, ranks: int) -> None:
        self.policy, self.ranks, self.tally = policy, ranks, Tally()

    def __call__(self, layer: int, routing: Routing) -> Routing:
        tokens, experts = routing.scores_TE.shape
        offsets_G = np.linspace(0, tokens, self.ranks + 1).astype(np.int64)
        ids_TK = routing.ids_TK.numpy().astype(np.int16)
        weights_TK = np.ascontiguousarray(routing.weights_TK.numpy(), np.float32)
        outcome = self.policy.apply(Batch(ids_TK, weights_TK, offsets_G, experts))
        self.tally.add(outcome)
        assert outcome.weights_TK is not None  # the batch had weights
        return Routing(
            torch.from_numpy(outcome.ids_TK.astype(np.int64)),
            torch.from_numpy(outcome.weights_TK),
            routing.scores_TE,
        )


def quality_table(found: Sequence[Quality]) -> Table:
    """One row for each policy; the first is what the others are compared with."""
    table = Table(title="held-out quality, nats a byte", title_justify="left")
    for column in ("policy", *found[0].loss, "perplexity", "worse by", "dropped", "gate mass lost"):
        table.add_column(column, justify="left" if column == "policy" else "right")
    for each in found:
        parameters = (f"{name} {value}" for name, value in each.policy.items() if name != "policy")
        table.add_row(
            " ".join((str(each.policy["policy"]), *parameters)),
            *(f"{loss:.4f}" for loss in each.loss.values()),
            f"{each.perplexity:.3f}",
            f"{each.perplexity / found[0].perplexity - 1:.2%}",
            f"{each.dropped:.2%}",
            f"{each.gate_mass_lost:.2%}",
        )
    return table
