"""One ``--vary KEY=[V1, V2, …]``: fields of a scenario and the values that they take in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moesim.errors import SpecError
from moesim.spec.override import Override
from moesim.spec.yaml_source import parse_yaml, show_loc


@dataclass(frozen=True)
class Vary:
    """Keys that vary together, and their values in turn.

    Attributes:
        rows: one value for each key.
    """

    keys: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    @classmethod
    def of(cls, key: str, *values: Any) -> Vary:
        """One key that takes these values."""
        return cls((key,), tuple((value,) for value in values))

    @classmethod
    def parse(cls, text: str) -> Vary:
        """From ``KEY=[V1, V2, …]``, the list in YAML; keys joined by commas take a list of values each time.

        >>> Vary.parse("routing.capacity_factor=[1.0, 1.5]").rows
        ((1.0,), (1.5,))
        >>> Vary.parse("cluster,parallelism.ep=[[h100-1x8, 8], [h100-2x8, 16]]").rows
        (('h100-1x8', 8), ('h100-2x8', 16))

        Raises:
            SpecError: there is no ``=``, an empty or repeated key, no list, or a list of another length.
        """
        names, equals, values = text.partition("=")
        keys = tuple(name.strip() for name in names.split(","))
        locs = [tuple(key.split(".")) for key in keys]
        if not equals or not all(part for loc in locs for part in loc):
            raise SpecError("must read KEY=[V1, V2, …] or KEY,KEY=[[V1, W1], …]", file="--vary", got=text)
        option = f"--vary {','.join(map(show_loc, locs))}"
        found = parse_yaml(values, option).value
        if not isinstance(found, list) or not found:
            example = "[1.0, 1.5]" if len(keys) == 1 else "[[h100-1x8, 8], [h100-2x8, 16]]"
            raise SpecError(f"must be a list of values, such as {example}", file=option, got=values)
        check_once([keys])
        if len(keys) == 1:
            return cls.of(keys[0], *found)
        for at, row in enumerate(found):
            if not isinstance(row, list) or len(row) != len(keys):
                rule = f"must be a list of {len(keys)} values, one for each key"
                raise SpecError(rule, file=option, field=f"[{at}]", got=row)
        return cls(keys, tuple(map(tuple, found)))

    def overrides(self, row: Sequence[Any]) -> list[Override]:
        """What sets the keys to the values of a row."""
        settings = zip(self.keys, row, strict=True)
        return [Override(tuple(key.split(".")), value, "--vary") for key, value in settings]


def check_once(varied: Sequence[Sequence[str]]) -> None:
    """Refuse a key that varies twice: its values would replace each other.

    Raises:
        SpecError: naming the key.
    """
    keys = [key for each in varied for key in each]
    for key in keys:
        if keys.count(key) > 1:
            raise SpecError("is varied more than once: put all values into one list", file=f"--vary {key}")
