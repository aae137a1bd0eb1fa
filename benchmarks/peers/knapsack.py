"""Quadratic knapsacks: tabu search here and in latence-solver, on the same matrix and costs.

    python benchmarks/peers/knapsack.py tabu INSTANCE.npz 10     # what run.py starts

The objective is the damage avoided under a positive semidefinite matrix, as the Gauss-Newton objective
has it; every unit of a block costs the same whole number, and half of all costs may be spent.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.peers.timed import timed

SIZES = {144: 12, 384: 16}
"""Units, and units per block."""


class Knapsack(NamedTuple):
    """Maximise ``linear @ x + x @ pairwise @ x`` where ``costs @ x`` is at most ``limit``."""

    linear: Any
    pairwise: Any
    costs: Any
    limit: Any
    per_block: Any

    def value(self, kept: list[int]) -> float:
        """The value of these units, in double precision."""
        return float(self.linear[kept].sum() + self.pairwise[np.ix_(kept, kept)].sum())

    def fits(self, kept: list[int]) -> bool:
        """Whether these units may be kept together."""
        return bool(self.costs[kept].sum() <= self.limit)


def instance(units: int, seed: int = 0) -> Knapsack:
    """A knapsack with the matrix of ``benchmarks/solvers``."""
    from benchmarks.solvers.instances import dense_hessian
    from cahp_opt import HeadSpace
    from cahp_opt.objectives import Quadratic

    rng = np.random.default_rng(seed)
    space = HeadSpace.uniform(units // SIZES[units], SIZES[units])
    objective = Quadratic.damage_avoided(dense_hessian(space, rng))
    costs = np.repeat(rng.integers(5, 31, size=len(space.blocks)), SIZES[units])
    return Knapsack(
        objective.linear_terms, objective.pairwise, costs, costs.sum() // 2, SIZES[units]
    )


def ours(given: Knapsack, limit: float, name: str) -> tuple[list[int], dict[str, Any]]:
    """A solver of this library, and the bound that the certificate states."""
    from cahp_opt import Budget, HeadSpace, LatencyTable, Problem, select, solvers
    from cahp_opt.objectives import Quadratic

    per_block = int(given.per_block)
    space = HeadSpace.uniform(len(given.costs) // per_block, per_block)
    counts = np.arange(per_block + 1, dtype=np.float64)
    seconds = tuple(float(c) * counts for c in given.costs[::per_block])
    budget = Budget.latency(LatencyTable(space, 0.0, seconds), seconds=float(given.limit))
    problem = Problem(Quadratic(given.linear, given.pairwise), budget)
    found = select(problem, getattr(solvers, name)(), time_limit=limit)
    extra = {"bound": found.bound, "certificate": found.certificate}
    return np.flatnonzero(found.kept).tolist(), extra


def latence(given: Knapsack, limit: float, **options: Any) -> tuple[list[int], dict[str, Any]]:
    """latence-solver with nothing but relevance and pairs, and no limit but that of the costs."""
    latence_solver: Any = import_module("latence_solver")
    n = len(given.linear)
    relevance = given.linear + np.diag(given.pairwise)
    scale = np.abs(relevance).max()  # it computes in single precision
    zeros = np.zeros(n, dtype=np.float32)
    config = latence_solver.SolverConfig(
        alpha=1.0, beta=0.0, gamma=0.0, delta=0.0, epsilon=0.0, mu=0.0, lambda_=1.0, **options
    )
    constraints = latence_solver.SolverConstraints(
        max_tokens=int(given.limit), min_chunks=0, max_chunks=n, max_per_cluster=n
    )
    found = latence_solver.TabuSearchSolver(config).solve_precomputed_numpy(
        np.eye(n, dtype=np.float32),
        given.costs.astype(np.uint32),
        *[zeros] * 4,
        np.full(n, 255, dtype=np.uint8),
        np.full(n, -1, dtype=np.int32),
        (relevance / scale).astype(np.float32),
        # A pair counts once there and in both orders here.
        similarity_matrix=(-2 * given.pairwise / scale).astype(np.float32),
        constraints=constraints,
    )
    return [int(i) for i in found.selected_indices], {"iterations": found.iterations_run}


def latence_repeated(given: Knapsack, limit: float) -> tuple[list[int], dict[str, Any]]:
    """The best of runs with ever more iterations and other seeds, until the time is spent."""
    best, runs, iterations = list[int](), 0, 100
    start = time.process_time()
    while True:
        began = time.process_time()
        kept, _ = latence(
            given,
            limit,
            iterations=iterations,
            early_stopping_patience=iterations,
            random_seed=runs,
        )
        runs += 1
        if given.fits(kept) and (not best or given.value(kept) > given.value(best)):
            best = kept
        now = time.process_time()
        if now - start + (now - began) > limit:  # another like it would be too late
            return best, {"runs": runs, "most_iterations": iterations}
        iterations *= 1 + runs % 2


SOLVERS: Mapping[str, Callable[[Knapsack, float], tuple[list[int], dict[str, Any]]]] = {
    "cahp_opt Tabu": lambda given, limit: ours(given, limit, "Tabu"),
    "cahp_opt Auto": lambda given, limit: ours(given, limit, "Auto"),
    "latence-solver": latence,
    "latence-solver, repeated": latence_repeated,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("solver", choices=list(SOLVERS))
    parser.add_argument("instance", type=Path)
    parser.add_argument("limit", type=float, help="seconds of the processor")
    arguments = parser.parse_args()
    with np.load(arguments.instance) as file:
        given = Knapsack(**file)
    # Deadlines of this library are times of this clock: of the processor here, which may be shared.
    time.monotonic = time.process_time
    kept, told = timed(lambda: SOLVERS[arguments.solver](given, arguments.limit))
    result = {
        "solver": arguments.solver,
        "value": given.value(kept),
        "fits": given.fits(kept),
        "kept": len(kept),
        **told,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
