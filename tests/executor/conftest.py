"""Where torch or a GPU is missing, tests of this folder that need it are skipped, and say why.

Without torch none of its modules can be imported.
"""

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


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Marked ``gpu``."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs an NVIDIA GPU")
