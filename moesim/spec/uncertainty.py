"""How far the figures of a profile may be off, and profiles drawn from that.

An uncertainty belongs to one figure, or to all figures below a key that have none of their own: these are
then drawn together, as a family of kernels that takes so many times as long. D draws.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Annotated, Any, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from moesim import units
from moesim.spec.base import Part

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Scaling:
    """What happens to a figure where all takes ``f`` times as long: it is multiplied by ``f ** power``.

    Attributes:
        most: what it cannot exceed, whatever is drawn.
    """

    power: int
    most: float = np.inf


# What the fields of a profile are annotated with; a mere part is no figure that could be drawn.
Share = Annotated[Part, Scaling(-1, most=1.0)]
Rate = Annotated[units.BytesPerSecond, Scaling(-1)]
Seconds = Annotated[units.Seconds, Scaling(1)]


def figures(model: BaseModel, above: str = "") -> Iterator[str]:
    """The keys of all figures that can be drawn, unset ones too, such as ``dispatch.per_node.nvlink``."""
    for name, value in model:
        key = f"{above}{name}"
        if isinstance(value, BaseModel):
            yield from figures(value, f"{key}.")
        elif isinstance(value, Mapping):
            for inner, each in value.items():
                if isinstance(each, BaseModel):
                    yield from figures(each, f"{key}.{inner}.")
        elif _scaling(type(model), name) is not None:
            yield key


def covering(figure: str, keys: Iterable[str]) -> str | None:
    """The key whose uncertainty is that of a figure: its own, or the longest above it."""
    above = [key for key in keys if figure == key or figure.startswith(f"{key}.")]
    return max(above, key=len, default=None)


def draws(model: Model, uncertainty: Mapping[str, float], count: int) -> list[Model]:
    """Models whose figures take as many times as long as a log-normal draw says.

    A Latin hypercube (McKay, Beckman and Conover 1979, doi 10.1080/00401706.1979.10489755): each key has one
    draw in each of ``count`` equally likely strata. The draws of a key are the same whatever the model, so
    that compared models differ in what they are and not in what was drawn.

    Args:
        uncertainty: by key, the standard deviation of the logarithm of the time.
    """
    factor_D = {key: np.exp(sigma * normal_D(key, count)) for key, sigma in uncertainty.items()}
    keys = {figure: covering(figure, uncertainty) for figure in figures(model)}

    def factor(draw: int) -> Callable[[str], float]:
        return lambda figure: 1.0 if (key := keys[figure]) is None else float(factor_D[key][draw])

    return [_scaled(model, factor(draw)) for draw in range(count)]


def normal_D(key: str, count: int) -> NDArray[np.float64]:
    """[D]: one standard normal score in each of ``count`` equally likely strata, in an order of the key's."""
    rng = np.random.default_rng([zlib.crc32(key.encode()), count])
    # From inside each stratum, so that none of them is at infinity.
    quantile_D = (rng.permutation(count) + rng.uniform(1e-9, 1.0, count)) / count
    return np.array([NormalDist().inv_cdf(quantile) for quantile in quantile_D])


def _scaled(model: Model, factor: Callable[[str], float], above: str = "") -> Model:
    changed: dict[str, Any] = {}
    for name, value in model:
        key = f"{above}{name}"
        scaling = _scaling(type(model), name)
        if isinstance(value, BaseModel):
            changed[name] = _scaled(value, factor, f"{key}.")
        elif isinstance(value, Mapping):
            changed[name] = {
                inner: _scaled(each, factor, f"{key}.{inner}.") if isinstance(each, BaseModel) else each
                for inner, each in value.items()
            }
        elif value is not None and scaling is not None:
            changed[name] = min(value * factor(key) ** scaling.power, scaling.most)
    return model.model_copy(update=changed)


@cache
def _scaling(model: type[BaseModel], name: str) -> Scaling | None:
    """How a field is annotated, if at all; an optional one has it inside the union."""
    field = model.model_fields[name]
    inner = (getattr(each, "__metadata__", ()) for each in get_args(field.annotation))
    marks = (*field.metadata, *(mark for marks in inner for mark in marks))
    return next((mark for mark in marks if isinstance(mark, Scaling)), None)
