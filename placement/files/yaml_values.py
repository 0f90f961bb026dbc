"""YAML as plain values, as far as placements need it: mappings, lists, whole numbers and text."""

from __future__ import annotations

import re
from typing import Any

import yaml

from placement.problem.errors import PlacementError
from traces.base.yaml_walk import Loc, YamlWalk, line_of

MAX_DEPTH = 8
MAX_VALUES = 1 << 20
"""Most values of a file, keys among them; 58 layers of 16,384 slots have 950,000."""

_INT = re.compile(r"-?(0|[1-9][0-9]{0,9})")


def parse_yaml(text: str) -> Any:
    """One YAML document; every plain scalar that is no whole number in decimal stays text.

    >>> parse_yaml("num_slots: 2\\nrows:\\n  3: [0, 1.0]")
    {'num_slots': 2, 'rows': {3: [0, '1.0']}}

    Raises:
        PlacementError: broken syntax, a second document, a duplicate key or one that is a structure, an
            anchor, alias or tag, too deep, too many values.
    """
    return _Walk(MAX_DEPTH, MAX_VALUES).read(text)


class _Walk(YamlWalk):
    """Keys are whole numbers or text, and count as values."""

    def error(self, rule: str, line: int | None, loc: Loc = (), **got: Any) -> PlacementError:
        return PlacementError(rule, line=line, **got)

    def key(self, event: Any, loc: Loc, before: dict[Any, Any]) -> int | str:
        if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            raise self.error("keys must be numbers or text", line_of(event))
        key: int | str = self.value(event, loc)
        if key in before:
            raise self.error("the key stands twice", line_of(event), got=key)
        return key

    def scalar(self, event: Any, loc: Loc) -> int | str:
        text: str = event.value
        return int(text) if event.implicit[0] and _INT.fullmatch(text) else text
