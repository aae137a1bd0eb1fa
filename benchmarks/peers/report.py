"""Write docs/peers.md from benchmarks/results/peers, or check it.

python benchmarks/peers/report.py            write it
python benchmarks/peers/report.py --check    fail if it is not what the results say
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.pages import records, write_or_check

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "peers"
DOCS = ROOT / "docs"
PAGE = "peers.md"

Row = Mapping[str, Any]

HEAD = """# Beside other libraries

Written by [benchmarks/peers/report.py](../benchmarks/peers/report.py) from what
[benchmarks/peers/run.py](../benchmarks/peers/run.py) measured. Every library gets the same arrays in a process of its own, in one
environment, with one thread. Values are computed by the same code in double precision. Times are those of the processor, which a shared
machine changes less than those on the clock.
"""


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    head = f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"
    return "\n".join([head, *(f"| {' | '.join(row)} |" for row in rows)])


def coverage(rows: Sequence[Row]) -> str:
    """Facility location and graph cut: seconds, and how many times those of this library."""
    cells: list[list[str]] = []
    for (objective, n, keep), group in groupby(rows, lambda r: (r["objective"], r["n"], r["keep"])):
        found = list(group)
        own = next(r["processor_seconds"] for r in found if r["library"] == "cahp_opt")
        for row in found:
            name = [objective, f"{n:,}", f"{keep:,}", row["library"]]
            if "error" in row:
                cells.append([*name, row["error"].splitlines()[-1], "", "", ""])
                continue
            spent, compiling = row["processor_seconds"], row.get("compiling_seconds", 0.0)
            times = f"{spent / own:.1f}"
            if compiling >= spent:  # it is measured on a call of its own
                times += " (all of it compiling)"
            elif compiling:
                times += f" ({(spent - compiling) / own:.1f} without compiling)"
            cells.append(
                [
                    *name,
                    f"{row['value']:.9g}",
                    f"{spent:.2f}",
                    times,
                    f"{row['peak_bytes'] / 2**30:.2f}",
                ]
            )
    columns = ("objective", "n", "kept", "library", "value", "s", "times ours", "peak GiB")
    return (
        "## Lazy greedy for coverage\n\nFrom a float32 similarity to the selection: checks, copies and conversions "
        "count. apricot compiles its loops\nat every call, which its users wait for too; both ratios are here. Of "
        "repeated runs the fastest counts.\n\n" + table(columns, cells)
    )


def knapsack(rows: Sequence[Row]) -> str:
    """Quadratic knapsacks: values, and how far they are from the tightest bound."""
    cells: list[list[str]] = []
    for units, group in groupby(rows, lambda r: r["units"]):
        found = list(group)
        bound = min(r["bound"] for r in found if "bound" in r)
        for row in found:
            name = [str(units), row["solver"]]
            if "error" in row:
                cells.append([*name, row["error"].splitlines()[-1], "", ""])
                continue
            gap = (
                f"{100 * (bound - row['value']) / abs(bound):.2f} %" if row["fits"] else "too dear"
            )
            cells.append([*name, f"{row['value']:.3f}", gap, f"{row['processor_seconds']:.1f}"])
    columns = ("units", "solver", "value", "below the certified bound", "s")
    return (
        "## Quadratic knapsacks\n\nThe damage avoided under a positive semidefinite matrix, as the Gauss-Newton objective has "
        f"it, with half of\nthe costs to spend and {rows[0]['limit']:g} s of the processor. latence-solver has no time limit: "
        "it runs once as it comes, and repeatedly\nwith ever more iterations until the time is spent. It is licensed for "
        "non-commercial use only, and is installed for this\ncomparison alone.\n\n"
        + table(columns, cells)
    )


def regression(rows: Sequence[Row]) -> str:
    """Best subsets: the share of variance explained."""
    cells = [
        [
            f"{row['keep']} of {row['groups']} groups of {row['width']}",
            row["solver"],
            *(
                [row["error"].splitlines()[-1], "", ""]
                if "error" in row
                else [
                    f"{row['value']:.6f}",
                    f"{row['bound']:.6f}" if "bound" in row else "",
                    f"{row['processor_seconds']:.2f}",
                ]
            ),
        ]
        for row in rows
    ]
    columns = ("kept", "solver", "variance explained", "certified bound", "s")
    return (
        "## Best subsets for least squares\n\nGroups of columns, as the outputs of heads, that explain most of what a readout "
        "makes of all of them; abess is\ngiven the number of groups, once with its defaults and once with all exchanges "
        "tried.\n\n" + table(columns, cells)
    )


def facts(record: Row) -> str:
    """What a part was measured on."""
    given = record["provenance"]
    versions = ", ".join(f"{k} {v}" for k, v in given["versions"].items())
    note = f" {given['note']}" if given["note"] else ""
    return (
        f"{given['device']}, {given['threads']} thread, load {given['load_average_at_start']} when it started;\n"
        f"{versions}; {given['date']}.{note}"
    )


PARTS = {"coverage": coverage, "knapsack": knapsack, "regression": regression}


def page(found: Mapping[str, Row]) -> str:
    """The page, from the records by part."""
    parts = [
        f"{part(found[name]['results'])}\n\n{facts(found[name])}"
        for name, part in PARTS.items()
        if name in found
    ]
    return "\n\n".join([HEAD.rstrip(), *parts]) + "\n"


def main() -> int:
    """Write, or check."""
    return write_or_check({PAGE: page(records(RESULTS))}, DOCS, PAGE, PAGE, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
