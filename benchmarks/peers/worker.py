"""One library, one objective, one matrix: select, time it, and print a line of JSON.

Started by ``run.py`` in a process of its own, so that the peak memory is that library's alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

GRAPH_CUT_LAMBDA = 0.1
"""Redundancy of graph cut: small enough that every unit still gains, so that all rules agree."""


class Answer(NamedTuple):
    """What a library chose, the seconds for building its objective and for selecting,
    and the processor time of both (which a busy machine changes less)."""

    chosen: list[int]
    build: float
    solve: float
    processor: float
    extra: dict[str, Any] = {}  # noqa: RUF012 - a NamedTuple default, never written to


def cahp_opt(similarity: Any, keep: int, objective: str) -> Answer:
    from cahp_opt import Budget, HeadSpace, Problem
    from cahp_opt.objectives import FacilityLocation, GraphCut
    from cahp_opt.solvers import LazyGreedy

    start, before = time.perf_counter(), time.process_time()
    if objective == "facility location":
        function = FacilityLocation(similarity)
    else:
        function = GraphCut(similarity, GRAPH_CUT_LAMBDA)
    n = len(similarity)
    blocks = n // 8
    space = HeadSpace(tuple((f"block.{b}", 8 + (n % 8) * (b == 0)) for b in range(blocks)))
    problem = Problem(function, Budget.heads(space, keep))
    built = time.perf_counter()
    proposal = LazyGreedy().solve(problem, deadline=float("inf"), rng=np.random.default_rng(0))
    solved = time.perf_counter()
    spent = time.process_time() - before
    extra = {"evaluations": proposal.stats["evaluations"]}
    kept = np.flatnonzero(proposal.kept).tolist()
    return Answer(kept, built - start, solved - built, spent, extra)


def apricot(similarity: Any, keep: int, objective: str) -> Answer:
    from apricot import FacilityLocationSelection, GraphCutSelection

    def make(k: int) -> Any:
        options = {"metric": "precomputed", "optimizer": "lazy", "verbose": False}
        if objective == "facility location":
            return FacilityLocationSelection(k, **options)
        # Its `alpha` weighs the sums over all rows, ours the pairs among the kept.
        return GraphCutSelection(k, alpha=1.0 / GRAPH_CUT_LAMBDA, **options)

    make(2).fit(similarity[:8, :8].copy())  # compile outside the clock
    start, before = time.perf_counter(), time.process_time()
    function = make(keep)
    built = time.perf_counter()
    function.fit(similarity)
    solved, spent = time.perf_counter(), time.process_time() - before
    return Answer([int(i) for i in function.ranking], built - start, solved - built, spent)


def submodlib(similarity: Any, keep: int, objective: str) -> Answer:
    from submodlib.functions.facilityLocation import FacilityLocationFunction
    from submodlib.functions.graphCut import GraphCutFunction

    n = len(similarity)
    start, before = time.perf_counter(), time.process_time()
    function: Any
    if objective == "facility location":
        function = FacilityLocationFunction(n=n, mode="dense", sijs=similarity, separate_rep=False)
    else:
        function = GraphCutFunction(
            n=n, mode="dense", lambdaVal=GRAPH_CUT_LAMBDA, ggsijs=similarity, separate_rep=False
        )
    built = time.perf_counter()
    picks = function.maximize(
        budget=keep,
        optimizer="LazyGreedy",
        stopIfZeroGain=False,
        stopIfNegativeGain=False,
        verbose=False,
        show_progress=False,
    )
    solved, spent = time.perf_counter(), time.process_time() - before
    return Answer([int(i) for i, _ in picks], built - start, solved - built, spent)


LIBRARIES: dict[str, Callable[[Any, int, str], Answer]] = {
    "cahp_opt": cahp_opt,
    "apricot": apricot,
    "submodlib": submodlib,
}


def value(similarity: Any, chosen: list[int], objective: str) -> float:
    """The value of the choice, in double precision, by the same code for every library."""
    if objective == "facility location":
        best = np.zeros(len(similarity), dtype=similarity.dtype)
        for unit in chosen:
            np.maximum(best, similarity[unit], out=best)
        return float(best.sum(dtype=np.float64))
    total = 0.0
    kept = np.array(chosen)
    for unit in chosen:
        row = similarity[unit]
        total += float(row.sum(dtype=np.float64))
        total -= GRAPH_CUT_LAMBDA * float(row[kept].sum(dtype=np.float64))
    return total


def peak_memory() -> int:
    """Peak resident memory of this process, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", choices=sorted(LIBRARIES))
    parser.add_argument("matrix")
    parser.add_argument("keep", type=int)
    parser.add_argument("objective", choices=["facility location", "graph cut"])
    arguments = parser.parse_args()
    similarity = np.load(arguments.matrix)
    with contextlib.redirect_stdout(sys.stderr):
        answer = LIBRARIES[arguments.library](similarity, arguments.keep, arguments.objective)
    result = {
        "library": arguments.library,
        "value": value(similarity, answer.chosen, arguments.objective),
        "kept": len(set(answer.chosen)),
        "build_seconds": answer.build,
        "solve_seconds": answer.solve,
        "total_seconds": answer.build + answer.solve,
        "processor_seconds": answer.processor,
        "matrix_bytes": similarity.nbytes,
        "peak_bytes": peak_memory(),
        **answer.extra,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
