"""Write docs/accuracy.md and its pictures from the results in benchmarks/results/accuracy.

python benchmarks/accuracy/report.py            rewrite them
python benchmarks/accuracy/report.py --check    fail if they are not what the results say
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.accuracy.figures import (
    EARLIER,
    RECOVERIES,
    Mean,
    Row,
    budgets,
    devices,
    is_cpu,
    mean,
    mean_of,
    methods,
    recoveries,
    those,
    timed_alike,
)
from benchmarks.accuracy.pictures import heads, latencies, layers
from benchmarks.pages import records, write_or_check

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "accuracy"
DOCS = ROOT / "docs"
PICTURES = "accuracy-*.svg"
STAGES = ("calibrate", "solve", "slice", "weigh", "refit")
USUAL = "24"
"""The budget of the tables that show one only, if there are results for it."""
HEAD = """# How much accuracy each way of selecting keeps

Written by `python benchmarks/accuracy/report.py` from `benchmarks/results/accuracy/`; never edit it by hand.

all-MiniLM-L6-v2 (72 heads) is fine-tuned on a data set, heads are selected, and the sliced model is judged on the
whole test set (`benchmarks/accuracy/run.py`): as it is, after a refit on the calibration texts (no labels, no
gradient steps), and after one epoch on the training set with labels and distillation, with and without the refit
before it. Every method gets the same calibration texts, drawn from the training set anew for every seed, and the
same budget. Budgets with a decimal point are shares of the unpruned time by a measured latency table, the others are
numbers of heads. `±` is the standard error over seeds, with their number in brackets; it leaves out the error of the
test set itself, which is the same for all methods.

- *default*: what `cahp prune` does for that recovery.
- *seed method*: clusters of attention signatures in a t-SNE plane and the most salient head of each (`CAHP`), with as
  many clusters as the budget allows, rather than the number it would choose itself.
- *Michel*, *Fisher diagonal*: the largest salience, or squared gradient, of labelled texts. *Kwon-style*: the counts
  per block of the Fisher diagonal, then the best heads of every block under its own Fisher matrix.
- *OSSCAR-style*: even counts per block, and in every block the heads from which least squares reconstruct its output
  best, by local swaps. *Explained variance*: the same aim over all blocks at once, solved exactly.
- *Gauss-Newton*: the quadratic damage under random masks that keep as much as the budget, by mixed-integer programming.
- *Greedy*: removes the head whose removal changes the output least, measured, on 64 texts.
- *Facility location*: every head is represented by a kept one that attends alike, weighted by salience.
"""


def files(found: Mapping[str, Row]) -> dict[str, str]:
    """The page and the pictures, by the names of their files."""
    made = {"accuracy.md": page(found)}
    for stem, record in found.items():
        made[f"accuracy-{stem}-heads.svg"] = heads(record)
        made[f"accuracy-{stem}-latency.svg"] = latencies(record)
        made[f"accuracy-{stem}-layers.svg"] = layers(record, *shown(record))
    return made


def page(found: Mapping[str, Row]) -> str:
    """The whole page."""
    short = f"## In short\n\nWhere heads are few, means ± standard errors over seeds:\n\n{headline(found)}"
    parts = [HEAD.strip(), short, *(data_set(stem, r) for stem, r in found.items())]
    return "\n\n".join(parts) + "\n"


def shown(record: Row) -> tuple[str, str]:
    """The budget and the recovery of what is shown for one only."""
    there = budgets(record)
    budget = USUAL if USUAL in there else there[-1]
    recovery = "refit" if "refit" in recoveries(record) else recoveries(record)[0]
    return budget, recovery


def data_set(stem: str, record: Row) -> str:
    """All tables of one data set."""
    told, settings, dense = record["provenance"], record["settings"], record["dense"]
    sizes, latency = record["sizes"], record["table"]
    size, length = settings["timing"]
    facts = (
        f"{sizes['train']} / {sizes['dev']} / {sizes['test']} examples to train, choose and test; "
        f"{settings['texts']} calibration texts; at least {settings['minimum']} heads kept per block. "
        f"Unpruned: {100 * dense['dev']:.1f} % on dev, {100 * dense['test']:.1f} % on test. Latency: {size} x "
        f"{length} tokens on {latency.get('device', EARLIER.partition(',')[0])}, at least "
        f"{100 * latency['floor'] / latency['dense']:.0f} % of the unpruned time whatever is removed. "
        f"Results by device: {devices(record['rows'])}. Most recent: {told['device']}, "
        f"torch {told['versions']['torch']}, transformers {told['versions']['transformers']}, "
        f"{told['date']}, commit {str(told['commit'])[:7]}."
    )
    parts = [f"## {record['data']}", facts]
    if record["missing"]:
        parts.append(f"{record['missing']} results of this plan are not measured yet.")
    if record["versions_of_refit"] > 1:
        parts.append("Not all of these results were made by one version of the refit.")
    for recovery in recoveries(record):
        rows = those(record, recovery=recovery)
        parts += [
            f"### {RECOVERIES[recovery]}",
            "Accuracy on test, %:",
            table(record, rows, lambda row: row["test"], Mean.percent),
            "KL divergence from the unpruned model on test, nats:",
            table(record, rows, lambda row: row["kl"], Mean.plain),
        ]
    pictures = [
        f"![{words}](accuracy-{stem}-{name}.svg)"
        for name, words in (
            ("heads", f"Accuracy by heads kept on {record['data']}"),
            ("latency", f"Accuracy by latency on {record['data']}"),
            ("layers", f"Heads kept per block on {record['data']}"),
        )
    ]
    return "\n\n".join([*parts, "### Time to prune", cost(record), *pictures])


def table(
    record: Row,
    rows: Sequence[Row],
    figure: Callable[[Row], float],
    show: Callable[[Mean], str],
) -> str:
    """Methods by budgets."""
    columns = [b for b in budgets(record) if any(row["budget"] == b for row in rows)]
    lines = ["| method | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for method in methods(record, rows):
        cells = []
        for budget in columns:
            mine = [r for r in rows if r["method"] == method and r["budget"] == budget]
            found = mean_of(mine, figure)
            cells.append("" if found is None else show(found))
        lines.append(f"| {record['names'][method]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cost(record: Row) -> str:
    """What every step costs, in forward passes over the calibration texts and in seconds."""
    budget, recovery = shown(record)
    device, rows = timed_alike(those(record, budget=budget, recovery=recovery))
    clock, name = ("processor", "processor seconds") if is_cpu(device) else ("seconds", "seconds")
    lines = [
        f"At a budget of {budget}, {RECOVERIES[recovery].lower()}: forward passes over the calibration texts (a backward "
        f"pass counts as two), and {name} on {device}; means over seeds.",
        "",
        "| method | " + " | ".join(STAGES) + " | passes in all | seconds in all |",
        "|---" * (len(STAGES) + 3) + "|",
    ]
    for method in methods(record, rows):
        mine = [row for row in rows if row["method"] == method]
        spent = {
            (stage, unit): mean([float(r["cost"].get(stage, {}).get(unit, 0.0)) for r in mine])
            for stage in STAGES
            for unit in ("passes", clock)
        }
        values = {key: found.value for key, found in spent.items() if found is not None}
        cells = [f"{values[s, 'passes']:.1f} / {values[s, clock]:.1f} s" for s in STAGES]
        passes, seconds = (
            sum(values[stage, unit] for stage in STAGES) for unit in ("passes", clock)
        )
        lines.append(
            f"| {record['names'][method]} | "
            + " | ".join(cells)
            + f" | {passes:.1f} | {seconds:.0f} |"
        )
    return "\n".join(lines)


def headline(found: Mapping[str, Row]) -> str:
    """The table above all others: what is left with few heads, without training and after one epoch.

    Accuracy moves by a point between draws of the test set, so the divergence stands beside it.
    """
    wanted = (("24", "none"), ("24", "refit"), ("18", "refit+1-epoch"))
    columns = [
        (stem, budget, recovery)
        for stem, record in found.items()
        for budget, recovery in wanted
        if those(record, budget=budget, recovery=recovery)
    ]
    heads_of = {stem: sum(record["units"]) for stem, record in found.items()}
    titles = [
        f"{found[s]['data']}: {b} of {heads_of[s]}, {RECOVERIES[r].lower()}" for s, b, r in columns
    ]
    names = dict[str, str]()
    for record in found.values():
        names |= {name: record["names"][name] for name in methods(record)}
    lines = [
        "| test accuracy, %; KL, nats | " + " | ".join(titles) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    dense = [f"{100 * found[stem]['dense']['test']:.1f}" for stem, _, _ in columns]
    lines.append("| unpruned | " + " | ".join(dense) + " |")
    for method, name in names.items():
        cells = []
        for stem, budget, recovery in columns:
            rows = those(found[stem], budget=budget, recovery=recovery, method=method)
            value, kl = (mean([row[figure] for row in rows]) for figure in ("test", "kl"))
            cells.append(
                "" if value is None or kl is None else f"{value.percent()}; {kl.value:.3f}"
            )
        if any(cells):
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    errors = (f"{record['data']} {sampling_error(record):.1f}" for record in found.values())
    lines.append(
        f"\nOne standard error from the size of the test set, in points: {', '.join(errors)}."
    )
    return "\n".join(lines)


def sampling_error(record: Row) -> float:
    """Percentage points of the unpruned model's accuracy."""
    share, size = record["dense"]["test"], record["sizes"]["test"]
    return float(100 * (share * (1 - share) / size) ** 0.5)


def main() -> int:
    """Write, or check."""
    made = files(records(RESULTS))
    return write_or_check(made, DOCS, PICTURES, "accuracy.md", sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
