"""The result of a run as one screen of lines."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from cahp_opt.costs.checks import Check
from cahp_opt.costs.quantities import amount, unit_of_measure
from cahp_opt.reports.page import REPORT_PAGE
from cahp_opt.reports.wording import (
    figure_meaning,
    gap_in_words,
    kept_in_words,
    number,
    paired_figures,
    percent,
    value_in_words,
)
from cahp_opt.runs.report import Report, verdict

LINES = 19
"""The most lines, so that one screen of 80 by 24 holds them; further notes are in the page alone."""

_LEFT = 10  # columns of the names


def summary(report: Report, folder: str, *, width: int = 80) -> list[str]:
    """The lines: what is kept, what it takes, how good it is, where the files are.

    Args:
        report: what happened.
        folder: where the files are.
        width: columns of the terminal.
    """
    last = _lines(
        "written", f"{folder}: {REPORT_PAGE} shows all of this, and how it came about", width
    )
    lines = [line for name, told in _facts(report) for line in _lines(name, told, width)]
    lines = _first(lines, LINES - 2 - len(last), width)
    notes = list[str]()
    for index, note in enumerate(report.notes):
        shown, left = _lines("note", note, width), len(report.notes) - index
        if len(lines) + len(notes) + len(shown) + len(last) + (left > 1) > LINES:
            more = "note" if left == 1 else "notes"
            notes += _lines(
                "note", f"{left} {more if not notes else f'more {more}'} in {REPORT_PAGE}", width
            )
            break
        notes += shown
    return [*lines, *notes, *last]


def _facts(report: Report) -> Iterator[tuple[str, str]]:
    """Pairs of a name and what is to be said; without a name it goes on with the one before."""
    selection, (before, after) = report.selection, report.parameters
    yield "kept", f"{kept_in_words(selection)}; {percent(after / before)} of the weights"
    yield "chosen", f"{value_in_words(selection)}; {gap_in_words(selection)}"
    for name, check in report.latency.items():
        yield "time" if _unit(name) == "s" else "cost", _taken(name, check, len(report.latency) > 1)
    for name, check in report.goals.items():
        limit = amount(check.limit, _unit(name))
        yield "goal", f"{name}, at most {limit}: {verdict(check)}" if limit else name
    yield from _quality(report)


def _taken(name: str, check: Check, several: bool) -> str:
    unit = _unit(name)
    told = (
        f"{check.ratio:.3f} of the unpruned, {amount(check.measured, unit)} in place of "
        f"{amount(check.dense_measured, unit)}, measured"
    )
    if check.predicted_ratio is not None:
        told += f"; {check.predicted_ratio:.3f} predicted"
    if unit == "s":
        told += f"; speed-up {check.speed_up:.2f}"
    return f"{name}: {told}" if several or unit != "s" else told


def _quality(report: Report) -> Iterator[tuple[str, str]]:
    fidelity = report.fidelity
    if fidelity is None:
        yield "quality", "not measured: there were no texts to compare the models on"
        return
    pooled = f", {fidelity.pooling} pooling" if fidelity.pooling else ""
    yield (
        "quality",
        f"on {fidelity.examples:,} {report.medium.value} that nothing was fitted on{pooled}:",
    )
    after = fidelity.after or {}
    for name, dense, value in paired_figures(fidelity.before):
        told = f"{figure_meaning(name).name} {number(value)} after slicing"
        if fidelity.after is not None:
            told += f", {number(after.get(name))} after {report.recovery.value}"
        if dense is not None:
            told += f"; unpruned {number(dense)}"
        yield "", told


def _first(lines: list[str], most: int, width: int) -> list[str]:
    """The first lines, with a word on those that are left out."""
    if len(lines) <= most:
        return lines
    return [*lines[: most - 1], *_lines("", f"... and more in {REPORT_PAGE}", width)]


def _lines(name: str, told: str, width: int) -> list[str]:
    return textwrap.wrap(
        told,
        width,
        initial_indent=f"{name:<{_LEFT}}",
        subsequent_indent=" " * _LEFT,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _unit(name: str) -> str:
    """The unit of measure of a check: seconds, unless the name is of another resource."""
    return unit_of_measure(name) or "s"
