"""Pictures of the results of `run.py`, written as text, so that they are the same on every machine."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from itertools import pairwise
from typing import Any, NamedTuple

from benchmarks.picture import INK, MUTED, text

Row = dict[str, Any]
Point = tuple[float, float]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6b4fa0", "#7a7a7a")
EXECUTIONS = {"eager": "eager", "cuda_graph": "CUDA graph", "compiled": "compiled"}
BAND = 0.03
"""The error that is drawn as a band around equality."""


class Panel(NamedTuple):
    """A plot: where it lies, and the range of its axes."""

    left: float
    top: float
    width: float
    height: float
    across: Point
    up: Point

    def at(self, x: float, y: float) -> Point:
        """Where a point lies in the picture."""
        right = (x - self.across[0]) / (self.across[1] - self.across[0])
        above = (y - self.up[0]) / (self.up[1] - self.up[0])
        return self.left + self.width * right, self.top + self.height * (1 - above)

    def line(self, points: Iterable[Point], style: str, shape: str = "polyline") -> str:
        """Points that are joined."""
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in (self.at(*point) for point in points))
        return f'<{shape} points="{places}" {style}/>'

    def curve(self, points: Sequence[Point], colour: str) -> list[str]:
        """A line with a marker at every point."""
        line = self.line(points, f'fill="none" stroke="{colour}" stroke-width="1.2"')
        return [line, *self.dots(points, colour, 2.2)]

    def dots(self, points: Iterable[Point], colour: str, radius: float) -> list[str]:
        """Markers, in one group so that the file stays small."""
        places = (self.at(*point) for point in points)
        circles = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>' for x, y in places]
        return [f'<g fill="{colour}">', *circles, "</g>"]

    def frame(self, columns: Sequence[float], rows: Sequence[float], share: bool) -> list[str]:
        """The border, lines at ``rows``, and the numbers at both axes; columns are shares if ``share``."""
        found = [
            f'<rect x="{self.left:.1f}" y="{self.top:.1f}" width="{self.width:.1f}" '
            f'height="{self.height:.1f}" fill="none" stroke="{MUTED}" stroke-width="0.6"/>'
        ]
        for row in rows:
            x, y = self.at(self.across[0], row)
            found.append(
                f'<path d="M{x:.1f} {y:.1f}h{self.width:.1f}" stroke="#e2e8f0" stroke-width="0.8"/>'
            )
            found.append(text(x - 5, y + 3.5, _percent(row), size=10, fill=MUTED, end="end"))
        for column in columns:
            x, y = self.at(column, self.up[0])
            words = _percent(column) if share else f"{column:g}"
            found.append(text(x, y + 13, words, size=10, fill=MUTED, end="middle"))
        return found


def blocks(record: Row) -> str:
    """Seconds of a block by count of units, and what every further unit adds, for every model and phase.

    Both as shares of the seconds at the full count; one curve per execution. Of a model whose blocks
    differ, the most common one is drawn.
    """
    cases = [case for case in record["cases"] if case["outcome"] == "measured"]
    shown = list(dict.fromkeys(case["execution"] for case in cases))
    groups: dict[tuple[str, str], dict[str, list[float]]] = {}
    units: dict[tuple[str, str], str] = {}
    for case in cases:
        key = case["model"], case["phase"]
        most = max(case["table"]["kinds"], key=lambda kind: kind["blocks"])["seconds"]
        if most[-1] > 0:
            groups.setdefault(key, {})[case["execution"]] = [s / most[-1] for s in most]
            units[key] = case["unit"].replace("_", " ")
    shares = [share for curves in groups.values() for share in curves.values()]
    highest = max((max(share) for share in shares), default=1)
    added = [b - a for share in shares for a, b in pairwise(share)]
    steps = _range([*added, 0.0], 0.05)
    wide, high, columns = 240, 320, min(3, max(1, len(groups)))
    parts = [
        text(16, 24, escape(f"{record['provenance']['device']}: time of a block"), size=15),
        *_legend([EXECUTIONS[name] for name in shown], 16, 42, 110),
    ]
    for number, (key, curves) in enumerate(groups.items()):
        left, top = 50 + wide * (number % columns), 84 + high * (number // columns)
        count = max(len(share) for share in curves.values()) - 1
        ticks = range(0, count + 1, max(1, math.ceil(count / 6)))
        parts.append(text(left, top - 8, escape(" ".join(key)), size=12))
        upper = Panel(
            left, top, wide - 60, 130, (-0.4, count + 0.4), (0, max(1.05, highest + 0.05))
        )
        lower = Panel(left, top + 146, wide - 60, 100, upper.across, steps)
        parts += upper.frame((), (0, 0.5, 1), share=False)
        parts += lower.frame(ticks, _ticks(steps, 0.05), share=False)
        for execution, share in curves.items():
            colour = COLOURS[shown.index(execution)]
            parts += upper.curve(list(enumerate(share)), colour)
            gains = [(k, share[k] - share[k - 1]) for k in range(1, len(share))]
            parts += lower.curve(gains, colour)
        words = f"units kept ({units[key]})"
        parts.append(text(left + (wide - 60) / 2, top + 274, words, size=10, end="middle"))
    height = 76 + high * math.ceil(len(groups) / columns)
    label = "above: share of the time with all units; below: what every further unit adds to it"
    parts.append(text(16, height - 8, label, size=11, fill=MUTED))
    return _svg(parts, max(wide * columns + 20, 480), height)


def predictions(record: Row) -> str:
    """Predicted against measured time of every keep-set, as shares of the unpruned time."""
    cases = [case for case in record["cases"] if case["outcome"] == "measured"]
    models = list(dict.fromkeys(f"{case['model']} {case['phase']}" for case in cases))
    shown: dict[str, list[tuple[str, list[Point]]]] = {}
    for case in cases:
        name = f"{case['model']} {case['phase']}"
        shown.setdefault(case["execution"], []).append((name, shares(case)))
    both = [value for found in shown.values() for _, points in found for p in points for value in p]
    axis = _range([*both, 1.0], 0.1)
    side = 300
    parts = [
        text(16, 24, escape(f"{record['provenance']['device']}: predicted and measured"), size=15),
        *_legend(models, 16, 42, 190, columns=3 if len(shown) > 1 else 2),
    ]
    top = 64 + 18 * math.ceil(len(models) / (3 if len(shown) > 1 else 2))
    for number, (execution, found) in enumerate(shown.items()):
        panel = Panel(62 + number * (side + 70), top, side, side, axis, axis)
        low, high = axis
        parts.append(text(panel.left, top - 8, EXECUTIONS[execution], size=12))
        ticks = _ticks(axis, 0.1)
        parts += panel.frame(ticks, ticks, share=True)
        parts += _band(panel, low, high)
        for name, points in found:
            parts += panel.dots(points, COLOURS[models.index(name) % len(COLOURS)], 2)
        middle = panel.left + side / 2
        parts.append(text(middle, top + side + 32, "measured", size=11, end="middle"))
        x, y = panel.left - 44, top + side / 2
        parts.append(
            f'<g transform="rotate(-90 {x:.1f} {y:.1f})">'
            + text(x, y, "predicted", size=11, end="middle")
            + "</g>"
        )
    label = f"shares of the time of the unpruned model; the band is {100 * BAND:g} % to either side"
    parts.append(text(16, top + side + 58, label, size=11, fill=MUTED))
    return _svg(parts, max(62 + len(shown) * (side + 70), 480), top + side + 70)


def shares(case: Row) -> list[Point]:
    """Measured and predicted share of the unpruned time, each of its own run, of every keep-set."""
    dense = case["table"]["dense"]
    return [(row["measured"] / row["dense"], row["predicted"] / dense) for row in case["sets"]]


def _band(panel: Panel, low: float, high: float) -> list[str]:
    """Where predicted and measured are equal, and the band around, within the panel."""
    above = [(low, low * (1 + BAND)), (high / (1 + BAND), high), (high, high)]
    below = [(high, high * (1 - BAND)), (low / (1 - BAND), low), (low, low)]
    return [
        panel.line([*above, *below], 'fill="#dbe4ee"', "polygon"),
        panel.line([(low, low), (high, high)], f'stroke="{MUTED}" stroke-width="0.8"'),
    ]


def _legend(names: Sequence[str], x: float, y: float, wide: float, columns: int = 4) -> list[str]:
    found: list[str] = []
    for number, name in enumerate(names):
        left, top = x + wide * (number % columns), y + 18 * (number // columns)
        colour = COLOURS[number % len(COLOURS)]
        found.append(f'<circle cx="{left + 5:.1f}" cy="{top:.1f}" r="4" fill="{colour}"/>')
        found.append(text(left + 14, top + 4, escape(name), size=11))
    return found


def _range(values: Sequence[float], step: float) -> Point:
    """The multiples of ``step`` around the values."""
    low, high = math.floor(min(values) / step + 1e-9), math.ceil(max(values) / step - 1e-9)
    return low * step, (high if high > low else low + 1) * step


def _ticks(around: Point, step: float) -> list[float]:
    """Multiples of ``step`` in the range, some seven of them at most."""
    low, high = round(around[0] / step), round(around[1] / step)
    every = max(1, math.ceil((high - low) / 7))
    return [step * k for k in range(low, high + 1) if k % every == 0]


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def _svg(parts: Sequence[str], width: float, height: float) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="system-ui, sans-serif" fill="{INK}">\n'
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="white"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )
