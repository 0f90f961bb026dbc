"""Fixtures shared by all tests, and the closing list of what was skipped and why."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

# Shared machines are noisy: no deadline per example, and the same examples on every run.
settings.register_profile("moesim", deadline=None, derandomize=True, print_blob=False)
# Others on every run, and more of them: `make test-deep`, which takes --hypothesis-profile=deep.
settings.register_profile("deep", deadline=None, derandomize=False, max_examples=1000, print_blob=True)
settings.load_profile("moesim")

# A shell starts background jobs with Ctrl-C ignored, and the tests' children would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real routing and reference data, outside the project."""
    default = Path(__file__).parents[2] / "shared"
    folder = Path(os.environ.get("MOESIM_SHARED", default))
    if not (folder / "data").is_dir():
        pytest.skip(f"no data folder at {folder}: set MOESIM_SHARED")
    return folder
