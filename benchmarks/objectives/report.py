"""Write docs/objectives.md from the results in benchmarks/results/objectives.

python benchmarks/objectives/report.py            rewrite it
python benchmarks/objectives/report.py --check    fail if it is not what the results say
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.objectives.scoring import Correlation, chosen, correlations, sizes
from benchmarks.pages import records, write_or_check

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "objectives"
DOCS = ROOT / "docs"
PAGE = "objectives.md"
Row = Mapping[str, Any]
TITLES = {"none": "without recovery", "refit": "after a refit"}
HEAD = """# Which objective says what removing heads does

Written by `python benchmarks/objectives/report.py` from `benchmarks/results/objectives/`; never edit it by hand.

Every objective is a function of calibration statistics that a solver maximises. Two questions, and two tables for
each recovery (nothing, or the closed-form `refit`):

- **Does it rank keep-sets?** Random keep-sets of every size, the same for every objective, are judged by the KL
  divergence (nats) from the unpruned model on held-out texts. The table shows Spearman's rank correlation between
  that and the loss by the objective: 1 is the same order, 0 is none. The interval is a bootstrap over the keep-sets.
- **Does it choose well?** The keep-set that maximises it is judged in the same way. A solver looks for the best
  values, and so for the errors of an objective: one that ranks random keep-sets well may still choose badly. This
  is the table to choose an objective by.

`benchmarks/objectives/catalogue.py` defines every objective; `density matched` means random masks that
keep the share of units that will be kept.
"""


def page(found: Sequence[Row]) -> str:
    """The whole page."""
    parts = [HEAD.strip()]
    for data in dict.fromkeys(record["settings"]["data"] for record in found):
        own = [record for record in found if record["settings"]["data"] == data]
        parts.append(f"## {data}")
        parts += [section(record) for record in own]
    return "\n\n".join(parts) + "\n"


def section(record: Row) -> str:
    """The tables of one recovery."""
    ranks, kl = correlations(record), chosen(record, "kl")
    title = TITLES[record["settings"]["recovery"]]
    accuracy = {
        name: {size: None if x is None else 100 * x for size, x in row.items()}
        for name, row in chosen(record, "accuracy").items()
    }
    sets = min(found.sets for found in ranks.values())
    best = sorted(kl, key=lambda name: mean_of(kl[name].values()))
    return "\n\n".join(
        [
            f"### {title[0].upper()}{title[1:]}",
            about(record),
            f"Rank correlation with the KL divergence of {sets} random keep-sets of every size, {title}:",
            rank_table(record, ranks),
            f"KL divergence of the keep-set that each objective chooses, {title} (`random`: the mean of "
            f"{sets}):",
            table(record, {name: kl[name] for name in best}, 3),
            f"Its accuracy in per cent (unpruned: {100 * record['dense']['accuracy']:.1f}; standard error "
            f"{100 * error(record):.1f}, smaller for differences between two keep-sets):",
            table(record, {name: accuracy[name] for name in best}, 1),
        ]
    )


def about(record: Row) -> str:
    """What was measured on what, in sentences."""
    told, settings = record["provenance"], record["settings"]
    seconds = statistics.median(row["seconds"] for row in record["judged"].values())
    versions = ", ".join(f"{name} {told['versions'][name]}" for name in ("torch", "transformers"))
    units = sum(block[1] for block in record["blocks"])
    return (
        f"{settings['calibration']} calibration texts (gate gradients and divergences of "
        f"{settings['gradients']}), {settings['held_out']} held-out texts, seed {settings['seed']}; {units} "
        f"units. {told['device']}, {told['threads']} thread{'s' * (told['threads'] != 1)}, {versions}, "
        f"{told['date']}; judged on {told['judged on']}, {seconds:.0f} s per keep-set."
    )


def rank_table(record: Row, ranks: Mapping[str, Correlation]) -> str:
    """Rank correlations, the best mean first."""
    wanted = sizes(record)
    head = ["objective", *(str(size) for size in wanted), "mean [95 %]"]
    lines = [row(head), "|---" * len(head) + "|"]
    for name in sorted(ranks, key=lambda name: rank_of(ranks[name])):
        found = ranks[name]
        whole = number(found.mean, 2)
        if found.interval is not None:
            whole += " [{:.2f}, {:.2f}]".format(*found.interval)
        lines.append(row([name, *(number(found.by_size[size], 2) for size in wanted), whole]))
    return "\n".join(lines)


def table(record: Row, rows: Mapping[str, Mapping[int, float | None]], digits: int) -> str:
    """One row per objective, and one column per size."""
    wanted = sizes(record)
    head = ["objective", *(str(size) for size in wanted)]
    lines = [row(head), "|---" * len(head) + "|"]
    lines += [
        row([name, *(number(by_size[size], digits) for size in wanted)])
        for name, by_size in rows.items()
    ]
    return "\n".join(lines)


def row(cells: Sequence[str]) -> str:
    """A line of a table."""
    return "| " + " | ".join(cells) + " |"


def rank_of(found: Correlation) -> float:
    """What to sort by: the largest mean first, and none last."""
    return float("inf") if found.mean is None else -found.mean


def number(x: float | None, digits: int) -> str:
    """With so many digits after the point; nothing for None."""
    return "" if x is None else f"{x:.{digits}f}"


def mean_of(values: Sequence[float | None] | Any) -> float:
    """The mean; infinite where a value is missing."""
    known = [x for x in values if x is not None]
    return statistics.mean(known) if len(known) == len(list(values)) else float("inf")


def error(record: Row) -> float:
    """Standard error of the dense model's accuracy."""
    share = record["dense"]["accuracy"]
    return float((share * (1 - share) / record["settings"]["held_out"]) ** 0.5)


def main() -> int:
    """Write, or check."""
    found = list(records(RESULTS).values())
    if not found:
        print("no results; run benchmarks/objectives/run.py first", file=sys.stderr)
        return 1
    return write_or_check({PAGE: page(found)}, DOCS, PAGE, PAGE, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
