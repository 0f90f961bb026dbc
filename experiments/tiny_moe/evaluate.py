"""What routing policies cost in quality: the model's held-out loss with them in all its MoE layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.table import Table

from experiments.tiny_moe.corpus import Corpus
from experiments.tiny_moe.model import Routing, TinyMoe
from experiments.tiny_moe.train import held_out_bytes, loss_of
from moesim.routing.policies import policies_from
from moesim.routing.policy import Batch, Candidates, Held, Policy
from moesim.routing.stages import apply_all
from moesim.simulation.tally import Tally

RANKS, RANKS_PER_NODE = 8, 4
"""Home ranks of each batch's tokens; they hold the experts in order, as placement ``linear`` has them."""


@dataclass(frozen=True)
class Quality:
    """Held-out quality under some policies.

    Attributes:
        spec: the policies as a scenario's ``routing``.
        loss: nats a byte, by domain.
        tally: what became of the assignments.
    """

    spec: object
    loss: dict[str, float]
    tally: Tally

    @property
    def perplexity(self) -> float:
        """Of a byte, over all domains alike."""
        return math.exp(sum(self.loss.values()) / len(self.loss))


def evaluate(model: TinyMoe, corpus: Corpus, spec: object) -> Quality:
    """Held-out loss with policies in every MoE layer, 64 passages of a domain in a batch.

    Raises:
        PolicyError: a policy is unknown, or a parameter wrong.
    """
    applied = _Applied(policies_from(spec), tuple(corpus.held_out))
    model.policy = applied
    loss = {}
    try:
        for domain, bytes_BC in held_out_bytes(corpus, model.config.context + 1).items():
            applied.domain = domain
            loss[domain] = loss_of(model, bytes_BC)
    finally:
        model.policy = None
    return Quality(spec, loss, applied.tally)


class _Applied:
    """Policies of the simulator's in the place of the model's routing."""

    def __init__(self, policies: Sequence[Policy], domains: tuple[str, ...]) -> None:
        self.domain, self.tally = "", Tally()
        self._policies, self._domains = policies, domains
        self._batches = 0

    def __call__(self, layer: int, routing: Routing) -> Routing:
        tokens, experts = routing.scores_TE.shape
        scores_TE, candidates_TE = routing.scores_TE.sort(descending=True, stable=True)
        home_E = np.arange(experts) * RANKS // experts
        batch = Batch(
            routing.ids_TK.numpy().astype(np.int16),
            np.ascontiguousarray(routing.weights_TK.numpy(), np.float32),
            np.linspace(0, tokens, RANKS + 1).astype(np.int64),
            experts,
            Candidates(candidates_TE.numpy().astype(np.int16), scores_TE.numpy()),
            Held(home_E[:, None] == np.arange(RANKS), np.arange(RANKS, dtype=np.int32) // RANKS_PER_NODE),
            layer,
            self._batches,
            np.full(tokens, self._domains.index(self.domain), np.int16),
            self._domains,
        )
        outcome = apply_all(self._policies, batch)[-1]
        self._batches += 1
        self.tally.add(outcome)
        assert outcome.weights_TK is not None  # the batch had weights
        return Routing(
            torch.from_numpy(outcome.ids_TK.astype(np.int64)),
            torch.from_numpy(outcome.weights_TK),
            routing.scores_TE,
        )


def quality_table(found: Sequence[Quality]) -> Table:
    """One row for each; the first is what the others are compared with."""
    # Without a frame the names of policies and all figures fit into 80 columns.
    style: dict[str, Any] = {"box": None, "pad_edge": False, "padding": (0, 1, 0, 0)}
    table = Table(title="held-out quality, nats a byte", title_justify="left", **style)
    shares = ("dropped", "rerouted", "added")
    # Columns that are 0 throughout tell nothing, but for what the first policies are asked about.
    shown = [name for name in shares if name == "dropped" or any(getattr(each.tally, name) for each in found)]
    table.add_column("policy", overflow="fold")
    for column in (*found[0].loss, "perplexity", "worse by", *shown, "mass lost"):
        table.add_column(column, justify="right", no_wrap=True)
    for each in found:
        tally = each.tally
        table.add_row(
            _brief(each.spec),
            *(f"{loss:.4f}" for loss in each.loss.values()),
            f"{each.perplexity:.3f}",
            f"{each.perplexity / found[0].perplexity - 1:.2%}",
            *(f"{getattr(tally, name) / tally.wished:.2%}" for name in shown),
            f"{tally.gate_mass_lost / tally.gate_mass:.2%}",
        )
    return table


def _brief(spec: object) -> str:
    """``drop capacity_factor 1.5``; several policies with an arrow between them."""
    if isinstance(spec, list):
        return " → ".join(map(_brief, spec))
    assert isinstance(spec, dict)  # it has been made a policy of
    return " ".join([spec["policy"], *(f"{key} {value}" for key, value in spec.items() if key != "policy")])
