"""The command line: its commands, and what becomes of an error. Only here are exit codes set.

What a command needs is imported inside it: ``moesim --help`` must not wait for numba.
"""

from __future__ import annotations

import io
import sys
from typing import Annotated, Any

import typer
import typer.core

from moesim import __version__
from moesim.commands import calibrate, execute, place, presets, simulate, trace, validate
from traces.base.errors import MoesimError


class _Commands(typer.core.TyperGroup):
    """All commands; of an interruption typer would say that they were aborted, with code 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("moesim: interrupted", file=sys.stderr)
            raise typer.Exit(130) from None


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
        app()
    except MoesimError as error:
        print(f"moesim: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:  # of the standard output; faults of other files are MoesimErrors
        print(f"moesim: the output cannot be written: {error.strerror or error}", file=sys.stderr)
        sys.exit(1)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"moesim {__version__}")
        raise typer.Exit
