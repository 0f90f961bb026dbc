"""YAML as plain values, as far as placements need it: mappings, lists, whole numbers and text.

Anchors, aliases and tags are refused, and depth and number of values limited: expanding them is how a small
file takes all memory.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from placement.problem.errors import PlacementError

MAX_DEPTH = 8
MAX_VALUES = 1 << 20
"""Most values of a file, keys among them; 58 layers of 16,384 slots have 950,000."""

# libyaml's parser keeps its stack on the heap, so depth is ours to limit; the fallback does the same.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INT = re.compile(r"-?(0|[1-9][0-9]{0,9})")


def parse_yaml(text: str) -> Any:
    """One YAML document; every plain scalar that is no whole number in decimal stays text.

    >>> parse_yaml("num_slots: 2\\nrows:\\n  3: [0, 1.0]")
    {'num_slots': 2, 'rows': {3: [0, '1.0']}}

    Raises:
        PlacementError: broken syntax, a second document, a duplicate key or one that is a structure, an
            anchor, alias or tag, too deep, too many values.
    """
    try:
        return _Reader(text).read()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        rule = " ".join(part for part in (error.problem, error.context) if part)
        line = None if mark is None else mark.line + 1
        raise PlacementError(f"is not valid YAML: {rule}", line=line) from error
    except yaml.YAMLError as error:  # a control character
        raise PlacementError("is not valid YAML: it holds a character that YAML forbids") from error


class _Reader:
    """Builds the values of one document from the parser's events."""

    def __init__(self, text: str) -> None:
        self._events = _Loader(text)
        self._values = 0

    def read(self) -> Any:
        self._events.get_event()  # stream start
        if self._events.check_event(yaml.StreamEndEvent):
            return None
        self._events.get_event()  # document start
        value = self._value(self._events.get_event(), 0)
        self._events.get_event()  # document end
        extra = self._events.get_event()
        if not isinstance(extra, yaml.StreamEndEvent):
            raise _error("holds a second YAML document, one was expected", extra)
        return value

    def _value(self, event: Any, depth: int) -> Any:
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise _error("YAML anchors and aliases are not supported: write the value out", event)
        if event.tag is not None:
            raise _error("YAML tags are not supported", event, got=event.tag)
        self._values += 1
        if self._values > MAX_VALUES:
            raise _error(f"holds more than {MAX_VALUES} values", event)
        if isinstance(event, yaml.ScalarEvent):
            text: str = event.value
            return int(text) if event.implicit[0] and _INT.fullmatch(text) else text
        if depth >= MAX_DEPTH:
            raise _error(f"is nested deeper than {MAX_DEPTH} levels", event)
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(depth + 1)
        values = []
        while not isinstance(event := self._events.get_event(), yaml.SequenceEndEvent):
            values.append(self._value(event, depth + 1))
        return values

    def _mapping(self, depth: int) -> dict[int | str, Any]:
        content: dict[int | str, Any] = {}
        while not isinstance(event := self._events.get_event(), yaml.MappingEndEvent):
            if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
                raise _error("keys must be numbers or text", event)
            key = self._value(event, depth)
            if key in content:
                raise _error("the key stands twice", event, got=key)
            content[key] = self._value(self._events.get_event(), depth)
        return content


def _error(rule: str, event: Any, **got: Any) -> PlacementError:
    return PlacementError(rule, line=int(event.start_mark.line) + 1, **got)
