"""One ``-s KEY=VALUE``: a field of a scenario that an option sets, and is blamed for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from moesim.errors import MoesimError, SpecError
from moesim.spec.yaml_source import parse_yaml, show_loc


@dataclass(frozen=True)
class Override:
    """Where a value goes, the value as YAML gives it, and the option it came from."""

    loc: tuple[str, ...]
    value: Any
    flag: str = "-s"

    @property
    def key(self) -> str:
        """The key as it is written on the command line."""
        return show_loc(self.loc)

    @property
    def option(self) -> str:
        """As it is named in messages."""
        return f"{self.flag} {self.key}"

    @classmethod
    def parse(cls, text: str) -> Override:
        """From ``KEY=VALUE``; keys are separated by dots.

        >>> Override.parse("routing.capacity_factor=1.5")
        Override(loc=('routing', 'capacity_factor'), value=1.5, flag='-s')

        Raises:
            SpecError: there is no ``=``, an empty key, or a value that is not YAML.
        """
        key, equals, value = text.partition("=")
        loc = tuple(key.split("."))
        if not equals or not all(loc):
            raise SpecError("must read KEY=VALUE, with a key such as workload.steps", file="-s", got=text)
        return cls(loc, parse_yaml(value, f"-s {show_loc(loc)}").value)

    def apply(self, value: dict[str, Any]) -> None:
        """Set the key inside ``value``, with mappings around it where there are none.

        Raises:
            SpecError: a part of the key leads to a value that is not a mapping.
        """
        inside: Any = value
        for depth, part in enumerate(self.loc[:-1], 1):
            if inside.get(part) is None:
                inside[part] = {}
            inside = inside[part]
            if not isinstance(inside, dict):
                at = show_loc(self.loc[:depth])
                raise SpecError("is not a mapping, nothing can be set inside it", field=at, got=inside)
        inside[self.loc[-1]] = self.value


@contextmanager
def blame(overrides: Sequence[Override], file: str | None) -> Iterator[None]:
    """Name the option, not the place in ``file``, in a fault of what an option set.

    A fault inside another file that an option names, such as a profile, keeps its place there.
    """
    try:
        yield
    except MoesimError as error:
        for override in overrides:
            if error.file in (None, file) and _concerns(error.field or "", override.key):
                error.file, error.line = override.option, None
                if error.field == override.key:
                    error.field = None  # the option says it already
                break
        raise


def _concerns(field: str, key: str) -> bool:
    """Whether one of the two lies inside the other, as ``profile.tiles[0]`` lies inside ``profile``."""
    outer, inner = sorted((field, key), key=len)
    return bool(outer) and f"{inner}.".startswith((f"{outer}.", f"{outer}["))
