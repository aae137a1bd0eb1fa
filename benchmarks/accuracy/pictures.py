"""Pictures of the results of `run.py`, written as text, so that they are the same on every machine."""

from __future__ import annotations

from collections.abc import Callable
from html import escape

from benchmarks.accuracy.figures import (
    RECOVERIES,
    Row,
    budgets,
    mean_of,
    methods,
    recoveries,
    those,
)
from benchmarks.latency.pictures import COLOURS, Panel, Point, _range, _svg, _ticks
from benchmarks.picture import INK, MUTED, box, text

PALETTE = (*COLOURS, "#a6761d", "#66a61e", "#1f2933")


def heads(record: Row) -> str:
    """Test accuracy by number of units kept."""
    total = sum(record["units"])
    return _curves(
        record, "units kept", lambda row: sum(row["counts"]), (0, total), share=False, timed=False
    )


def latencies(record: Row) -> str:
    """Test accuracy by predicted share of the unpruned time."""
    floor = record["table"]["floor"] / record["table"]["dense"]
    across = _range([floor, 1.0], 0.1)
    return _curves(
        record,
        "predicted share of the unpruned time",
        lambda row: row["latency"],
        across,
        share=True,
        timed=True,
    )


def _curves(
    record: Row,
    label: str,
    place: Callable[[Row], float],
    across: Point,
    *,
    share: bool,
    timed: bool,
) -> str:
    """A panel per recovery with a curve per method, through the means over seeds."""
    shown = methods(record)
    dense = record["dense"]["test"]
    curves: dict[str, dict[str, list[Point]]] = {}
    for recovery in recoveries(record):
        for method in shown:
            points = list[Point]()
            for budget in budgets(record):
                rows = those(record, recovery=recovery, method=method, budget=budget)
                x, y = mean_of(rows, place), mean_of(rows, lambda row: row["test"])
                if x and y and (timed or "." not in budget):
                    points.append((x.value, y.value))
            curves.setdefault(recovery, {})[method] = sorted(points)
    values = [y for found in curves.values() for points in found.values() for _, y in points]
    up = _range([*values, dense], 0.05)
    side, high, top = 300, 260, 64 + 18 * -(-len(shown) // 3)
    parts = [
        text(16, 24, escape(f"{record['data']}: test accuracy"), size=15),
        *_legend([record["names"][name] for name in shown], 16, 42),
    ]
    for number, (recovery, found) in enumerate(curves.items()):
        panel = Panel(62 + number * (side + 60), top, side, high, across, up)
        step = 0.1 if share else max(1, across[1] // 6)
        columns = (
            _ticks(across, step) if share else [step * k for k in range(int(across[1] / step) + 1)]
        )
        parts.append(text(panel.left, top - 8, RECOVERIES[recovery], size=12))
        parts += panel.frame(columns, _ticks(up, 0.05), share)
        style = f'fill="none" stroke="{MUTED}" stroke-width="1" stroke-dasharray="5 4"'
        parts.append(panel.line([(across[0], dense), (across[1], dense)], style))
        for method, points in found.items():
            parts += panel.curve(points, PALETTE[shown.index(method) % len(PALETTE)])
        parts.append(text(panel.left + side / 2, top + high + 32, label, size=11, end="middle"))
    parts.append(
        text(
            16,
            top + high + 58,
            "means over seeds; the dashed line is the unpruned model",
            fill=MUTED,
        )
    )
    return _svg(parts, max(62 + len(curves) * (side + 60), 700), top + high + 70)


def layers(record: Row, budget: str, recovery: str) -> str:
    """How many units every method keeps in each block, mean over seeds."""
    shown = methods(record, those(record, budget=budget, recovery=recovery))
    units = record["units"]
    cell, left, top = 40, 290, 84
    parts = [
        text(16, 24, escape(f"{record['data']}: units kept per block, {budget} in all"), size=15),
        text(16, 44, f"means over seeds; chosen for: {RECOVERIES[recovery].lower()}", fill=MUTED),
        *(
            text(left + cell * (b + 0.5), top - 8, str(b), size=11, fill=MUTED, end="middle")
            for b in range(len(units))
        ),
    ]
    for number, method in enumerate(shown):
        rows = those(record, budget=budget, recovery=recovery, method=method)
        y = top + number * 26
        parts.append(text(left - 12, y + 16, escape(record["names"][method]), end="end"))
        for b, most in enumerate(units):
            kept = sum(row["counts"][b] for row in rows) / len(rows)
            colour = _blue(kept / most)
            parts.append(box(left + cell * b + 1, y, cell - 2, 22, colour))
            ink = INK if kept < 0.55 * most else "white"
            parts.append(
                text(
                    left + cell * (b + 0.5), y + 15, f"{kept:.1f}", size=11, fill=ink, end="middle"
                )
            )
    return _svg(parts, left + cell * len(units) + 20, top + 26 * len(shown) + 14)


def _blue(share: float) -> str:
    """White for none of the units, blue for all."""
    ends = ((241, 245, 249), (37, 99, 235))
    return "#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in zip(*ends, strict=True))


def _legend(names: list[str], x: float, y: float) -> list[str]:
    found = list[str]()
    for number, name in enumerate(names):
        left, top = x + 230 * (number % 3), y + 18 * (number // 3)
        colour = PALETTE[number % len(PALETTE)]
        found.append(f'<circle cx="{left + 5:.1f}" cy="{top:.1f}" r="4" fill="{colour}"/>')
        found.append(text(left + 14, top + 4, escape(name), size=11))
    return found
