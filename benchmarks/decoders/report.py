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
paired bootstrap over the paragraphs does not tell from it at 95 %, corrected for the number of comparisons."""


def section(name: str, study: Study) -> str:
    """What one record has to show."""
    told, dense = study.provenance, study.unpruned.value("perplexity")
    facts = (
        f"`{study.model}`, judged on {study.data}, {study.unpruned.examples} paragraphs: unpruned perplexity per token {dense:.1f}. "
        f"{told['texts of a draw']} calibration texts. Made with cahp-opt {told['cahp-opt']}, transformers {told['transformers']}, on "
        f"{told['device']}, {told['date']}."
    )
    standings, rows = standings_of(study), {row.arm: row for row in study.rows()}
    lines = [
        "| method | " + " | ".join(f"{limit}, {recovery}" for limit, recovery in standings) + " |",
        "|---" * (len(standings) + 1) + "|",
    ]
    for method in study.methods:
        cells = list[str]()
        for place, found in standings.items():
            row = rows.get(Arm(method, *place))
            bold = "**" * any(each.ties for each in found if each.method == method)
            value = None if row is None else row.figures["perplexity"].value
            cells.append("" if value is None else f"{bold}{value:.1f}{bold} ({value / dense:.3f})")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    missing = [
        f"- without a result: {', '.join(map(str, c))}: {w}" for c, w in study.missing.items()
    ]
    return "\n\n".join(
        filter(None, [f"## {name}", facts, "\n".join(lines), times(study), "\n".join(missing)])
    )


def page(records: Mapping[str, Study]) -> str:
    """The whole page."""
    return "\n\n".join([HEAD, *(section(*item) for item in records.items())]) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Write, or check."""
    records = {path.stem: Study.load(path) for path in sorted(RESULTS.glob("*.safetensors"))}
    made = {"decoders.md": page(records)}
    return write_or_check(made, ROOT / "docs", "decoders.md", "decoders.md", arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
