"""Write docs/automatic-size.md from the results in benchmarks/results/knees.

python benchmarks/knees/report.py            rewrite it
python benchmarks/knees/report.py --check    fail if it is not what the results say
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.knees.rules import DEGREES, TOLERANCE, knees, measured_rules, value_rules
from benchmarks.pages import records, write_or_check

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "knees"
DOCS = ROOT / "docs"
PAGE = "automatic-size.md"
RULES = ("points", *map(str, DEGREES))
Row = dict[str, Any]

HEAD = """# How many units to keep, chosen automatically

Written by `python benchmarks/knees/report.py` from `benchmarks/results/knees/`; never edit it by hand.

The seed method ([CAHP](../solvers/cahp.py), arXiv 2606.19150) chooses the number of heads itself: it computes the
silhouette for every number of clusters, smooths that curve with a polynomial, and stops at the knee. `frontier` and
`knee` do the same on the library's own curve: the value of its objective, `ExplainedVariance`, or the quality measured
on held-out sentences, over the best selection of every number of units. `benchmarks/knees/run.py` runs both
on one classifier, for every degree of the polynomial, every seed of t-SNE, and several draws of the calibration
sentences, and judges on the development set where they stop.

## Reading it

* **The silhouette knee is stable, and that says little about the model.** Seeds and draws move it by a unit or two; the
  degree moves it over more than half of its range. A parabola that rises and flattens is farthest above its
  chord in the middle, whatever its numbers are, so a knee of degree 2 *is* the middle of the range, on any model.
* **A knee depends on where the curve begins.** The table "Where the curve begins" cuts the same curve off at other
  places, and the knee follows. The silhouette hides this: its range, from 2 to all units but one, is always the same.
* **The knee of the explained variance is as stable**, and hardly depends on the degree from 4 on; but it says where the
  objective bends, from one unit per block to all units, and not what accuracy remains there.
* **How many units are enough depends on the recovery**, which neither curve knows. Sliced and left alone, the quality
  falls nearly in a straight line, without a sharp knee, and suffers long before any of the rules stops; after a
  refit, sizes that looked hopeless are close to the unpruned model (last table).
* **A tolerance is the better rule** for those who can name one: `Frontier.cheapest_within(0.05, measured)` takes the
  cheapest selection within that loss of the best, measured with the recovery that will be used. It costs what
  measuring costs.
"""


def units(kept: str) -> int:
    return kept.count("1")


def span(numbers: Iterable[int]) -> str:
    """A range in words; a dash for none."""
    found = sorted(numbers)
    if not found:
        return "-"
    return str(found[0]) if found[0] == found[-1] else f"{found[0]} to {found[-1]}"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def page(found: Iterable[Row]) -> str:
    """The whole page."""
    return "\n\n".join([HEAD.strip(), *map(model, found)]) + "\n"


def model(record: Row) -> str:
    """What one model has to show."""
    given, told = record["settings"], record["provenance"]
    software = ", ".join(f"{k} {told['versions'][k]}" for k in ("torch", "scikit-learn"))
    intro = (
        f"{record['units']} units in {record['blocks']} blocks; {given['draws']} draws of "
        f"{given['calibration']} labelled sentences, {given['seeds']} seeds of t-SNE. Measured quality: "
        f"every {given['step']}th number of units on {given['held_out']} held-out training sentences. "
        f"Refits of what is judged: {given['refit']} training sentences. Unpruned accuracy on the "
        f"development set {100 * record['dense']['dev']['accuracy']:.1f} %. {told['device']}, one thread, "
        f"{software}, {told['date']}."
    )
    parts = [f"## {record['model']}", intro, stops(record), begins(record), costs(record)]
    return "\n\n".join([*parts, worth(record)])


def stops(record: Row) -> str:
    """Units kept, by rule, degree and draw."""
    draws = record["draws"]
    rows = list[list[str]]()
    for degree in DEGREES:
        told = [
            span(units(s["kept"]) for s in draw["stops"] if s["degree"] == degree) for draw in draws
        ]
        rows.append(["silhouette, all seeds", f"degree {degree}", *told])
    for rule in RULES:
        found = [value_rules(draw["frontier"])["explained variance", rule] for draw in draws]
        rows.append(["explained variance", _named(rule), *(str(units(k)) for k in found)])
    for how in ("sliced", "refitted"):
        for quality in TOLERANCE:
            for rule in (*RULES, "tolerance"):
                cells = [
                    str(units(measured_rules(draw["measured"][how]["points"])[quality, rule]))
                    if how in draw["measured"]
                    else "-"
                    for draw in draws
                ]
                if set(cells) != {"-"}:
                    named = _named(rule, TOLERANCE[quality])
                    rows.append([f"measured {quality}, {how}", named, *cells])
    columns = ["curve", "rule", *(f"draw {number}" for number in range(1, len(draws) + 1))]
    stops: list[list[float]] = [
        [s["knee"] for draw in draws for s in draw["stops"] if s["degree"] == d] for d in DEGREES
    ]
    moved = (
        f"Units kept. The degree moves the knee of the silhouette from {max(map(max, stops)):g} to "
        f"{min(map(min, stops)):g}; at one degree, seeds and draws together move it by up to "
        f"{max(max(of) - min(of) for of in stops):g}."
    )
    return f"### Where each stops\n\n{moved}\n\n" + table(columns, rows)


def _named(rule: str, loss: float = 0.0) -> str:
    if rule == "tolerance":
        return f"within {loss:g}"
    return "no smoothing" if rule == "points" else f"degree {rule}"


def begins(record: Row) -> str:
    """Knees of the same curve, cut off at other places."""
    curve, rows = record["draws"][0]["frontier"], list[list[str]]()
    last = len(curve["kept"])
    for first in (0, last // 6, last // 3, last // 2):
        found = knees(curve["kept"][first:], curve["values"][first:])
        cells = [str(units(found[rule])) for rule in RULES]
        rows.append([f"{units(curve['kept'][first])} to {record['units']}", *cells])
    head = "### Where the curve begins\n\nUnits kept at the knee of the explained variance, draw 1."
    return head + "\n\n" + table(["range", *map(_named, RULES)], rows)


def costs(record: Row) -> str:
    """Passes over the calibration sentences, and seconds."""
    rows = list[list[str]]()
    for name, label in (
        ("silhouette", "seed method, one degree and seed"),
        ("frontier", "frontier"),
    ):
        found = [draw["costs"][name] for draw in record["draws"]]
        rows.append(
            [
                label,
                f"{found[0]['forward']:g}",
                f"{found[0]['backward']:g}",
                f"{_mean(c['seconds'] for c in found):.1f}",
                f"{_mean(c['solving'] for c in found):.1f}",
            ]
        )
    rows[-1][0] += " over all numbers of units"
    for how in ("sliced", "refitted"):
        seconds = [d["measured"][how]["seconds"] for d in record["draws"] if how in d["measured"]]
        if seconds:
            more = f"{_mean(seconds):.1f}"
            rows.append([f"measuring its quality, {how}, on top", "-", "-", more, "-"])
    columns = ("", "forward passes", "backward passes", "seconds measuring", "seconds solving")
    head = (
        "### What it costs\n\nPasses over the calibration sentences; seconds of the processor. The seed "
        "method needs labels and attention maps; the frontier needs neither."
    )
    return head + "\n\n" + table(columns, rows)


def _mean(numbers: Iterable[float]) -> float:
    found = list(numbers)
    return sum(found) / len(found)


def worth(record: Row) -> str:
    """Accuracy and divergence of what was judged."""
    chosen = dict[str, list[str]]()
    for draw in record["draws"]:
        for stop in draw["stops"]:
            chosen.setdefault(stop["kept"], []).append("seed method")
        for kept in draw["frontier"]["kept"]:
            chosen.setdefault(kept, []).append("frontier")
    rows = [
        [
            str(units(kept)),
            " and ".join(dict.fromkeys(chosen.get(kept, ["?"]))),
            *(
                f"{100 * found[how]['accuracy']:.1f}"
                if figure == "accuracy"
                else f"{found[how]['kl']:.3f}"
                for figure in ("accuracy", "kl")
                for how in ("sliced", "refitted")
            ),
        ]
        for kept, found in sorted(
            record["judged"].items(), key=lambda item: (units(item[0]), chosen[item[0]][0])
        )
    ]
    columns = ("units kept", "chosen by", "accuracy, %", "refitted", "KL", "refitted")
    error = 100 * (0.25 / record["judged on"]) ** 0.5
    head = (
        f"### What it is worth\n\nOn {record['judged on']} sentences of the development set; one standard "
        f"error of an accuracy is {error:.1f} points. {closer(record)}"
    )
    return head + "\n\n" + table(columns, rows)


def closer(record: Row) -> str:
    """How often the frontier's selection is closer to the unpruned model than one of the same size."""
    judged, pairs = record["judged"], list[tuple[Row, Row]]()
    stopped = {s["kept"] for draw in record["draws"] for s in draw["stops"]}
    for draw in record["draws"]:
        same = {units(kept): kept for kept in draw["frontier"]["kept"]}
        for kept in dict.fromkeys(stop["kept"] for stop in draw["stops"]):
            other = same.get(units(kept))
            if kept in judged and other in judged:
                pairs.append((judged[kept], judged[other]))
    won = {
        how: sum(ours[how]["kl"] < seed[how]["kl"] for seed, ours in pairs)
        for how in ("sliced", "refitted")
    }
    return (
        f"{len(stopped & judged.keys())} of the {len(stopped)} different selections at which the seed method "
        f"stopped were judged. In {len(pairs)} pairs with a selection of the frontier of the same size and draw "
        f"the frontier's has the smaller KL {won['sliced']} times as sliced, and "
        f"{won['refitted']} times refitted."
    )


def main() -> int:
    """Write, or check."""
    made = page(records(RESULTS).values())
    return write_or_check({PAGE: made}, DOCS, PAGE, PAGE, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
