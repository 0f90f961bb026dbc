"""The command line: its commands, and what becomes of an error. Only here are exit codes set.

What a command needs is imported inside it: ``moesim --help`` must not wait for numba.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer
import typer.core

from moesim import __version__
from moesim.commands import calibrate, execute, place, presets, simulate, trace, validate
from moesim.commands.signals import exit_code, interrupt_behind, stoppable
from moesim.commands.terminal import say, tell
from traces.base.errors import MoesimError
from traces.base.text import visible

_UsageError: Any = typer.BadParameter.__base__  # click's, wherever typer has it from


class _Commands(typer.core.TyperGroup):
    """All commands; of an interruption typer would say that they were aborted, with code 1."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _visible_usage():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        try:
            with _visible_usage():
                return super().invoke(ctx)
        except BaseException as fault:
            interrupt = interrupt_behind(fault)
            if interrupt is None:
                raise
            tell("moesim: interrupted")
            raise typer.Exit(exit_code(interrupt)) from None


@contextlib.contextmanager
def _visible_usage() -> Iterator[None]:
    """What typer says of wrong options repeats them: without the terminal codes in them."""
    try:
        yield
    except _UsageError as fault:
        fault.message = visible(fault.message)
        raise


app = typer.Typer(
    name="moesim",
    cls=_Commands,
    help="Replay recorded expert routing on a model of a GPU cluster: where time goes, and what would help.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for _command in (
    simulate.demo,
    simulate.run,
    simulate.whatif,
    simulate.report,
    calibrate.calibrate,
    execute.execute,
    validate.validate,
    place.place,
    presets.presets,
):
    app.command()(_command)
app.add_typer(trace.app, name="trace")


def main() -> None:
    """Run the command line; a user's mistake ends with one line and the exit code of its error."""
    # A terminal that cannot show × or µ gets a question mark, not a traceback.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        with stoppable():
            app()
    except MoesimError as error:
        for line in error.log:
            tell(f"  {line}")
        tell(f"moesim: {error}")
        sys.exit(error.exit_code)
    except OSError as error:  # of the standard output; faults of other files are MoesimErrors
        tell(f"moesim: the output cannot be written: {error.strerror or error}")
        sys.exit(1)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        say(f"moesim {__version__}")
        raise typer.Exit
