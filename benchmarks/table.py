"""Write the tables of the README, docs/fidelity.md and docs/how-recovery.md from the committed results.

python benchmarks/table.py            rewrite them
python benchmarks/table.py --check    fail if they are not what the results say
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.accuracy.report import of_both_kinds, recorded
from benchmarks.accuracy.tasks import table as over_tasks
from benchmarks.both_kinds.report import RESULTS as BOTH_KINDS
from benchmarks.both_kinds.report import headline as both_kinds
from benchmarks.pages import records

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = ("README.md", "docs/fidelity.md", "docs/how-recovery.md")
"""Those with tables between markers."""
_STAGES = ("calibrate", "of which order neurons", "select", "refit")


def fidelity_table() -> str:
    """Cosine distance and neighbour agreement after the refit, by method and units kept."""
    found = [json.loads(p.read_text()) for p in sorted(RESULTS.glob("fidelity_after_refit_*"))]
    lines = [
        "| kept of 72 | selected by | 1 - cosine before refit | after refit | 10 nearest neighbours shared after |",
        "|---|---|---|---|---|",
    ]
    for record in sorted(found, key=lambda r: -r["units"]):
        groups: dict[str, list[dict[str, Any]]] = {}
        for row in record["rows"]:
            groups.setdefault(row["method"], []).append(row)
        for method, rows in groups.items():
            label = f"{method}, mean of {len(rows)}" if len(rows) > 1 else method
            cells = [
                statistics.mean(r[when][figure] for r in rows)
                for when, figure in (
                    ("before", "cosine_distance"),
                    ("after", "cosine_distance"),
                    ("after", "neighbour_agreement_at_10"),
                )
            ]
            lines.append(
                f"| {record['units']} | {label} | {cells[0]:.4f} | {cells[1]:.4f} | {cells[2]:.3f} |"
            )
    last = found[-1]
    lines.append(
        f"\n{last['held out']} held-out texts, {last['texts']} to calibrate and refit on; "
        f"{last['device']}, {last['threads']} threads, torch {last['versions']['torch']}, "
        f"transformers {last['versions']['transformers']}."
    )
    return "\n".join(lines)


def both_kinds_table() -> str:
    """Divergence, accuracy and measured time where heads and neurons are pruned under one latency."""
    return both_kinds(records(BOTH_KINDS).values())


def time_table() -> str:
    """What pruning takes in forward passes of the unpruned model over the same texts, stage by stage."""
    found = list(records(RESULTS / "time_to_prune").values())
    lines = [
        "| model, texts | a forward pass, s | "
        + " | ".join(_STAGES)
        + " | in all | peak memory, MB |",
        "|---" * (len(_STAGES) + 4) + "|",
    ]
    for record in found:
        stages = record["stages"]
        passes = [stages[name]["passes"] for name in _STAGES]
        whole = sum(stages[name]["passes"] for name in ("calibrate", "select", "refit"))
        peak = max(stage["peak MB"] for stage in stages.values())
        cells = [f"{each:.1f}" for each in (stages["forward"]["seconds"], *passes, whole)]
        lines.append(f"| {record['model']}, {record['texts']} | {' | '.join(cells)} | {peak:.0f} |")
    last = found[-1]
    lines.append(
        f"\nProcessor time of one thread of an {last['device']}, torch {last['versions']['torch']}, "
        f"transformers {last['versions']['transformers']}."
    )
    return "\n".join(lines)


def tasks_table() -> str:
    """Mean accuracies of all methods over the tasks."""
    records = of_both_kinds(recorded())
    studies = [*records.values()]
    tested = sum(study.unpruned.examples for study in studies)
    return f"{over_tasks(studies)}\n\n{len(records)} tasks: {', '.join(records)}; {tested:,} test examples."


def filled(text: str) -> str:
    """``text`` with the tables between their markers."""
    tables = {
        "fidelity": fidelity_table,
        "both kinds": both_kinds_table,
        "time to prune": time_table,
        "tasks": tasks_table,
    }
    for name, table in tables.items():
        if f"<!-- {name} -->" in text:
            start, _, rest = text.partition(f"<!-- {name} -->\n")
            _, end, after = rest.partition(f"<!-- /{name} -->")
            text = f"{start}<!-- {name} -->\n{table()}\n{end}{after}"
    return text


def main() -> None:
    before = {name: (ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS}
    after = {name: filled(text) for name, text in before.items()}
    stale = [name for name in DOCUMENTS if before[name] != after[name]]
    if "--check" in sys.argv:
        sys.exit(f"{', '.join(stale)} differ; run python benchmarks/table.py" if stale else None)
    for name in stale:
        (ROOT / name).write_text(after[name], encoding="utf-8")


if __name__ == "__main__":
    main()
