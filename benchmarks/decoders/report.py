"""Write docs/decoders.md from the records in benchmarks/results/decoders.

python benchmarks/decoders/report.py            rewrite it
python benchmarks/decoders/report.py --check    fail if it is not what the records say
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.accuracy.report import times
from benchmarks.pages import write_or_check
from cahp_opt.reports.study_page import standings_of
from cahp_opt.studies.outcome import Arm
from cahp_opt.studies.study import Study

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "decoders"
HEAD = """# Small decoders: perplexity

Written by `python benchmarks/decoders/report.py` from `benchmarks/results/decoders/`; never edit it by hand.

Decoders of a few million weights, trained on six books (`benchmarks/decoders/train.py`), are pruned in heads and neurons to shares of
their measured prefill time and judged by the perplexity of paragraphs from the ends of these books
(`benchmarks/decoders/run.py`, a configuration of [`cahp study`](compare.md#a-study-on-your-own-model)). `llama` has grouped-query attention, whose units are
groups of query heads with their keys and values, and was trained for 1200 steps of 2048 tokens; `gpt2` has a head for every query, and was trained
for 700. The refit needs no labels and no gradient steps.

A cell has the perplexity, and behind it how many times that of the unpruned model it is. **Bold** is the best at a limit with a recovery, and all that a
paired bootstrap over the paragraphs does not tell from it at 95 %, corrected for the number of comparisons.

`llama-decode` is the same `llama` within two limits at once: on the time of a decoding step, and on the bytes of the key/value cache."""

CACHE = "kv_cache"


def section_of(name: str, study: Study) -> str:
    """What one record has to show, by what its limits are about."""
    return (decoding if any(CACHE in o.costs for o in study.outcomes) else section)(name, study)


def facts_of(study: Study) -> str:
    """On what, with what and where it was made."""
    told, dense = study.provenance, study.unpruned.value("perplexity")
    return (
        f"`{study.model}`, judged on {study.data}, {study.unpruned.examples} paragraphs: unpruned perplexity per token {dense:.1f}. "
        f"{told['texts of a draw']} calibration texts. Made with cahp-opt {told['cahp-opt']}, transformers {told['transformers']}, on "
        f"{told['device']}, {told['date']}."
    )


def perplexity(value: float, dense: float, bold: bool) -> str:
    """A perplexity, and how many times the unpruned model's it is."""
    mark = "**" * bold
    return f"{mark}{value:.1f}{mark} ({value / dense:.3f})"


def section(name: str, study: Study) -> str:
    """Perplexities by method and limit."""
    dense = study.unpruned.value("perplexity")
    standings, rows = standings_of(study), {row.arm: row for row in study.rows()}
    lines = [
        "| method | " + " | ".join(f"{limit}, {recovery}" for limit, recovery in standings) + " |",
        "|---" * (len(standings) + 1) + "|",
    ]
    for method in study.methods:
        cells = list[str]()
        for place, found in standings.items():
            row = rows.get(Arm(method, *place))
            bold = any(each.ties for each in found if each.method == method)
            value = None if row is None else row.figures["perplexity"].value
            cells.append("" if value is None else perplexity(value, dense, bold))
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    missing = [
        f"- without a result: {', '.join(map(str, c))}: {w}" for c, w in study.missing.items()
    ]
    return "\n\n".join(
        filter(
            None,
            [f"## {name}", facts_of(study), "\n".join(lines), times(study), "\n".join(missing)],
        )
    )


def decoding(name: str, study: Study) -> str:
    """Perplexities by method, with the shares of the time and of the bytes of the cache that are limited together."""
    dense, size = study.unpruned.value("perplexity"), study.provenance["workload"]
    parts = [f"{facts_of(study)} Timed on `{size}`, texts by tokens in the cache."]
    for (limit, recovery), found in standings_of(study).items():
        ratios = [float(part.rpartition("=")[2]) for part in limit.split(" and ")]
        lines = [
            "| method | perplexity | predicted time | measured time | bytes of the cache |",
            "|---" * 5 + "|",
        ]
        for method in study.methods:
            bold = any(each.ties for each in found if each.method == method)
            for outcome in study.of(Arm(method, limit, recovery)).values():
                value, (timed,) = outcome.scores.value("perplexity"), outcome.times.values()
                time, cache = (
                    ratio * cost.value / cost.limit
                    for ratio, cost in zip(ratios, outcome.costs.values(), strict=True)
                )
                lines.append(
                    f"| {method} | {perplexity(value, dense, bold)} | {time:.2f} | {timed.ratio:.2f} | {cache:.2f} |"
                )
        parts += [
            f"Within {limit}, {recovery}, time and bytes as shares of the unpruned model's:",
            "\n".join(lines),
        ]
    return "\n\n".join([f"## {name}", *parts, times(study)])


def page(records: Mapping[str, Study]) -> str:
    """The whole page."""
    return "\n\n".join([HEAD, *(section_of(*item) for item in records.items())]) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Write, or check."""
    records = {path.stem: Study.load(path) for path in sorted(RESULTS.glob("*.safetensors"))}
    made = {"decoders.md": page(records)}
    return write_or_check(made, ROOT / "docs", "decoders.md", "decoders.md", arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
