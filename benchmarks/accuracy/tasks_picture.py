"""The picture of all tasks together: what every method loses at every limit."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from benchmarks.accuracy.pictures import TOLD, mark
from benchmarks.accuracy.tasks import OverTasks, Place, most_errors, ties
from benchmarks.latency.pictures import COLOURS, Panel, _svg
from benchmarks.picture import MUTED, text

WIDE, ROW, LEFT, TOP, GAP = 250, 24, 110, 74, 30
SHOWN = (-5.0, 1.0)
"""Points against the unpruned models that an axis shows; what lost more is an arrow and a number."""


def drawn(found: Mapping[Place, Mapping[str, OverTasks]], title: str) -> str:
    """A panel for every place, a row for every method, its mean in points against the unpruned models.

    A mark is filled if the method is the best there or ties with it; its bar is the interval of the difference from the
    best, around the method's own mean.
    """
    names = list(dict.fromkeys(name for methods in found.values() for name in methods))
    rows, high = len(names), ROW * len(names)
    parts = [text(16, 24, escape(title), size=15)]
    for row, name in enumerate(names):
        parts.append(text(LEFT - 8, TOP + ROW * (row + 0.5) + 4, escape(name), size=12, end="end"))
    for place, (where, methods) in enumerate(found.items()):
        panel = Panel(LEFT + place * (WIDE + GAP), TOP, WIDE, high, SHOWN, (0, rows))
        parts.append(text(panel.left, TOP - 8, escape(", ".join(where)), size=12))
        parts += panel.frame(range(-5, 2), (), share=False)
        parts.append(panel.line([(0, 0), (0, rows)], f'stroke="{MUTED}" stroke-dasharray="5 4"'))
        best = ties(methods)
        first = next(iter(methods.values()))
        for name, each in methods.items():
            _, error = each.behind(first)
            half = 100 * most_errors(methods) * error
            parts += _mark(
                panel, rows - names.index(name) - 0.5, -100 * each.lost, half, name in best
            )
    end = TOP + high
    parts.append(text(LEFT, end + 32, "points of accuracy against the unpruned models", size=11))
    parts.append(text(16, end + 52, TOLD, size=11, fill=MUTED))
    return _svg(parts, max(LEFT + len(found) * (WIDE + GAP), 620), end + 64)


def _mark(panel: Panel, row: float, mean: float, half: float, tied: bool) -> list[str]:
    colour = COLOURS[0]
    if mean < SHOWN[0]:
        x, y = panel.at(SHOWN[0], row)
        arrow = f'<path d="M{x + 3:.1f} {y:.1f}l8 -4v8z" fill="{colour}"/>'
        return [arrow, text(x + 15, y + 4, f"{mean:.1f}", size=11, fill=MUTED)]
    ends = (max(mean - half, SHOWN[0]), min(mean + half, SHOWN[1]))
    return mark(panel, row, mean, ends, colour, filled=tied)
