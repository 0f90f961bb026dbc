"""A small mixture-of-experts language model over bytes, plain enough to read and to train on a CPU.

Axes: B sequences, T tokens (rows of all sequences, B · context), H hidden, E experts, K experts per token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

_BLOCK = 128
"""Rows of an expert are padded to whole blocks."""


@dataclass(frozen=True)
class Config:
    """The shape of the model: a decoder with rotary positions, RMS norms before each block, tied embeddings.

    ``experts`` 0 makes every layer dense, of width ``shared_width``.
    """

    vocab: int = 256
    context: int = 256
    layers: int = 6
    hidden: int = 160
    heads: int = 5
    experts: int = 32
    top_k: int = 4
    width: int = 48
    shared_width: int = 64

    def dense(self) -> Config:
        """A model without experts that multiplies as many parameters for each token."""
        active = self.shared_width + self.top_k * self.width
        return Config(self.vocab, self.context, self.layers, self.hidden, self.heads, 0, 0, 0, active)


@dataclass(frozen=True)
class Routing:
    """What one layer's router chose.

    Attributes:
        ids_TK: experts, the likeliest first; -1 where a policy has dropped one.
        weights_TK: their gate weights.
        scores_TE: probabilities of all experts.
    """

    ids_TK: Tensor
    weights_TK: Tensor
    scores_TE: Tensor


Policy = Callable[[int, Routing], Routing]
"""Changes the routing of a layer (by its index) before the experts see it."""


class TinyMoe(nn.Module):
    """The model; ``policy`` may change its routing, ``routings`` holds that of the last forward pass."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.policy: Policy | None = None
        self.routings: list[Routing] = []
        self.embedding = nn.Embedding(config.vocab, config.hidden)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.hidden)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=config.hidden**-0.5)

    def forward(self, bytes_BC: Tensor) -> Tensor:
        """[B, C] bytes to [B, C, vocab] logits of the byte that follows each."""
        self.routings = []
        x_BCH = self.embedding(bytes_BC)
        for index, layer in enumerate(self.layers):
            x_BCH, routing = layer(x_BCH, index, self.policy)
            if routing is not None:
                self.routings.append(routing)
        return functional.linear(self.norm(x_BCH), self.embedding.weight)


class Layer(nn.Module):
    """Attention, then the shared expert beside the routed ones."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden)
        self.attention = Attention(config)
        self.feed_norm = nn.RMSNorm(config.hidden)
        self.shared = Expert(config.hidden, config.shared_width)
        self.routed = config.experts > 0
        if self.routed:
            self.router = Router(config)
            self.experts = Experts(config)

    def forward(self, x_BCH: Tensor, index: int, policy: Policy | None) -> tuple[Tensor, Routing | None]:
        x_BCH = x_BCH + self.attention(self.attention_norm(x_BCH))
        flat_TH = self.feed_norm(x_BCH).flatten(0, 1)
        added_TH = self.shared(flat_TH)
        routing: Routing | None = None
        if self.routed:
            chosen: Routing = self.router(flat_TH)
            routing = chosen if policy is None else policy(index, chosen)
            added_TH = added_TH + self.experts(flat_TH, routing)
        return x_BCH + added_TH.view_as(x_BCH), routing


class Attention(nn.Module):
    """Causal attention with rotary positions (Su et al., arXiv 2104.09864).

    Scores in full: torch's fused kernel takes twice as long on a CPU that multiplies bf16 in tiles.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads = config.heads
        self.project = nn.Linear(config.hidden, 3 * config.hidden, bias=False)
        self.out = nn.Linear(config.hidden, config.hidden, bias=False)
        half = config.hidden // config.heads // 2
        angle_CD = torch.outer(torch.arange(config.context), 10000.0 ** (-torch.arange(half) / half))
        self.register_buffer("cos_CD", angle_CD.cos(), persistent=False)
        self.register_buffer("sin_CD", angle_CD.sin(), persistent=False)
        mask_CC = torch.full((config.context, config.context), -torch.inf).triu(1)
        self.register_buffer("mask_CC", mask_CC, persistent=False)

    def forward(self, x_BCH: Tensor) -> Tensor:
        split = self.project(x_BCH).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        queries, keys, values = split[0], split[1], split[2]
        queries, keys = self._rotate(queries), self._rotate(keys)
        scores = (queries @ keys.transpose(-1, -2)) * queries.shape[-1] ** -0.5
        length = scores.shape[-1]
        seen = (scores + self.mask_CC[:length, :length]).softmax(dim=-1).to(values.dtype) @ values  # type: ignore[index]
        out: Tensor = self.out(seen.transpose(1, 2).flatten(2))
        return out

    def _rotate(self, x_BNCD: Tensor) -> Tensor:
        length = x_BNCD.shape[2]
        cos_CD, sin_CD = self.cos_CD[:length].to(x_BNCD.dtype), self.sin_CD[:length].to(x_BNCD.dtype)  # type: ignore[index]
        first, second = x_BNCD.chunk(2, dim=-1)
        return torch.cat([first * cos_CD - second * sin_CD, second * cos_CD + first * sin_CD], dim=-1)


class Expert(nn.Module):
    """down(silu(gate x) · up x), for every token."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(hidden, 2 * width, bias=False)
        self.down = nn.Linear(width, hidden, bias=False)

    def forward(self, x_TH: Tensor) -> Tensor:
        gate, up = self.gate_up(x_TH).chunk(2, dim=-1)
        out: Tensor = self.down(functional.silu(gate) * up)
        return out


class Router(nn.Module):
    """The K likeliest experts of each token, their softmax probabilities made to sum to 1 (as Qwen3-MoE)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.top_k = config.top_k
        self.weight = nn.Parameter(torch.empty(config.experts, config.hidden))

    def forward(self, x_TH: Tensor) -> Routing:
        # In single precision: near ties must not fall by rounding.
        with torch.autocast("cpu", enabled=False):
            scores_TE = functional.linear(x_TH.float(), self.weight).softmax(dim=-1)
        top_TK, ids_TK = scores_TE.topk(self.top_k)
        return Routing(ids_TK, top_TK / top_TK.sum(dim=-1, keepdim=True), scores_TE)


class Experts(nn.Module):
    """The routed experts of a layer: each computes the rows that chose it, in one block."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(config.experts, config.hidden, 2 * config.width))
        self.down = nn.Parameter(torch.empty(config.experts, config.width, config.hidden))

    def forward(self, x_TH: Tensor, routing: Routing) -> Tensor:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x_TH.dtype
        order_A, counts_E = _by_expert(routing.ids_TK, len(self.gate_up))
        # In bf16 oneDNN compiles a kernel for every new shape: padded rows have few shapes.
        rows_E = [-(-count // _BLOCK) * _BLOCK for count in counts_E]
        assignment_X = torch.cat(
            [
                functional.pad(part, (0, rows - len(part)), value=-1)
                for part, rows in zip(torch.split(order_A, counts_E), rows_E, strict=True)
            ]
        )
        weight_X = routing.weights_TK.flatten()[assignment_X] * (assignment_X >= 0)
        token_X = assignment_X.clamp(min=0) // routing.ids_TK.shape[1]
        out = []
        for rows_XH, gate_up_HF, down_FH in zip(
            torch.split(x_TH.to(dtype)[token_X], rows_E),
            self.gate_up.to(dtype).unbind(),
            self.down.to(dtype).unbind(),
            strict=True,
        ):
            gate, up = (rows_XH @ gate_up_HF).chunk(2, dim=-1)
            out.append((functional.silu(gate) * up) @ down_FH)
        weighted_XH = torch.cat(out) * weight_X.to(dtype)[:, None]
        return torch.zeros_like(x_TH, dtype=dtype).index_add(0, token_X, weighted_XH)


def _by_expert(ids_TK: Tensor, experts: int) -> tuple[Tensor, list[int]]:
    """Assignments (token · K + place) in the order of their experts, and how many each has; -1 is none's."""
    ids_A = ids_TK.flatten()
    dropped, *counts_E = torch.bincount(ids_A + 1, minlength=experts + 1).tolist()
    return ids_A.argsort(stable=True)[dropped:], counts_E


def balancing_loss(routings: list[Routing]) -> Tensor:
    """Switch Transformers' load-balancing loss (arXiv 2101.03961, section 2.2), the mean over layers.

    E · Σ over experts of (share of the assignments) · (mean probability); 1 when both are uniform.
    """
    losses = []
    for routing in routings:
        experts = routing.scores_TE.shape[1]
        share_E = torch.bincount(routing.ids_TK.flatten(), minlength=experts) / routing.ids_TK.numel()
        losses.append(experts * (share_E * routing.scores_TE.mean(dim=0)).sum())
    return torch.stack(losses).mean()
