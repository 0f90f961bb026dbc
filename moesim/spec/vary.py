"""One ``--vary KEY=[V1, V2, …]``: a field of a scenario and the values that it takes in turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moesim.errors import SpecError
from moesim.spec.yaml_source import parse_yaml, show_loc


@dataclass(frozen=True)
class Vary:
    """A key and the values that it takes in turn."""

    key: str
    values: tuple[Any, ...]

    @classmethod
    def parse(cls, text: str) -> Vary:
        """From ``KEY=[V1, V2, …]``, the list in YAML.

        >>> Vary.parse("routing.capacity_factor=[1.0, 1.5]")
        Vary(key='routing.capacity_factor', values=(1.0, 1.5))
        """
        key, equals, values = text.partition("=")
        loc = tuple(key.split("."))
        if not equals or not all(loc):
            raise SpecError("must read KEY=[V1, V2, …]", file="--vary", got=text)
        option = f"--vary {show_loc(loc)}"
        found = parse_yaml(values, option).value
        if not isinstance(found, list) or not found:
            raise SpecError("must be a list of values, such as [1.0, 1.5]", file=option, got=values)
        return cls(key, tuple(found))
