"""What to mind of a comparison: the notes of all its runs, each once."""

from __future__ import annotations

from typing import Final

from moesim.analysis.result_file import Comparison
from moesim.report.comparison_answer import unranked
from moesim.report.point_names import named_runs
from moesim.spec.question import plural

_MOST: Final = 6


def comparison_notes(comparison: Comparison) -> list[str]:
    """Those of the scenario, then those of points; what not all runs share names the first that has it.

    What the answer says in place of a ranking of dispatch modes is left out.

    A note "Short." of all runs, and "Far off." of the point seed=2: ``['Short.', 'With seed=2: Far off.']``.
    """
    runs = named_runs(comparison)
    whose: dict[str, list[str]] = {}
    said = bool(unranked(comparison))
    for name, run in runs:
        for note in run.notes:
            if said and run.unseen and note.startswith(run.unseen):
                continue
            whose.setdefault(note, []).append(name)
    found = [note if len(names) == len(runs) else f"{_named(names)}: {note}" for note, names in whose.items()]
    hidden = len(found) - _MOST
    # Of one more the line that it is left out would be as long.
    return found if hidden <= 1 else [*found[:_MOST], f"{hidden} more notes of other points are in the JSON."]


def _named(names: list[str]) -> str:
    others = len(names) - 1
    return names[0][:1].upper() + names[0][1:] + (f" and {plural(others, 'other point')}" if others else "")
