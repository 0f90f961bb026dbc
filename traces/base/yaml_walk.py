"""YAML as plain values under limits: one walk over the parser's events, for every kind of file.

Anchors, aliases and tags are refused, and depth and number of values limited: expanding them is how a small
file takes all memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import yaml

from traces.base.errors import MoesimError

Loc = tuple[str | int, ...]
"""The way to a value: mapping keys and list indices, from the top."""

# libyaml's parser keeps its stack on the heap, so depth is ours to limit; the fallback does the same.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class YamlWalk(ABC):
    """Builds the values of one document; a kind of file says what its keys, scalars and errors are.

    Args:
        depth: how deep mappings and lists may lie in each other.
        values: how many values there may be; keys count where :meth:`key` reads them by :meth:`value`.
    """

    def __init__(self, depth: int, values: int) -> None:
        self._most_depth, self._most_values = depth, values
        self._values = 0

    @abstractmethod
    def error(self, rule: str, line: int | None, loc: Loc = (), **got: Any) -> MoesimError:
        """The error to raise for what stands in ``line``, at ``loc``."""

    @abstractmethod
    def key(self, event: Any, loc: Loc, before: dict[Any, Any]) -> Any:
        """The key that ``event`` is, in the mapping at ``loc``, which holds ``before`` already."""

    @abstractmethod
    def scalar(self, event: Any, loc: Loc) -> Any:
        """What number, text or other value a scalar is."""

    def read(self, text: str) -> Any:
        """The value of the one document in ``text``; None where there is none.

        Raises:
            MoesimError: as :meth:`error` makes it: broken syntax, a second document, an anchor, alias or tag,
                too deep, too many values, or what a subclass refuses.
        """
        try:
            self._events = _Loader(text)
            return self._document()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            rule = " ".join(part for part in (error.problem, error.context) if part)
            line = None if mark is None else mark.line + 1
            raise self.error(f"is not valid YAML: {rule}", line) from error
        except yaml.YAMLError as error:  # a control character
            rule = "is not valid YAML: it holds a character that YAML forbids"
            raise self.error(rule, None) from error

    def _document(self) -> Any:
        self._events.get_event()  # stream start
        if self._events.check_event(yaml.StreamEndEvent):
            return None
        self._events.get_event()  # document start
        value = self.value(self._events.get_event(), ())
        self._events.get_event()  # document end
        extra = self._events.get_event()
        if not isinstance(extra, yaml.StreamEndEvent):
            raise self.error("holds a second YAML document, one was expected", line_of(extra))
        return value

    def value(self, event: Any, loc: Loc) -> Any:
        """The value that begins with ``event``."""
        if event.anchor is not None:  # of an alias too
            rule = "YAML anchors and aliases are not supported: write the value out"
            raise self.error(rule, line_of(event), loc)
        if event.tag is not None:
            raise self.error("YAML tags are not supported", line_of(event), loc, got=event.tag)
        self._values += 1
        if self._values > self._most_values:
            raise self.error(f"holds more than {self._most_values} values", line_of(event))
        if isinstance(event, yaml.ScalarEvent):
            return self.scalar(event, loc)
        if len(loc) >= self._most_depth:
            raise self.error(f"is nested deeper than {self._most_depth} levels", line_of(event), loc[:3])
        return self._mapping(loc) if isinstance(event, yaml.MappingStartEvent) else self._list(loc)

    def _mapping(self, loc: Loc) -> dict[Any, Any]:
        content: dict[Any, Any] = {}
        while not isinstance(event := self._events.get_event(), yaml.MappingEndEvent):
            key = self.key(event, loc, content)
            content[key] = self.value(self._events.get_event(), (*loc, key))
        return content

    def _list(self, loc: Loc) -> list[Any]:
        values: list[Any] = []
        while not isinstance(event := self._events.get_event(), yaml.SequenceEndEvent):
            values.append(self.value(event, (*loc, len(values))))
        return values


def line_of(event: Any) -> int:
    """The line where an event stands, from 1."""
    return int(event.start_mark.line) + 1
