"""Write docs/heads-and-neurons.md from the results in benchmarks/results/both_kinds.

python benchmarks/both_kinds/report.py            rewrite it
python benchmarks/both_kinds/report.py --check    fail if it is not what the results say
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.pages import records, write_or_check
from cahp_opt.studies.study import SeedMean

Row = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "both_kinds"
DOCS = ROOT / "docs"
PAGE = "heads-and-neurons.md"
HEAD = """# Heads and feed-forward neurons under one latency

Written by `python benchmarks/both_kinds/report.py` from `benchmarks/results/both_kinds/`; never edit it by hand.

all-MiniLM-L6-v2 (72 heads, 9216 neurons) is fine-tuned on a data set, pruned to a share of its own time by a latency
table that is measured in the same run, and judged on the whole test set, without a step of training
(`benchmarks/both_kinds/run.py`). Every method gets the same calibration texts, drawn from the training set anew for every
draw, and the same table. `±` is the standard error over draws; it leaves out the error of the test set
itself, which is the same for all methods. KL is the mean divergence from the unpruned model, in nats. Measured is the
time of the sliced model against the unpruned one, timed in turns; predicted is what the table promised.

- *heads and neurons*, *heads alone*, *neurons alone*: the library, allowed to prune both kinds or one, with its refit.
- *the same share everywhere*: equal shares of all blocks, the best units inside each by the same objective, and the
  refit.
- *Kwon et al. 2022*: the search by Fisher information, the rearrangement and the tuning of masks of that paper,
  without a refit of weights, written from the paper; *refitted instead of tuned* has the library's refit in place of
  the tuning. These rows were measured with the paper's own search, which plans with straight lines for times; a run
  takes `cahp_opt.torch.methods.Kwon`, whose search over the table keeps more of the same information.
- *magnitude*, *random*: the norms of a unit's weights, and chance, with the refit.
"""


def table(rows: Sequence[Row], names: dict[str, str]) -> list[str]:
    """The means over the draws, as lines of a table.

    Args:
        rows: results of the benchmark.
        names: what tables call the methods, in the order of the table.
    """
    lines = [
        "| time | what | draws | KL | accuracy, % | measured | predicted | heads kept | neurons kept |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    found: dict[tuple[float, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["share"], row["method"]), []).append(row)
    order = list(names)
    for (share, method), own in sorted(
        found.items(), key=lambda i: (-i[0][0], order.index(i[0][1]))
    ):
        kept = (" ".join(map(str, own[0][name])) for name in ("heads", "neurons"))
        shown = (
            f"{share:g}",
            names[method],
            str(len(own)),
            _shown(own, "kl", 4),
            _shown(own, "accuracy", 1, 100),
            _shown(own, "measured", 3),
            _shown(own, "predicted", 3),
            *kept,
        )
        lines.append(f"| {' | '.join(shown)} |")
    return lines


def _shown(rows: Sequence[Row], figure: str, digits: int, scale: float = 1) -> str:
    """The mean and its standard error."""
    found = SeedMean.of([scale * row[figure] for row in rows])
    error = "" if found.error is None else f" ± {found.error:.{digits}f}"
    return f"{found.value:.{digits}f}{error}"


def section(record: Row) -> str:
    """What one data set has to show."""
    told, dense = record["provenance"], record["dense"]["accuracy"]
    software = ", ".join(f"{k} {told['versions'][k]}" for k in ("torch", "transformers"))
    intro = (
        f"{record['test']} test examples, {record['settings']['texts']} calibration texts. Unpruned accuracy "
        f"{100 * dense:.1f} %, with a standard error of {100 * _error(dense, record['test']):.1f} from the size of "
        f"the test set. The table reaches down to {record['table']['floor']:.2f} of the time. {told['device']}, "
        f"{told['threads']} threads, {software}, {told['date']}. Kept in the first draw, layer by layer."
    )
    lines = "\n".join(table(record["rows"], record["names"]))
    return f"## {record['data']}\n\n{intro}\n\n{lines}"


def _error(share: float, examples: int) -> float:
    return float((share * (1 - share) / examples) ** 0.5)


def page(found: Iterable[Row]) -> str:
    """The whole page."""
    return "\n\n".join([HEAD.strip(), *map(section, found)]) + "\n"


def headline(found: Iterable[Row]) -> str:
    """The README's table: every data set, share and method in one line."""
    lines = [
        "| data | time | what | KL | accuracy, % (unpruned) | measured time |",
        "|---|---|---|---|---|---|",
    ]
    for record in found:
        dense = f"{100 * record['dense']['accuracy']:.1f}"
        for line in table(record["rows"], record["names"])[2:]:
            share, what, _, kl, accuracy, measured = line.strip("| ").split(" | ")[:6]
            lines.append(
                f"| {record['data']} | {share} | {what} | {kl} | {accuracy} ({dense}) | {measured} |"
            )
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Write the page, or check it."""
    wanted = {PAGE: page(records(RESULTS).values())}
    return write_or_check(wanted, DOCS, PAGE, PAGE, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
