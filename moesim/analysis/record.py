"""Records: frozen classes whose fields are the keys of a JSON file, which is written and read by them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Self

import pydantic
from pydantic import ConfigDict, Field, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, core_schema

from moesim.errors import MoesimError
from moesim.spec.base import rule_of
from traces.base.door import read_bytes
from traces.base.files import check_format

# A comparison of a thousand points takes a few megabytes.
MAX_BYTES: Final = 1 << 28
_TIMES: Final = 25  # bytes in memory for one of JSON, decoded and checked

# Of any unit: a year has 3e7 seconds, the largest cluster less than 1e20 bytes.
_MOST: Final = 1e30

Fraction = Annotated[float, Field(ge=0)]
"""Not negative; above 1 where more arrives than was there."""

Count = Annotated[int, Field(ge=0)]

# Far above any cluster: a page draws every GPU.
Size = Annotated[int, Field(ge=1, le=1 << 14)]


class Record(pydantic.BaseModel):
    """A part of a file: frozen, no value taken for another type, every number finite.

    Keys of a newer version are passed over. A field with a default is one that not every file has; what
    was not set is not written.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)

    def plain(self) -> dict[str, Any]:
        """The JSON object, keys in the order of the fields."""
        return self.model_dump(exclude_unset=True)


class FileRecord(Record):
    """The content of a whole file of format ``moesim.<thing>/1``; declares the key ``format`` itself."""

    THING: ClassVar[str]

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """The content of a file.

        Raises:
            MoesimError: naming the file, the field, the rule and the value.
        """
        raw = read_bytes(path, f"a moesim {cls.THING}", MoesimError, most=MAX_BYTES, times=_TIMES)
        try:
            content = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise MoesimError(f"is not JSON: {error}", file=path) from error
        found = content.get("format") if isinstance(content, dict) else None
        check_format(found, cls.THING, 1, file=path, error=MoesimError)
        for place, number in _beyond(content):
            rule = f"must lie between -{_MOST:.0e} and {_MOST:.0e}"
            raise MoesimError(rule, file=path, field=".".join(place), got=number)
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            rule, loc, got = rule_of(error.errors(include_url=False)[0])
            raise MoesimError(rule, file=path, field=".".join(map(str, loc)), **got) from error


def _beyond(content: Any) -> Iterator[tuple[tuple[str, ...], float]]:
    """Places of numbers that no run has, of which a page could make infinity, and these numbers."""
    left: list[tuple[tuple[str, ...], Any]] = [((), content)]
    while left:
        place, value = left.pop()
        if isinstance(value, dict):
            left += [((*place, str(key)), each) for key, each in value.items()]
        elif isinstance(value, list):
            left += [((*place, str(index)), each) for index, each in enumerate(value)]
        elif isinstance(value, int | float) and not abs(value) <= _MOST:
            yield place, value


class Checked:
    """Marks a plain dictionary that must hold to a record and is kept whole, in its own order."""

    def __init__(self, rules: type[Record]) -> None:
        self._rules = rules

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def check(value: Any, inner: Callable[[Any], Any]) -> Any:
            inner(value)
            return value

        as_it_is = core_schema.plain_serializer_function_ser_schema(lambda value: value)
        rules = handler.generate_schema(self._rules)
        return core_schema.no_info_wrap_validator_function(check, rules, serialization=as_it_is)
