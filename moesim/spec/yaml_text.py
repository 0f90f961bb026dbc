"""Plain values as YAML text that every reader takes for the same values."""

from __future__ import annotations

import re
from typing import Any

import yaml


def to_yaml(value: dict[str, Any]) -> str:
    """A mapping as YAML, in its own order.

    >>> to_yaml({"name": "1e5", "steps": 3})
    "name: '1e5'\\nsteps: 3\\n"
    """
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Dumper(yaml.SafeDumper):
    """Quotes text that begins like a number: ``1e5`` is text to PyYAML (YAML 1.1), a number to YAML 1.2."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    if not text.isprintable():
        style: str | None = '"'  # with escapes: PyYAML would write U+0085 bare, where it is a line break
    else:
        style = "'" if re.match(r"[-+.]*[0-9]", text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
