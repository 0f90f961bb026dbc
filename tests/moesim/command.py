"""The command line inside the test process: what it prints, and with which code it ends."""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from moesim.commands.cli import main


class Done(NamedTuple):
    code: int
    out: str
    err: str


def moesim(*arguments: object) -> Done:
    """Run ``moesim ARGUMENTS``. Exceptions that a user would see as a traceback pass through."""
    out, err = io.StringIO(), io.StringIO()
    argv = ["moesim", *(str(argument) for argument in arguments)]
    with (
        mock.patch.object(sys, "argv", argv),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
            code: object = 0
        except SystemExit as end:
            code = end.code or 0
    assert isinstance(code, int)
    return Done(code, out.getvalue(), err.getvalue())


def refused(*arguments: object) -> str:
    """The one line with which ``moesim ARGUMENTS`` is refused; nothing may have been written around here."""
    # Other tests write into the checkout while this one looks.
    assert not Path("pyproject.toml").exists(), "needs a folder of its own: the fixture here"
    before = files(Path())
    done = moesim(*arguments)
    assert done.code == 2, done
    assert not done.out
    assert done.err.count("\n") == 1
    assert done.err.endswith("\n")
    assert files(Path()) == before
    line = done.err.rstrip("\n")
    assert line.startswith("moesim: ")
    return line.removeprefix("moesim: ")


def files(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder, hidden files included; folders have no content."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }
