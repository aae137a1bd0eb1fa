"""Facility location and graph cut here, in apricot-select and in submodlib: one library, one matrix.

Started by ``run.py`` in a process of its own, so that the peak memory is that library's alone; prints a
line of JSON. All start from the float32 matrix: checks, copies and conversions are on the clock.
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


def similarity(n: int, seed: int = 0) -> np.ndarray:
    """``exp(-d^2 / 32)`` of points from Gaussian clusters in 32 dimensions; symmetric to the bit."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(8, n // 100), 32))
    points = centres[rng.integers(len(centres), size=n)] + 0.5 * rng.normal(size=(n, 32))
    points = points.astype(np.float32)
    squares = np.einsum("nd,nd->n", points, points)
    matrix = np.empty((n, n), dtype=np.float32)
    step = 1024
    for a in range(0, n, step):
        block = matrix[a : a + step]
        np.matmul(points[a : a + step], points.T, out=block)
        block *= -2
        block += squares
        block += squares[a : a + step, None]
        np.maximum(block, 0, out=block)
        block /= -32
        np.exp(block, out=block)
    for a in range(0, n, step):
        for b in range(a, n, step):
            upper, lower = matrix[a : a + step, b : b + step], matrix[b : b + step, a : a + step]
            lower[:] = np.maximum(upper, upper.T) if a == b else upper.T
    np.fill_diagonal(matrix, 1)
    return matrix


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

    # Every call of `fit` compiles anew: what that takes is told apart. The first imports more.
    compiling = 0.0
    for _ in range(2):
        before = time.process_time()
        make(2).fit(similarity[:8, :8].copy())
        compiling = time.process_time() - before
    start, before = time.perf_counter(), time.process_time()
    function = make(keep)
    built = time.perf_counter()
    function.fit(similarity)
    solved, spent = time.perf_counter(), time.process_time() - before
    chosen = [int(i) for i in function.ranking]
    return Answer(chosen, built - start, solved - built, spent, {"compiling_seconds": compiling})


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
