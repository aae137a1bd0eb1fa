"""Write docs/sweep.md from the committed sweeps; ``--check`` fails if it is not what they say."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "architectures"
PAGE = ROOT / "docs" / "sweep.md"

_INTRODUCTION = """# Which model types can be sliced

Written by `benchmarks/architectures/report.py` from `benchmarks/results/architectures/sweep_*.json`;
do not edit.

For every model type of an installed transformers a tiny model with random weights was built from a
shrunken configuration, by rules that know field names but no models, and run on random inputs. Heads, and
groups of feed-forward neurons in a random order, of every block that runs were removed in one slice with
`slice_heads`, which itself compares the masked and the sliced model: a random part of them, all but one, all but
two, and all of every other block. Where that failed, heads and neurons were tried alone; the status of a type is
that of its heads, and *both kinds* counts the types that passed with both in one slice. Then both were compared
again, on other inputs, with and without padding, texts of 72, 16 and 3 tokens for the random part, over
all floating-point outputs at real tokens (float32, 1e-4 of an output's largest value; where rounding decides
what a model goes on with, float64, 1e-9). Some types were
tried once more with options that give them other attention; their rows name the options.

- **passed**: the same in both comparisons.
- **silently wrong**: `slice_heads` passed, and the second comparison failed.
- **slice error**: `slice_heads` found that the result differs or cannot run, restored the model and raised an error.
- **refused**: attention that is not understood, or whose heads cannot be removed one by one.
- **no attention**: nothing that looks like attention.
- **not built**: no tiny model of the type could be built and run here, which says nothing about the library.
"""

_FAILURES = ("silently wrong", "slice error", "refused", "not built")


def page() -> str:
    """The whole page."""
    sweeps = sorted(
        (json.loads(path.read_text(encoding="utf-8")) for path in RESULTS.glob("sweep_*.json")),
        key=lambda s: [int(n) for n in s["provenance"]["transformers"].split(".")],
        reverse=True,
    )
    if not sweeps:
        raise SystemExit(f"no sweep_*.json in {RESULTS}")
    statuses = list(sweeps[0]["summary"])
    lines = [_INTRODUCTION, f"| transformers | types | {' | '.join(statuses)} | both kinds |"]
    lines.append("|---" * (len(statuses) + 3) + "|")
    for sweep in sweeps:
        counts = [str(sweep["summary"][status]) for status in statuses]
        counts.append(str(sweep.get("both kinds", "not tried")))
        version = sweep["provenance"]["transformers"]
        lines.append(f"| {version} | {len(sweep['types'])} | {' | '.join(counts)} |")
    for sweep in sweeps:
        if not any("keep_sets" in row for row in sweep["types"]):
            known = sweep["provenance"]
            lines.append(
                f"\nThe sweep under {known['transformers']} is of {known['date']} and was not run again: it "
                "tried texts of 16 tokens, the random part and the usual options alone, so it counts types "
                "as passed that fail in one of the other ways."
            )
    latest = sweeps[0]
    rows = latest["types"]
    lines.append(
        f"\nThe rest of this page is about transformers {latest['provenance']['transformers']}."
    )
    for status in _FAILURES:
        lines += _table(status, [row for row in rows if row["status"] == status])
    lines += _neurons(rows)
    lines += _notes([row for row in rows if row["status"] == "passed"])
    for status in ("no attention", "passed"):
        names = [f"`{row['type']}`" for row in rows if row["status"] == status]
        lines += [f"\n## {status.capitalize()}: {len(names)}\n", ", ".join(names) or "none"]
    return "\n".join(lines) + "\n"


def _neurons(rows: list[dict[str, Any]]) -> list[str]:
    """What became of feed-forward parts where not all of the type was cut in one slice."""
    told = [row for row in rows if "neurons" in row]
    lacking = [r for r in told if r["neurons"]["status"] != "passed"]
    alone = [r for r in told if r["neurons"]["status"] == "passed" and not _has_both(r)]
    lines = _table(
        "Without feed-forward neurons",
        [{"type": r["type"], "reason": _brief(r["neurons"])} for r in lacking],
    )
    lines.append(f"\n## Feed-forward neurons without heads: {len(alone)}\n")
    lines.append("Neurons passed alone; what became of the heads is above.\n")
    return [*lines, ", ".join(f"`{row['type']}`" for row in alone) or "none"]


def _left_alone(row: dict[str, Any]) -> int:
    """Attention, and feed-forward parts beside others, that stayed as they are."""
    neurons = row.get("neurons", {})
    apart = {} if neurons.get("status") == "passed" else neurons.get("skipped", {})
    return len({*row.get("skipped", {})} - {*apart})


def _has_both(row: dict[str, Any]) -> bool:
    neurons = row.get("neurons", {}).get("status")
    return "both" not in row and row["status"] == neurons == "passed"


def _brief(neurons: dict[str, Any]) -> str:
    """The reason without the list of known layouts; a message that names a module states why."""
    reason = re.sub(r" Known ones end in layers named .*", "", neurons["reason"])
    reason = re.sub(
        r"^`model` is an? \w+ without any feed-forward part that is understood;? ?", "", reason
    )
    reason = re.sub(r"\b\d+\b", "N", re.sub(r"^\S+ is not, because ", "", reason)).strip(" .")
    return f"{neurons['status']}: {reason or 'nothing looks like one'}"


def _table(status: str, rows: list[dict[str, Any]]) -> list[str]:
    lines = [f"\n## {status[0].upper()}{status[1:]}: {len(rows)}\n"]
    if not rows:
        return [*lines, "none"]
    by_reason: dict[str, list[str]] = {}
    for row in rows:
        by_reason.setdefault(_plain(row["reason"]), []).append(f"`{row['type']}`")
    lines += ["| types | reason |", "|---|---|"]
    return lines + [f"| {', '.join(names)} | {reason} |" for reason, names in by_reason.items()]


def _plain(reason: str) -> str:
    reason = re.sub(r"\s+", " ", reason)
    for mark in "|<>*_`[]":
        reason = reason.replace(mark, "\\" + mark)
    return reason


def _notes(rows: list[dict[str, Any]]) -> list[str]:
    partly = [r for r in rows if r.get("blocks_not_reached") or _left_alone(r)]
    grouped = [r for r in rows if r.get("with_groups")]
    lines = [f"\n## Passed in part: {len(partly)}\n"]
    lines.append(
        "Blocks that the inputs did not reach were kept whole, and attention or feed-forward parts that are "
        "not understood, or are experts, stayed as they are (`Prunable.skipped`).\n"
    )
    lines += ["| type | blocks | not reached | left as they are |", "|---|---|---|---|"]
    for row in partly:
        blocks = row["blocks"] + (row["neurons"]["blocks"] if _has_both(row) else 0)
        silent, skipped = len(row.get("blocks_not_reached", ())), _left_alone(row)
        lines.append(f"| `{row['type']}` | {blocks} | {silent} | {skipped} |")
    short = [r for r in rows if r.get("lengths_not_taken")]
    lines.append(f"\n## Passed with texts of some lengths: {len(short)}\n")
    lines.append("On texts of the other lengths the unpruned model itself ends in an error.\n")
    lines += ["| type | tokens not taken | why |", "|---|---|---|"]
    for row in short:
        not_taken = row["lengths_not_taken"]
        why = _plain(next(iter(not_taken.values())))
        lines.append(f"| `{row['type']}` | {', '.join(not_taken)} | {why} |")
    lines += [
        f"\n## Passed only with as many key/value heads as query heads: {len(grouped)}\n",
        ", ".join(f"`{row['type']}`" for row in grouped) or "none",
    ]
    return lines


def main() -> None:
    text = page()
    if "--check" in sys.argv[1:]:
        if PAGE.read_text(encoding="utf-8") != text:
            raise SystemExit(f"{PAGE.name} is not what the results say; run this script")
        return
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
