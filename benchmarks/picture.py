"""Draw the README's picture from a folder that `cahp demo` or `cahp prune` wrote.

python benchmarks/picture.py pruned-minilm
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cahp_opt import HeadSpace, Selection
from cahp_opt.runs.report import REPORT_FILE, Report
from cahp_opt.torch.checkpoints.checkpoint import SELECTION_FILE

CELL, GAP, LEFT, TOP, BAR = 22, 4, 150, 64, 220
INK, MUTED, KEPT, DROPPED = "#1f2933", "#64748b", "#2563eb", "#e2e8f0"


def text(
    x: float, y: float, words: str, *, size: int = 13, fill: str = INK, end: str = "start"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{fill}" text-anchor="{end}">'
        f"{words}</text>"
    )


def box(x: float, y: float, width: float, height: float, fill: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="4" '
        f'fill="{fill}"/>'
    )


def rows(space: HeadSpace) -> list[list[int]]:
    """The blocks side by side: attention, and the feed-forward part that follows it."""
    found: list[list[int]] = []
    for number, block in enumerate(space.blocks):
        if block.unit.of_attention or not found or len(found[-1]) == 2:
            found.append([number])
        else:
            found[-1].append(number)
    return found


def draw(selection: Selection, report: dict[str, Any], name: str) -> str:
    """Every unit of attention as a square, kept or not, neurons as bars, and the times as bars."""
    space, heads, goal = selection.space, selection.heads(), report["goals"]["latency"]
    kept = " and ".join(
        f"{total.kept:,} of {total.of:,} {total.what}" for total in space.totals(selection.counts)
    )
    share = goal["limit"] / goal["dense_measured"]
    parts = [
        text(20, 30, f"{name}: {kept} kept", size=17),
        text(
            20,
            50,
            f"for {share:.2g} of the end-to-end time; certified gap to the best keep-set: "
            f"{100 * selection.gap:.2g} %",
            fill=MUTED,
        ),
    ]
    lines, portions = rows(space), space.portions(selection.counts)
    row_name = "layer" if all(len(line) == 2 for line in lines) else "block"
    squares = int(max(space.units[space.of_attention], default=0)) * (CELL + GAP)
    bars_left = LEFT + squares + (GAP * 4 if squares else 0)
    both = squares and not space.of_attention.all()
    top = TOP + 16 if both else TOP
    if both:
        parts.append(text(LEFT, top - 6, "heads", size=11, fill=MUTED))
        parts.append(text(bars_left, top - 6, "neurons", size=11, fill=MUTED))
    for number, line in enumerate(lines):
        y = top + number * (CELL + GAP)
        parts.append(text(LEFT - 12, y + 16, f"{row_name} {number}", fill=MUTED, end="end"))
        for b in line:
            block, part = space.blocks[b], portions[b]
            if not block.unit.of_attention:
                parts.append(box(bars_left, y, BAR, CELL, DROPPED))
                if part.kept:
                    parts.append(box(bars_left, y, BAR * part.kept / part.of, CELL, KEPT))
                told = f"{part.kept:,} of {part.of:,}"
                parts.append(text(bars_left + BAR + 8, y + 16, told, fill=MUTED))
                continue
            for unit in range(block.units):
                fill = KEPT if unit in heads[block.name] else DROPPED
                parts.append(box(LEFT + unit * (CELL + GAP), y, CELL, CELL, fill))
    y = top + len(lines) * (CELL + GAP) + 26
    bars = [
        ("unpruned, measured", goal["dense_measured"], MUTED),
        ("budget", goal["limit"], INK),
        ("predicted", goal["predicted"], "#93c5fd"),
        ("sliced, measured", goal["measured"], KEPT),
    ]
    full = max(seconds for _, seconds, _ in bars)
    for name, seconds, fill in bars:
        parts.append(text(LEFT - 12, y + 13, name, fill=MUTED, end="end"))
        parts.append(box(LEFT, y, 260 * seconds / full, 16, fill))
        parts.append(text(LEFT + 260 * seconds / full + 8, y + 13, f"{1e3 * seconds:.1f} ms"))
        y += 24
    right = LEFT + squares if space.of_attention.all() else bars_left + BAR + 110
    width = max(right, LEFT + 340) + 30
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y + 10}" '
        f'viewBox="0 0 {width} {y + 10}" font-family="system-ui, sans-serif">\n'
        f'<rect width="{width}" height="{y + 10}" fill="white"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("folder", type=Path)
    options.add_argument("--name", default="all-MiniLM-L6-v2", help="of the model")
    options.add_argument("--output", type=Path, default=Path("docs/demo.svg"))
    given = options.parse_args()
    picture = draw(
        Selection.load(given.folder / SELECTION_FILE),
        Report.read(given.folder / REPORT_FILE),
        given.name,
    )
    given.output.parent.mkdir(exist_ok=True)
    given.output.write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
