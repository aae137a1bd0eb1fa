"""The picture of a study, written as text, so that it is the same on every machine."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from benchmarks.latency.pictures import COLOURS, Panel, _range, _svg, _ticks
from benchmarks.picture import MUTED, text
from cahp_opt.reports.study_page import Standings
from cahp_opt.studies.study import Standing, Study

WIDE, ROW, LEFT, TOP, GAP, STEP = 300, 26, 140, 84, 34, 0.02
TOLD = "filled: the best, or tied with it; bars: 95 % intervals of the difference from the best; dashed: unpruned"


def accuracies(study: Study, standings: Standings, title: str) -> str:
    """Accuracy by method, a panel per recovery and a colour per limit.

    A mark is filled if the method is the best there or ties with it; its bar is the interval of the difference
    from the best, around the method's own accuracy.
    """
    methods = list(dict.fromkeys(outcome.cell.method for outcome in study.outcomes))
    rows, high = len(methods), ROW * len(methods)
    colours = {limit: COLOURS[i % len(COLOURS)] for i, limit in enumerate(study.limits)}
    shown = [x for found in standings.values() for each in found for x in _bar(each)]
    across = _range([*shown, study.unpruned.value()], STEP)
    parts = [text(16, 24, escape(title), size=15)]
    for place, (limit, colour) in enumerate(colours.items()):
        x = 16 + 110 * place
        parts.append(f'<circle cx="{x + 5}" cy="44" r="4" fill="{colour}"/>')
        parts.append(text(x + 14, 48, escape(limit), size=12))
    names = [(escape(method), TOP + ROW * (row + 0.5) + 4) for row, method in enumerate(methods)]
    parts += [text(LEFT - 10, y, name, size=12, end="end") for name, y in names]
    panels = dict[str, Panel]()
    for recovery in dict.fromkeys(recovery for _, recovery in standings):
        left = LEFT + len(panels) * (WIDE + GAP)
        panels[recovery] = panel = Panel(left, TOP, WIDE, high, across, (0, rows))
        parts.append(text(left, TOP - 8, f"recovery: {escape(recovery)}", size=12))
        parts += panel.frame(_ticks(across, STEP), (), share=True)
        dense = [(study.unpruned.value(), 0), (study.unpruned.value(), rows)]
        parts.append(panel.line(dense, f'stroke="{MUTED}" stroke-dasharray="5 4"'))
    for (limit, recovery), found in standings.items():
        shift = (study.limits.index(limit) + 1) / (len(colours) + 1)
        for each in found:
            row = rows - methods.index(each.method) - shift
            panel, mean = panels[recovery], each.mean.value
            parts += mark(panel, row, mean, _bar(each), colours[limit], filled=each.ties)
    parts.append(text(16, TOP + high + 40, TOLD, size=11, fill=MUTED))
    return _svg(parts, LEFT + len(panels) * (WIDE + GAP), TOP + high + 54)


def mark(
    panel: Panel, row: float, mean: float, ends: Sequence[float], colour: str, *, filled: bool
) -> list[str]:
    """A mean with a bar between two ends, if there are any."""
    bar = panel.line([(x, row) for x in ends], f'stroke="{colour}" stroke-width="1.6"')
    x, y = panel.at(mean, row)
    fill = colour if filled else "white"
    return [bar, f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}" stroke="{colour}"/>']


def _bar(each: Standing) -> list[float]:
    """The ends of the bar of a method; none for the best."""
    behind = each.behind
    ends = [] if behind is None else [behind.low - behind.value, behind.high - behind.value]
    return [each.mean.value + end for end in ends]
