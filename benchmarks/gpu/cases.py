"""What is measured: shapes of models, numbers of tokens, and how unevenly experts are loaded.

Axes: T tokens, K experts of a token, E experts.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Shape:
    """The MoE layer of a model; every expert is a SwiGLU.

    Attributes:
        hidden, width: of a token, and of an expert's inner rows.
        experts, top_k: E and K.
    """

    name: str
    hidden: int
    width: int
    experts: int
    top_k: int

    @property
    def weights(self) -> int:
        """Of one expert."""
        return 3 * self.hidden * self.width


SHAPES: Mapping[str, Shape] = MappingProxyType(
    {
        shape.name: shape
        for shape in (
            Shape("mixtral", 4096, 14336, 8, 2),
            Shape("qwen3-30b", 2048, 768, 128, 8),
            Shape("deepseek-v3", 7168, 2048, 256, 8),
            Shape("gpt-oss", 2880, 2880, 32, 4),
        )
    }
)
"""From the models' own config.json; gpt-oss has biases and a clamp besides, which nobody computes here."""

LOADS: Mapping[str, float] = MappingProxyType({"balanced": 0.0, "gpt-oss": 1.8})
"""The exponent p of the loads: experts from quantile u on, most loaded first, share (1 - u)^(p + 1) of them.

0 is even. With 1.8 and 32 experts the most loaded one gets 2.7 times the mean. The sorted loads of decoding
gpt-oss-20b, averaged over its 24 layers (70,558 tokens), lie within 0.2 of the mean of that curve.
"""

DECODE = (1, 4, 16, 64, 256)
"""Rows of an expert in the mean."""
PREFILL = (2048, 8192, 32768)
"""Tokens."""


@dataclass(frozen=True)
class Case:
    """One layer with one batch."""

    shape: Shape
    load: str
    phase: str
    tokens: int

    @property
    def assignments(self) -> int:
        """A = T · K."""
        return self.tokens * self.shape.top_k

    def routing(self) -> npt.NDArray[np.int64]:
        """The experts of each token, [T, K], all different: equal in every run."""
        return draw(self.shape, LOADS[self.load], self.tokens)


def cases(shape: Shape, tokens: Container[int] | None = None) -> Iterator[Case]:
    """All of a shape, or those with such numbers of tokens."""
    decode = [("decode", rows * shape.experts // shape.top_k) for rows in DECODE]
    for load in LOADS:
        for phase, count in (*decode, *(("prefill", count) for count in PREFILL)):
            if tokens is None or count in tokens:
                yield Case(shape, load, phase, count)


def draw(shape: Shape, skew: float, tokens: int) -> npt.NDArray[np.int64]:
    """Systematic sampling: experts lie side by side on a line of length K, each as long as its probability
    to be chosen, and a token takes those at K points of it that are 1 apart. So none is taken twice, and the
    loads in the mean are exactly those asked for (Madow, Ann. Math. Stat. 20, 1949).

    Raises:
        ValueError: an expert would have to be chosen more often than by every token.

    >>> np.bincount(draw(SHAPES["mixtral"], 0.0, 4000).ravel()).round(-2).tolist()
    [1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000]
    """
    edges = 1 - (1 - np.arange(shape.experts + 1) / shape.experts) ** (skew + 1)
    rng = np.random.default_rng(0)
    chance_E = rng.permutation(np.diff(edges)) * shape.top_k
    if chance_E.max() > 1:
        raise ValueError(f"skew must leave every expert at most one of a token's choices (got {skew})")
    point_TK = rng.random((tokens, 1)) + np.arange(shape.top_k)
    ids_TK = np.searchsorted(np.cumsum(chance_E)[:-1], point_TK, side="right")
    return rng.permuted(ids_TK, axis=1).astype(np.int64)
