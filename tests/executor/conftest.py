"""Without torch no test module of this folder can be imported: each is then skipped, and says why."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest


class _WithoutTorch(pytest.Module):
    def collect(self) -> Iterator[pytest.Item]:
        pytest.skip("needs the extra executor (torch)", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """A module that skips itself in place of one that cannot be imported."""
    if find_spec("torch") is not None:
        return None
    module: pytest.Module = _WithoutTorch.from_parent(parent, path=module_path)
    return module
