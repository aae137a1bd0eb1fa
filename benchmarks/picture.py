"""Draw the README's picture from a folder that `cahp demo` or `cahp prune` wrote.

python benchmarks/picture.py pruned-minilm
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cahp_opt import Selection
from cahp_opt.runs.report import REPORT_FILE, Report
from cahp_opt.torch.checkpoints.checkpoint import SELECTION_FILE

CELL, GAP, LEFT, TOP = 22, 4, 150, 64
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


def draw(selection: Selection, report: dict[str, Any], name: str) -> str:
    """Every unit as a square, kept or not, and the times as bars."""
    space, heads = selection.space, selection.heads()
    parts = [
        text(
            20,
            30,
            f"{name}: {int(selection.kept.sum())} of {space.n} heads kept",
            size=17,
        ),
        text(
            20,
            50,
            f"for 0.8 of the end-to-end time; certified gap to the best keep-set: {100 * selection.gap:.2g} %",
            fill=MUTED,
        ),
    ]
    for row, block in enumerate(space.blocks):
        y = TOP + row * (CELL + GAP)
        parts.append(text(LEFT - 12, y + 16, f"block {row}", fill=MUTED, end="end"))
        for unit in range(block.units):
            kept = unit in heads[block.name]
            parts.append(box(LEFT + unit * (CELL + GAP), y, CELL, CELL, KEPT if kept else DROPPED))
    y = TOP + len(space.blocks) * (CELL + GAP) + 26
    goal = report["goals"]["latency"]
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
    width = LEFT + max(int(space.units.max()) * (CELL + GAP), 340) + 30
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
