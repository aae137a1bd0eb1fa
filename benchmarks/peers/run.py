"""This library against its peers: coverage, quadratic knapsacks and best subsets, in one environment.

    python benchmarks/peers/run.py                                # all three; about ten minutes
    python benchmarks/peers/run.py coverage --sizes 1000 250

Makes an environment with apricot-select, submodlib-py, latence-solver, abess and what this library
depends on. Every library gets the same arrays, in a process of its own with one thread; the value of
every choice is computed by the same code in double precision. Results are printed and written to
``benchmarks/results/peers/``, from which ``report.py`` writes ``docs/peers.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.peers import covering, environment, knapsack, regression

HERE = Path(__file__).resolve().parent
SIZES = ((1_000, 250), (5_000, 1_250), (16_128, 4_000))
OBJECTIVES = ("facility location", "graph cut")
PARTS = ("coverage", "knapsack", "regression")
SLOW = 15.0
"""Seconds of the processor from which a run is not repeated."""


def coverage_rows(python: Path, folder: Path, options: argparse.Namespace) -> Iterator[Any]:
    """Every library on every matrix; of repeated runs, in turns, the one of least processor time."""
    for n, keep in options.sizes or SIZES:
        file = folder / f"similarity-{n}.npy"
        np.save(file, covering.similarity(n))
        for objective in options.objectives:
            best: dict[str, dict[str, Any]] = {}
            for _ in range(options.repeats):
                for library in options.libraries:
                    before = best.get(library, {})
                    if "error" in before or before.get("processor_seconds", 0) > SLOW:
                        continue
                    arguments = [library, str(file), str(keep), objective]
                    found = environment.run(
                        python, HERE / "covering.py", arguments, options.time_limit
                    )
                    runs = before.get("runs", 0) + 1
                    if (
                        not before
                        or found.get("processor_seconds", np.inf) < before["processor_seconds"]
                    ):
                        before = found
                    best[library] = {**before, "runs": runs}
            for library, row in best.items():
                yield {"objective": objective, "n": n, "keep": keep, "library": library, **row}
        file.unlink()


def knapsack_rows(python: Path, folder: Path, options: argparse.Namespace) -> Iterator[Any]:
    """Every solver on every knapsack, with the same processor time."""
    for units in knapsack.SIZES:
        file = folder / f"knapsack-{units}.npz"
        np.savez(file, **knapsack.instance(units)._asdict())
        for solver in knapsack.SOLVERS:
            arguments = [solver, str(file), str(options.seconds)]
            found = environment.run(python, HERE / "knapsack.py", arguments, options.time_limit)
            yield {"units": units, "limit": options.seconds, "solver": solver, **found}


def regression_rows(python: Path, folder: Path, options: argparse.Namespace) -> Iterator[Any]:
    """Every solver on every regression."""
    for groups, width, keep in regression.SIZES:
        file = folder / f"regression-{groups}.npz"
        np.savez(file, **regression.instance(groups, width)._asdict())
        for solver in regression.SOLVERS:
            arguments = [solver, str(file), str(keep)]
            found = environment.run(python, HERE / "regression.py", arguments, options.time_limit)
            size = {"groups": groups, "width": width, "keep": keep}
            yield {**size, "solver": solver, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument(
        "--sizes", type=int, nargs="+", help="coverage: pairs of n and units to keep"
    )
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument(
        "--libraries",
        nargs="+",
        choices=list(covering.LIBRARIES),
        default=list(covering.LIBRARIES),
        help="coverage: which to run",
    )
    parser.add_argument("--repeats", type=int, default=3, help="coverage: runs of what is not slow")
    parser.add_argument("--seconds", type=float, default=10.0, help="knapsack: processor time")
    parser.add_argument("--time-limit", type=float, default=900.0, help="seconds of one process")
    parser.add_argument("--venv", type=Path, default=None, help="environment to make or reuse")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--note", default="", help="a sentence for the provenance")
    parser.add_argument("--out", type=Path, default=HERE.parent / "results" / "peers")
    options = parser.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if options.sizes:
        options.sizes = tuple(zip(options.sizes[::2], options.sizes[1::2], strict=True))
    for variable in environment.THREADS:
        os.environ[variable] = str(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    rows_of = {
        "coverage": coverage_rows,
        "knapsack": knapsack_rows,
        "regression": regression_rows,
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        python = environment.make(options.venv or folder / "venv")
        for part in options.parts:
            facts = {**environment.provenance(python), "note": options.note}
            rows: list[Any] = []
            for row in rows_of[part](python, folder, options):
                rows.append(row)
                print(json.dumps(row), flush=True)
                record = {"provenance": facts, "results": rows}
                path = options.out / f"{part}.json"
                path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
