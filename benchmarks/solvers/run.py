"""Every solver on every family of instances, from 72 units to 16 128.

    python benchmarks/solvers/run.py                              # 10 s per run at most
    python benchmarks/solvers/run.py --time-limits 1 10 --families dense --sizes 72 144

Up to 640 units, under a latency staircase at half of the full time; from 5 120 units on, with equal
costs, and greedy solvers only. Each family and size is a process of its own, whose peak memory is
noted. Gaps are to the tightest bound that any solver proved; seconds include proving the bound of the
answer, which is not part of the limit. Prints Markdown tables and writes
``benchmarks/results/solvers.json``; what was interrupted goes on from ``out/solvers``.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from instances import FAMILIES, instance, large_instance

from cahp_opt import Solver, compare, solvers

ROOT = Path(__file__).resolve().parents[2]
# Units, and units per block as in models of that size: MiniLM, BERT base and large, and the key-value
# groups and heads of decoders with 80 and 126 blocks.
SIZES = {72: 12, 144: 12, 384: 16, 640: 8, 5_120: 64, 16_128: 128}
LARGE = 5_120
PACKAGES = ("cahp-opt", "numpy", "scipy", "ortools", "cvxpy", "networkx", "joblib")

LEFT_OUT = {
    "BestOf": "is made of others",
    "BruteForce": "takes 20 units at most",
    "CAHP": "chooses the number of units itself",
}
SOLVERS: Mapping[str, Solver] = {
    name if name.isupper() else re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower(): getattr(
        solvers, name
    )()
    for name in solvers.__all__
    if name not in LEFT_OUT
}
"""Every public solver with its defaults; what cannot take a family refuses it at once."""
FAST = ("random subset", "top k", "stochastic greedy", "lazy greedy")
"""Those for tens of thousands of units."""


def run_here(family: str, units: int, arguments: argparse.Namespace, out: Path) -> None:
    """One family and size in this process; rows and peak memory go to ``out``."""
    large = units >= LARGE
    make = large_instance if large else instance
    problem = make(family, units, arguments.seed, SIZES[units])
    resume = ROOT / "out" / "solvers" / f"{family}-{units}-{arguments.seed}.jsonl".replace(" ", "-")
    resumed = resume.exists()
    comparison = compare(
        {f"{family}, {units}": problem},
        {name: SOLVERS[name] for name in FAST} if large else SOLVERS,
        time_limits=[max(arguments.time_limits)] if large else arguments.time_limits,
        resume=resume,
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = {
        "family": family,
        "units": units,
        # Kilobytes on Linux, bytes on macOS; unknown where runs were taken over from before.
        "peak_bytes": None if resumed else peak * (1 if sys.platform == "darwin" else 1024),
        "rows": [
            {name: x for name, x in row.to_json().items() if name != "counts"}
            | {"gap": _finite(comparison.gap(row))}
            for row in comparison.rows
        ],
    }
    out.write_text(json.dumps(result), encoding="utf-8")


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None


def run_apart(family: str, units: int) -> dict[str, Any]:
    """One family and size in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        command = [sys.executable, *sys.argv, "--here", family, str(units), str(out)]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            return {"family": family, "units": units, "error": done.stderr.strip()[-500:]}
        return json.loads(out.read_text(encoding="utf-8"))


def provenance(arguments: argparse.Namespace) -> dict[str, Any]:
    """Where and with what this was measured."""
    device = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        device = lines[0].split(":")[1].strip() if lines else device
    versions: dict[str, str] = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "absent"
    return {
        "device": device,
        "cores": os.cpu_count(),
        "threads": os.environ["OMP_NUM_THREADS"],
        "load_average_at_start": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": versions,
        "time_limits": arguments.time_limits,
        "seed": arguments.seed,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        **({"note": arguments.note} if arguments.note else {}),
    }


def markdown(record: Mapping[str, Any]) -> str:
    """For every family a table: solvers down, sizes across, gap and seconds in the cells."""
    lines: list[str] = []
    for family in FAMILIES:
        cases = [r for r in record["results"] if r["family"] == family]
        if not cases:
            continue
        lines += [
            f"\n**{family}**: gap to the tightest bound, seconds\n",
            "| solver | limit | " + " | ".join(f"{case['units']:,}" for case in cases) + " |",
            "|---" * (2 + len(cases)) + "|",
        ]
        cells: dict[tuple[str, float], dict[int, str]] = {}
        for case in cases:
            for row in case.get("rows", ()):
                key = (row["solver"], row["time_limit"])
                cells.setdefault(key, {})[case["units"]] = _cell(row)
        for (solver, limit), by_size in cells.items():
            across = " | ".join(by_size.get(case["units"], "") for case in cases)
            lines.append(f"| {solver} | {limit:g} s | {across} |")
        memory = [
            f"{case['peak_bytes'] / 2**20:,.0f} MiB" if case.get("peak_bytes") else ""
            for case in cases
        ]
        lines.append("| *peak memory* | | " + " | ".join(memory) + " |")
        lines += [f"\n{case['units']}: {case['error']}" for case in cases if "error" in case]
    facts = record["provenance"]
    lines.append(
        f"\n{facts['device']}, {facts['threads']} threads. {facts.get('note', '')}".rstrip()
    )
    return "\n".join(lines)


def _cell(row: Mapping[str, Any]) -> str:
    if row["refusal"]:
        return "refused"
    if row["gap"] is None:
        return f"no bound, {row['seconds']:.2f} s"
    gap = "optimal" if row["gap"] < 1e-9 else f"{100 * row['gap']:.3g} %"
    return f"{gap}, {row['seconds']:.2f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--sizes", type=int, nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--time-limits", type=float, nargs="+", default=[10.0], help="s per run")
    parser.add_argument("--seed", type=int, default=0, help="of the instances")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--note", default="", help="a sentence for the provenance")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results" / "solvers.json"
    )
    parser.add_argument("--here", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        family, units, out = arguments.here
        run_here(family, int(units), arguments, Path(out))
        return
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(arguments.threads)
    record: dict[str, Any] = {"provenance": provenance(arguments), "results": []}
    for family in arguments.families:
        for units in arguments.sizes:
            if units >= LARGE and family not in ("modular", "facility location"):
                continue
            began = time.monotonic()
            record["results"].append(run_apart(family, units))
            print(
                f"{family}, {units}: {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True
            )
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(markdown(record))


if __name__ == "__main__":
    main()
