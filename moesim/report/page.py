"""What all pages share: the frame around their sections, and the parts that more than one page has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

from moesim.analysis.scenario_facts import TraceFacts
from moesim.report.markup import Element, Markup, join, tag
from moesim.report.table import Table, words
from moesim.spec.question import brief


def page(title: str, sections: Iterable[Markup]) -> str:
    """One HTML page that opens offline and loads nothing."""
    style = Markup(resources.files("moesim.report").joinpath("style.css").read_text(encoding="utf-8"))
    head = join(
        [
            Markup('<meta charset="utf-8">'),
            Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
            # An empty icon: without one, browsers ask for /favicon.ico.
            Markup('<link rel="icon" href="data:,">'),
            tag("title", f"{title} · moesim"),
            tag("style", style),
        ],
        "\n",
    )
    body = tag("main", _header(title), *(join(["", section], "\n") for section in sections))
    return f'<!doctype html>\n<html lang="en">\n{tag("head", head)}\n{tag("body", body)}\n</html>\n'


def _header(title: str) -> Markup:
    buttons = [
        tag(
            "label",
            Markup(
                f'<input type="radio" name="theme" id="theme-{name}"{" checked" if name == "auto" else ""}> '
            ),
            name,
        )
        for name in ("auto", "light", "dark")
    ]
    return tag("header", tag("span", f"moesim · {title}"), tag("fieldset", *buttons, aria_label="colours"))


def opening(asked: str, found: str, note: str) -> Markup:
    """Question, answer, and what the reader should know of the data."""
    return join([tag("h1", asked), tag("p", found, class_="answer"), tag("p", note, class_="note")])


def section(heading: str, *content: Element) -> Markup:
    """A part of the page under its heading."""
    return tag("section", tag("h2", heading), *content)


def trace_note(trace: TraceFacts) -> str:
    """Where the routing comes from and how skewed it is."""
    kind = "Generated routing" if trace.generated else "Recorded routing"
    return (
        f"{kind}: {trace.name} ({trace.origin or 'origin not stated'}), {trace.tokens:,} tokens of "
        f"{trace.requests:,} requests, hottest expert at {trace.skew:.2f} times "
        "the mean load, averaged over layers."
    )


def figures_list(figures: Sequence[tuple[str, str, str]]) -> Markup:
    """Key figures: name, value, and a line that explains it."""
    return tag(
        "dl",
        *(
            tag("div", tag("dt", name), tag("dd", value), tag("dd", detail, class_="small"))
            for name, value, detail in figures
        ),
        class_="figures",
    )


def facts_table(facts: Iterable[tuple[str, str]], heads: Sequence[str] = ("what", "value")) -> Table:
    """Two columns: what, and its value."""
    return Table(words(*heads), [(name, tag("code", value)) for name, value in facts])


def resolved(scenario: Mapping[str, Any]) -> Markup:
    """The resolved scenario, opened on a click."""
    rows = ((str(key), brief(value)) for key, value in scenario.items())
    return tag("details", tag("summary", "the resolved scenario"), facts_table(rows, ("key", "value")))


def listed(heading: str, lines: Sequence[str]) -> list[Markup]:
    """A section with a list; none where there is nothing to list."""
    return [section(heading, tag("ul", *(tag("li", line) for line in lines)))] if lines else []


def provenance(
    facts: Mapping[str, Any],
    scenario: Mapping[str, Any],
    *,
    before: Iterable[Element] = (),
    after: Iterable[Element] = (),
) -> Markup:
    """Where the numbers come from: facts between what stands ``before`` and ``after``, the scenario."""
    named = ((key.replace("_", " "), brief(value)) for key, value in facts.items())
    return section("Where the numbers come from", *before, facts_table(named), *after, resolved(scenario))
