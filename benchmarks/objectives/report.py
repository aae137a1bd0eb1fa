"""Write docs/objectives.md from the results in benchmarks/results/objectives.

python benchmarks/objectives/report.py            rewrite it
python benchmarks/objectives/report.py --check    fail if it is not what the results say
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.pages import records, write_or_check
from cahp_opt.studies.correlations import Correlation, correlations
from cahp_opt.studies.figures import FIGURES, Judging, RankCorrelation
from cahp_opt.studies.random_sets import RandomSets

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "objectives"
PAGE = "objectives.md"
KL = FIGURES[Judging.CLASSES][0]
Row = Mapping[str, Any]
TITLES = {"none": "without recovery", "refit": "after a refit"}
HEAD = """# Which objective says what removing heads does

Written by `python benchmarks/objectives/report.py` from `benchmarks/results/objectives/`; never edit it by hand. Your own model and
texts, and an objective of your own, are judged in the same way by [`cahp study`](compare.md#a-study-on-your-own-model).

Every objective is a function of calibration statistics that a solver maximises. Two questions, and two tables for
each recovery (nothing, or the closed-form `refit`):

- **Does it rank keep-sets?** Random keep-sets of every size, the same for every objective, are judged by the KL
  divergence (nats) from the unpruned model on held-out texts. The table shows Spearman's rank correlation between
  that and the loss by the objective: 1 is the same order, 0 is none. The interval is a bootstrap over the keep-sets.
- **Does it choose well?** The keep-set that maximises it is judged in the same way. A solver looks for the best
  values, and so for the errors of an objective: one that ranks random keep-sets well may still choose badly. This
  is the table to choose an objective by.

`benchmarks/objectives/catalogue.py` defines every objective; `density matched` means random masks that keep the share of units that
will be kept.
"""


def page(found: Sequence[Row]) -> str:
    """The whole page: the studies first, and what was measured before there were any below."""
    earlier = [record for record in found if "earlier" in record]
    studies = [record for record in found if "earlier" not in record]
    parts = [HEAD.strip()]
    for record in studies:
        parts += [f"## {record['settings']['data']}", about(record), *compared(record, earlier)]
        parts += [section(record, recovery) for recovery in record["chosen"]]
    for record in earlier:
        title = f"## {record['settings']['data']}, {record['earlier']}"
        parts += [*([] if title in parts else [title]), about(record)]
        parts += [section(record, recovery) for recovery in record["chosen"]]
    return "\n\n".join(parts) + "\n"


def about(record: Row) -> str:
    """What was measured on what, in a sentence."""
    told, settings = record["provenance"], record["settings"]
    versions = ", ".join(f"{name} {told['versions'][name]}" for name in ("torch", "transformers"))
    units = sum(block[1] for block in record["blocks"])
    return (
        f"{settings['texts']} calibration texts, {settings['held_out']} held-out texts, seed {settings['seed']}; {units} "
        f"units; {told['device']}, {told['threads']} thread{'s' * (told['threads'] != 1)}, {versions}, {told['date']}; "
        f"judged on {told['judged on']}."
    )


def sets_of(told: Row) -> RandomSets:
    """The random keep-sets of one stratum of a record."""
    names = [np.frombuffer(bytes.fromhex(name), dtype=np.uint8) for name in told["kept"]]
    figures = {
        recovery: {name: np.array(values, dtype=float) for name, values in own.items()}
        for recovery, own in told["figures"].items()
    }
    values = {name: np.array(own) for name, own in told["values"].items()}
    kept = np.array([np.unpackbits(bits) for bits in names], dtype=bool)
    return RandomSets(told["limit"], told["seed"], kept, values, figures, told["unvalued"])


def ranks(record: Row, recovery: str) -> dict[str, Correlation]:
    """How every objective ranks the keep-sets, the best mean first."""
    found = correlations([sets_of(told) for told in record["random"]], recovery, KL)
    return dict(sorted(found.items(), key=lambda item: -np.nan_to_num(item[1].mean, nan=-2)))


def section(record: Row, recovery: str) -> str:
    """The tables of one recovery."""
    found, chosen = ranks(record, recovery), dict(record["chosen"][recovery])
    limits, title = [told["limit"] for told in record["random"]], TITLES[recovery]
    sets = len(record["random"][0]["kept"])
    chosen[f"random, mean of {sets}"] = {
        limit: at_random(record, recovery, limit) for limit in limits
    }
    best = sorted(chosen, key=lambda name: mean_damage(chosen[name], limits))
    correlated = [
        [name, *(number(each.by_limit[limit], 2) for limit in limits), interval(each)]
        for name, each in found.items()
    ]
    damage = [[name, *(figures(chosen[name].get(limit)) for limit in limits)] for name in best]
    share = record["unpruned"]["accuracy"]
    error = 100 * math.sqrt(share * (1 - share) / record["settings"]["held_out"])
    return "\n\n".join(
        [
            f"### {title[0].upper()}{title[1:]}",
            f"Rank correlation with the KL divergence of {sets} random keep-sets of every size, {title}:",
            table(["objective", *limits, "mean [95 %]"], correlated),
            f"KL divergence of the keep-set that each objective chooses, {title}, and in brackets its accuracy in per cent "
            f"(unpruned: {100 * share:.1f}; standard error {error:.1f}, smaller for differences between two keep-sets):",
            table(["objective", *limits], damage),
        ]
    )


def at_random(record: Row, recovery: str, limit: str) -> dict[str, float]:
    """The mean figures of the random keep-sets at a limit."""
    (told,) = (told for told in record["random"] if told["limit"] == limit)
    return {name: float(np.mean(values)) for name, values in told["figures"][recovery].items()}


def compared(record: Row, earlier: Sequence[Row]) -> Iterator[str]:
    """How far a study agrees with what was measured before, where both have numbers."""
    for old in earlier:
        for recovery, chosen in old["chosen"].items():
            ours = record["chosen"].get(recovery, {})
            both = [
                (chosen[name][limit]["kl"], ours[name][limit]["kl"], limit)
                for name in chosen
                for limit in chosen[name]
                if limit in ours.get(name, {})
            ]
            theirs, own = ranks(old, recovery), ranks(record, recovery)
            limits = list(dict.fromkeys(limit for _, _, limit in both))
            damage = [spearman((a, b) for a, b, at in both if at == limit) for limit in limits]
            means = [(theirs[name].mean, own[name].mean) for name in theirs if name in own]
            yield (
                f"Against the earlier run, {TITLES[recovery]}: the KL divergences of what the same objectives choose are in the "
                f"same order with a rank correlation of {' and '.join(f'{x:.2f}' for x in damage)} at "
                f"{' and '.join(limits)}, and the objectives' mean correlations with one of {spearman(means):.2f}."
            )


def spearman(pairs: Iterable[tuple[float, float]]) -> float:
    """The rank correlation of pairs."""
    one, other = np.array(list(pairs)).T
    ranked = RankCorrelation("spearman", True, of="one", against="other")
    return float(ranked.values({"one": one, "other": other}, np.ones((1, len(one))))[0])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def interval(found: Correlation) -> str:
    """The mean with its interval."""
    if found.interval is None:
        return ""
    return f"{found.mean:.2f} [{found.interval[0]:.2f}, {found.interval[1]:.2f}]"


def figures(found: Mapping[str, float] | None) -> str:
    """KL divergence and accuracy of a keep-set; nothing for None."""
    return "" if found is None else f"{found['kl']:.3f} ({100 * found['accuracy']:.1f})"


def number(x: float, digits: int) -> str:
    """With this many digits after the point; nothing for NaN."""
    return "" if math.isnan(x) else f"{x:.{digits}f}"


def mean_damage(found: Mapping[str, Row], limits: Sequence[str]) -> float:
    """The mean KL divergence; infinite where a limit has none."""
    return float(np.mean([found[limit]["kl"] if limit in found else math.inf for limit in limits]))


def main() -> int:
    """Write, or check."""
    found = list(records(RESULTS).values())
    if not found:
        print("no results; run benchmarks/objectives/run.py first", file=sys.stderr)
        return 1
    return write_or_check({PAGE: page(found)}, ROOT / "docs", PAGE, PAGE, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
