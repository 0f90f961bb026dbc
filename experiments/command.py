"""The command line of an experiment: a table in the terminal or one JSON object, and a figure."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from experiments.comparison import Comparison, Row, summary
from moesim.errors import MoesimError
from moesim.report.terminal import terminal
from traces.base.text import to_json, visible


def run_command(
    experiment: Callable[[], Comparison],
    arguments: Sequence[str] | None = None,
    *,
    draw: Callable[[Comparison, Path], None] | None = None,
) -> None:
    """Run an experiment as ``python -m experiments.NAME [--json] [-o OUT]`` asks.

    Args:
        draw: writes the figure, where it is not that of all experiments.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments.{experiment.__name__}",
        description=sys.modules[experiment.__module__].__doc__,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("-o", dest="out", type=Path, help="write the figure: a .svg or .png file")
    asked = parser.parse_args(arguments)
    with refusals():
        if asked.out is not None:
            from experiments.figure import check_figure, write_figure

            check_figure(asked.out)
        comparison = experiment()
        if asked.out is not None:
            (draw or write_figure)(comparison, asked.out)
    if asked.json:
        print(to_json(comparison.to_json(), indent=1))
    else:
        show(comparison, terminal())


@contextmanager
def refusals() -> Iterator[None]:
    """What the user did wrong inside the block ends the program with one line."""
    try:
        yield
    except MoesimError as error:
        print(visible(str(error)), file=sys.stderr)
        raise SystemExit(error.exit_code) from error


def show(comparison: Comparison, console: Console) -> None:
    """Print the tables."""
    console.print(_table(f"{comparison.name}: {comparison.source}", comparison.rows))
    totals = summary(comparison.rows)
    console.print(
        f"mean error {totals['mean_abs_error']:.1%}, largest {totals['max_abs_error']:.1%}, "
        f"mean with each row left out {totals['loo_mean_abs_error']:.1%}"
    )
    if "inside_90" in totals:
        drawn = [row.inside for row in comparison.rows if row.ends is not None]
        share = f"{totals['inside_90']:.0%}"
        console.print(f"{sum(drawn)} of {len(drawn)} rows ({share}) inside 90 % intervals made without them")
    for parameter in comparison.parameters:
        console.print(f"fitted: {parameter.name} {parameter.value} ({parameter.bound})")
    if comparison.checks:
        console.print(_table("not fitted, for comparison", comparison.checks))
    for remark in comparison.remarks:
        console.print(remark)


def _table(title: str, rows: Sequence[Row]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("case")
    for heading in ("measured", "predicted", "", "error", "left out"):
        table.add_column(heading, justify="left" if heading == "" else "right")
    for row in rows:
        left_out = "" if row.left_out is None else f"{row.left_out_error:+.1%}"
        numbers = (f"{row.measured:.4g}", f"{row.predicted:.4g}", row.unit, f"{row.error:+.1%}", left_out)
        table.add_row(row.case, *numbers)
    return table
