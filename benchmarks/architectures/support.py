"""Write docs/support.md, the table of what works for which architecture, from the recorded runs.

python benchmarks/architectures/support.py            rewrite docs/support.md
python benchmarks/architectures/support.py --check    fail if it is not what the results say
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "architectures"
TARGET = ROOT / "docs" / "support.md"
CHECKS = (
    "mask",
    "slice",
    "zero heads",
    "generate",
    "reload",
    "training",
    "compile",
    "export",
    "onnx",
    "lora",
    "neurons",
)
HEAD = """# Supported architectures

Written by `python benchmarks/architectures/support.py` from `benchmarks/results/architectures/`; never
edit it by hand. Every architecture is built small with random weights and goes through the tests that
are marked `support`: gates are reversible and act on every block (*mask*), the sliced model equals the
masked one in float64, float32 and bfloat16, with and without padding, also sliced twice (*slice*),
blocks may be left empty (*zero heads*), greedy decoding gives the same tokens with and without a cache
(*generate*), saving and loading give the same weights (*reload*), a training step works and leaves
empty blocks empty (*training*), and `torch.compile`, `torch.export`, ONNX through onnxruntime (*onnx*)
and LoRA adapters of PEFT before slicing (*lora*) work. *neurons*: heads and feed-forward neurons in random
groups, one part left empty, are cut in one slice, and again, saved, loaded and used for generation.

"yes" holds for every version of transformers below; otherwise the versions that fail are named. An
empty cell was not tested, because the model does not do that or no test records it.
"""


def records() -> dict[str, dict[str, Any]]:
    """What was recorded, by version of transformers, the oldest first."""
    found: dict[str, dict[str, Any]] = {}
    for path in RESULTS.glob("*.json"):
        record = json.loads(path.read_text())
        if "builds" in record:  # others are sweeps and runs on devices
            found[record["provenance"]["versions"]["transformers"]] = record
    return dict(sorted(found.items(), key=lambda item: _order(item[0])))


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def cell(runs: dict[str, dict[str, Any]], build: str, check: str) -> str:
    """What the runs say about one check of one build."""
    found = {
        version: record["builds"].get(build, {}).get(check, {}).get("outcome")
        for version, record in runs.items()
    }
    tested = {v: outcome for v, outcome in found.items() if outcome in ("passed", "failed")}
    failed = [version for version, outcome in tested.items() if outcome == "failed"]
    if not tested:
        return ""
    if failed:
        return "no" if len(failed) == len(tested) else f"not in {', '.join(failed)}"
    return "yes" if len(tested) == len(found) else f"yes ({', '.join(tested)})"


def table(runs: dict[str, dict[str, Any]]) -> str:
    """The whole page."""
    builds = list(dict.fromkeys(b for record in runs.values() for b in record["builds"]))
    lines = [
        "| architecture | " + " | ".join(CHECKS) + " |",
        "|---" * (len(CHECKS) + 1) + "|",
        *(
            f"| {build} | " + " | ".join(cell(runs, build, check) for check in CHECKS) + " |"
            for build in builds
        ),
    ]
    reasons = [
        f"- {build}, {check}, {version}: {found['why']}"
        for version, record in runs.items()
        for build, checks in record["builds"].items()
        for check, found in checks.items()
        if found["outcome"] == "failed"
    ]
    ran = [
        f"- transformers {version}: torch {p['versions']['torch']}, Python {p['python']}, "
        f"{p['device']}, {p['date']}"
        for version, p in ((v, record["provenance"]) for v, record in runs.items())
    ]
    parts = [HEAD, "\n".join(lines), "## What it ran on\n\n" + "\n".join(ran)]
    if reasons:
        parts.append("## What failed\n\n" + "\n".join(reasons))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def main() -> int:
    runs = records()
    if not runs:
        print("no results; run benchmarks/architectures/versions.py first", file=sys.stderr)
        return 1
    page = table(runs)
    if "--check" in sys.argv[1:]:
        same = TARGET.is_file() and TARGET.read_text() == page
        print("docs/support.md is up to date" if same else "docs/support.md is stale")
        return int(not same)
    TARGET.write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
