"""The README shows what the commands print."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_demo_prints_what_the_readme_shows() -> None:
    blocks = re.findall(r"```text\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    demo = subprocess.run(
        [Path(sys.executable).with_name("moesim"), "demo"],
        env=os.environ | {"COLUMNS": "100", "PYTHONUTF8": "1"},
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    printed = [line.rstrip() for line in demo.stdout.splitlines()]
    for block in blocks:
        shown = [line.rstrip() for line in block.splitlines()]
        at = printed.index(shown[0])
        assert printed[at : at + len(shown)] == shown
