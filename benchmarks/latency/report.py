"""Write docs/latency.md and its pictures from the results in benchmarks/results/latency.

python benchmarks/latency/report.py            rewrite them
python benchmarks/latency/report.py --check    fail if they are not what the results say
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.latency.models import SHAPES
from benchmarks.latency.pictures import BAND, EXECUTIONS, Row, blocks, predictions
from benchmarks.latency.run import EXECUTIONS as DEFAULTS
from benchmarks.pages import records, write_or_check
from cahp_opt.costs.cost_table import NOISY

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "latency"
DOCS = ROOT / "docs"
PICTURES = "latency-*.svg"
LAUNCHING = 0.95
"""A floor of that share of the unpruned time says that the number of units hardly matters."""
HEAD = """# How well latency tables predict

Written by `python benchmarks/latency/report.py` from `benchmarks/results/latency/`; never edit it by hand.

For every model, phase and execution, `measure_latency` makes a table: every attention block alone at every
number of units, and a few whole models that tie the blocks to the model. Then uneven random keep-sets that the
table has not seen, from nearly nothing to nearly everything, are sliced and timed as whole models, in turns with
the unpruned one (`benchmarks/latency/run.py`). The shapes are those of well-known models; weights are random
where time does not depend on them, and Llama 8B has only some of its layers. `dense` is the unpruned model,
`floor` the least time that the table predicts. The relative error compares the predicted share of
the unpruned time with the measured one, each by the unpruned model of its own run; it is what a budget such as
`--latency 0.8` meets. The absolute error compares seconds, and includes what changed on the machine in between.
The spread is the distance from the reported low quantile to the median of the repeats: the noise. A keep-set is
within the spread if its relative error is no larger than its own spread plus that of the unpruned model.

## Reading it

A fast GPU that runs a small model eagerly waits for operations to be launched. Fewer heads are not faster then:
the floor is close to 100 %, because the table has a `least` (a time that it never goes below) or a `fixed` part
that is nearly everything; errors and spread are those of the host that launches, not of the device. CUDA
graphs launch everything at once and show the time of the device, where heads do count. The two do not run
quite the same kernels, and their curves may differ: while a graph is captured, transformers 5 makes attention
masks that it otherwise leaves out, which costs time (see `run_through` in `cahp_opt/torch/latency/execution.py`).

The first picture of a device shows the time of one block, the most common one of its model, by the number of
units kept. On a GPU it is the device's time alone, in eager runs too. Results of before
empty blocks were skipped show keeping no unit to cost as much as keeping one. The lower panels show what each further unit
adds: stairs, such as those of matrix products computed in tiles of a few heads, appear as a zigzag there, and
`--multiple-of` keeps to full tiles. The second picture has every keep-set of every case.
"""
COLUMNS = (
    "model",
    "phase",
    "execution",
    "batch x length",
    "dense, ms",
    "floor, % of dense",
    "relative error, %: median / 90 % / largest",
    "absolute error, %: median",
    "spread, %: median",
    "within the spread",
)


def files(found: Mapping[str, Row]) -> dict[str, str]:
    """The page and the pictures, by the names of their files."""
    made = {"latency.md": page(found)}
    for stem, record in found.items():
        made[f"latency-{stem}-blocks.svg"] = blocks(record)
        made[f"latency-{stem}-predictions.svg"] = predictions(record)
    return made


def page(found: Mapping[str, Row]) -> str:
    """The whole page."""
    return "\n\n".join([HEAD.strip(), *(device(stem, r) for stem, r in found.items())]) + "\n"


def device(stem: str, record: Row) -> str:
    """What one device has to show."""
    told = record["provenance"]
    cases = [case for case in record["cases"] if case["outcome"] == "measured"]
    software = [f"{name} {told['versions'][name]}" for name in ("torch", "transformers")]
    facts = [
        *(f"{name} {told[key]}" for name, key in (("driver", "driver"), ("CUDA", "cuda"))),
        *software,
        f"Python {told['python']}",
        f"{told['threads']} CPU thread" + "s" * (told["threads"] != 1),
        " and ".join(sorted({case["dtype"] for case in cases})),
        told["date"],
    ]
    ran = ", ".join(fact for fact in facts if fact and not fact.endswith(" None"))
    lines = [
        "| " + " | ".join(COLUMNS) + " |",
        "|---" * len(COLUMNS) + "|",
        *(line(case) for case in cases),
    ]
    pictures = [
        f"![{words} on {told['device']}](latency-{stem}-{name}.svg)"
        for name, words in (
            ("blocks", "Time of a block by number of units"),
            ("predictions", "Predicted against measured time"),
        )
    ]
    return "\n\n".join(
        [f"## {told['device']}", f"{ran}.", "\n".join(lines), remarks(record), *pictures]
    )


def line(case: Row) -> str:
    """The row of one case."""
    table, found = case["table"], case["summary"]
    errors = (percent(found["relative_error"][name]) for name in ("median", "p90", "max"))
    cells = (
        case["model"],
        case["phase"],
        EXECUTIONS[case["execution"]],
        f"{case['batch']} x {case['length']}",
        f"{1e3 * table['dense']:.2f}",
        f"{100 * table['floor'] / table['dense']:.0f}",
        " / ".join(errors),
        percent(found["error"]["median"]),
        percent(found["spread"]["median"]),
        f"{found['within_spread']} of {found['sets']}",
    )
    return "| " + " | ".join(cells) + " |"


def percent(share: float) -> str:
    """With two digits after the point."""
    return f"{100 * share:.2f}"


def remarks(record: Row) -> str:
    """What the numbers come to, and what there are no numbers for."""
    cases = [case for case in record["cases"] if case["outcome"] == "measured"]

    def those(wanted: Callable[[Row], bool]) -> str:
        return ", ".join(name(case) for case in cases if wanted(case)) or "none"

    close = sum(case["summary"]["relative_error"]["median"] <= BAND for case in cases)
    bad = [case for case in record["cases"] if case["outcome"] != "measured"]
    missing = ", ".join(map(name, not_measured(record))) or "none"
    band, noisy = f"{100 * BAND:g} %", f"{100 * NOISY:g} %"
    return "\n".join(
        [
            f"- Median relative error up to {band}: {close} of {len(cases)} cases. Larger: "
            f"{those(lambda c: c['summary']['relative_error']['median'] > BAND)}.",
            f"- Hardly any time to gain (floor of at least {100 * LAUNCHING:g} %): "
            f"{those(lambda c: c['table']['floor'] >= LAUNCHING * c['table']['dense'])}.",
            f"- Noisy (median spread above {noisy}), so errors mean little: "
            f"{those(lambda c: c['summary']['spread']['median'] > NOISY)}.",
            f"- Failed: {'; '.join(f'{name(c)} ({why(c)})' for c in bad) or 'none'}.",
            f"- Not measured: {missing}.",
        ]
    )


def name(case: Row) -> str:
    """A case in words."""
    return f"{case['model']} {case['phase']} {EXECUTIONS[case['execution']]}"


def why(case: Row) -> str:
    """Why it failed; a page must not take the marks of an error as its own."""
    return " ".join(case.get("why", "it did not end").split()).replace("<", "&lt;")


def not_measured(record: Row) -> list[Row]:
    """The cases that the benchmark has by default, or was asked for, and did not get to."""
    kind = "cuda" if record["provenance"]["cuda"] else "cpu"
    wanted = [
        {"model": model, "phase": phase.value, "execution": execution.value}
        for model, shape in SHAPES.items()
        for phase in shape.phases
        for execution in DEFAULTS[kind]
    ]
    wanted += [key for key in record["left_out"] if key not in wanted]
    return [
        key
        for key in wanted
        if not any(key.items() <= {k: case[k] for k in key}.items() for case in record["cases"])
    ]


def main() -> int:
    """Write, or check."""
    found = records(RESULTS)
    if not found:
        print("no results; run benchmarks/latency/run.py first", file=sys.stderr)
        return 1
    made = files(found)
    return write_or_check(made, DOCS, PICTURES, "latency.md", sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
