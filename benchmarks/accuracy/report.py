"""Write docs/accuracy.md and its pictures from the records in benchmarks/results/accuracy.

python benchmarks/accuracy/report.py            rewrite them
python benchmarks/accuracy/report.py --check    fail if they are not what the records say
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.accuracy.earlier import Earlier, percent
from benchmarks.accuracy.pictures import accuracies
from benchmarks.accuracy.tasks import everywhere
from benchmarks.accuracy.tasks import section as over_tasks
from benchmarks.accuracy.tasks_picture import drawn
from benchmarks.pages import write_or_check
from cahp_opt.reports.study_page import standings_of
from cahp_opt.studies.outcome import Arm
from cahp_opt.studies.study import Study

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "accuracy"
PICTURES = "accuracy-*.svg"
OF_TASKS = "accuracy-tasks.svg"
HEAD = """# How much accuracy each method keeps

Written by `python benchmarks/accuracy/report.py` from `benchmarks/results/accuracy/`; never edit it by hand.

all-MiniLM-L6-v2 is fine-tuned on a task, pruned by every method to every limit, recovered, and judged on the whole test set
(`benchmarks/accuracy/run.py`, a configuration of [`cahp study`](compare.md#a-study-on-your-own-model)). Every seed draws calibration
texts from the training set, which all methods choose by and all recoveries work on. A limit is a share of the measured time of the
unpruned model, or a number of attention heads. The recovery `refit` needs no labels and no gradient steps; `finetune` is that refit and
an epoch over the same texts. [Methods](methods.md) says what each method is and where it was published.

A cell has the accuracy in per cent, with the standard error over seeds where there are several, and behind it the KL divergence from the
unpruned model in nats, which is the finer measure: accuracies move by the error that the size of the test set leaves. **Bold** is the
best accuracy at a limit with a recovery, and all that a paired bootstrap over the test examples (and seeds) does not tell from it at
95 %, corrected for the number of comparisons: these are ties."""
EARLIER = """## Earlier: heads alone

Before the benchmark was a study it had ways of selecting and a runner of its own. Its results are means over the test examples, so that
they cannot be compared in pairs. In a cell are accuracy, the number of seeds, and KL. *An epoch* was one over the whole training set with
labels and distillation, with and without a refit before it."""
BESIDE = """## The same cells, earlier and now

What both have measured, on the same checkpoint and test set, whose size leaves an error of a point in either. Beside the number of texts and
seeds, three things differ: `michel`, `fisher` and `cahp` take gradients on as many texts as `cahp prune` does (256) rather than on 4096 and
1024, `kwon` is the method as published rather than the best units of every block under its Fisher matrix, and draws are of other texts. A refit
on fewer texts leaves more divergence. One draw of `cahp` or `random` is off its mean by the error times the root of the number of seeds."""


def record_name(stem: str) -> str:
    """A record as headings name it."""
    return f"{stem.removesuffix('-heads')}, heads alone" if stem.endswith("-heads") else stem


def recorded() -> dict[str, Study]:
    """All records, by the names of their files."""
    return {path.stem: Study.load(path) for path in sorted(RESULTS.glob("*.safetensors"))}


def of_both_kinds(records: Mapping[str, Study]) -> dict[str, Study]:
    """The records in which neurons are pruned too, one for every task."""
    return {stem: study for stem, study in records.items() if not stem.endswith("-heads")}


def page(records: Mapping[str, Study], earlier: Sequence[Earlier]) -> str:
    """The whole page."""
    then = (f"### {found.name}\n\n{found.made}\n\n{found.table}" for found in earlier)
    pairs = [(e, s) for e in earlier for stem, s in records.items() if stem.startswith(e.name)]
    beside = list(filter(None, (found.beside(study) for found, study in pairs)))
    together = filter(None, [over_tasks(of_both_kinds(records), OF_TASKS)])
    parts = [HEAD, *together, *(section(stem, study) for stem, study in records.items())]
    parts += [BESIDE, *beside] if beside else []
    return "\n\n".join([*parts, EARLIER, *then]) + "\n"


def section(stem: str, study: Study) -> str:
    """What one record has to show."""
    told, share, size = study.provenance, study.unpruned.value("accuracy"), study.unpruned.examples
    error = (share * (1 - share) / size) ** 0.5
    seeds = sorted({outcome.cell.seed for outcome in study.outcomes})
    made = dict.fromkeys(outcome.provenance["device"] for outcome in study.outcomes)
    facts = (
        f"`{study.model}`, judged on {study.data}, {size} examples: unpruned accuracy {100 * share:.1f} %, with a standard error of "
        f"{100 * error:.1f} from the size of the test set. {told['texts of a draw']} calibration texts, seeds: "
        f"{', '.join(map(str, seeds))}. Made with cahp-opt {told['cahp-opt']}, transformers {told['transformers']}, on {'; '.join(made)}, "
        f"{told['date']}."
    )
    notes = [f"- {note}" for note in study.notes]
    notes += [
        f"- without a result: {', '.join(map(str, c))}: {w}" for c, w in study.missing.items()
    ]
    picture = f"![Accuracy by method, {record_name(stem)}](accuracy-{stem}.svg)"
    parts = [
        f"## {record_name(stem)}",
        facts,
        table(study),
        times(study),
        "\n".join(notes),
        picture,
    ]
    return "\n\n".join(filter(None, parts))


def table(study: Study) -> str:
    """Methods by limits and recoveries."""
    standings, rows = standings_of(study), {row.arm: row for row in study.rows()}
    dense = f"{100 * study.unpruned.value('accuracy'):.1f}"
    lines = [
        "| method | " + " | ".join(f"{limit}, {recovery}" for limit, recovery in standings) + " |",
        "|---" * (len(standings) + 1) + "|",
        "| unpruned | " + " | ".join([dense] * len(standings)) + " |",
    ]
    for method in study.methods:
        cells = list[str]()
        for place, found in standings.items():
            cells.append("")
            if (row := rows.get(Arm(method, *place))) is not None:
                bold = "**" * any(each.ties for each in found if each.method == method)
                accuracy, kl = percent(row.figures["accuracy"]), row.figures["kl"].value
                cells[-1] = f"{bold}{accuracy}{bold}; {kl:.4f}"
        if any(cells):
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def times(study: Study) -> str:
    """What the models took, as a range over methods and recoveries."""
    taken, spread = dict[str, list[float]](), 0.0
    for outcome in study.outcomes:
        taken.setdefault(outcome.cell.limit, []).extend(c.ratio for c in outcome.times.values())
        spread = max([spread, *(check.spread for check in outcome.times.values())])
    parts = (f"{min(t):.2f} to {max(t):.2f} at {limit}" for limit, t in taken.items() if t)
    told = f"with noise of up to {100 * spread:.0f} %: {', '.join(parts)}"
    return (
        f"Measured shares of the unpruned model's time, over methods, recoveries and seeds, {told}."
    )


def files(records: Mapping[str, Study], earlier: Sequence[Earlier]) -> dict[str, str]:
    """The page and the pictures, by the names of their files."""
    made = {"accuracy.md": page(records, earlier)}
    for stem, study in records.items():
        picture = accuracies(study, standings_of(study), f"Test accuracy: {record_name(stem)}")
        made[f"accuracy-{stem}.svg"] = picture
    tasks = [*of_both_kinds(records).values()]
    if len(tasks) > 1 and (found := everywhere(tasks)):
        title = f"Mean test accuracy over {len(tasks)} tasks, within a limit of the time"
        made[OF_TASKS] = drawn(found, title)
    return made


def main(arguments: Sequence[str]) -> int:
    """Write, or check."""
    made = files(recorded(), Earlier.read(RESULTS / "earlier.json"))
    return write_or_check(made, ROOT / "docs", PICTURES, "accuracy.md", arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
