"""Every keep-set within the budget: the ground truth of small problems."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass

import numpy as np

from cahp_opt.problem import Problem
from cahp_opt.solver import Proposal, Solver, Status


@dataclass(frozen=True)
class BruteForce(Solver):
    """Evaluate every keep-set within the budget and take the best; the first among equals.

    Cost: up to 2^n values; exact; any objective of at most `most_units` units.

    Args:
        most_units: refuse problems with more units than this.
    """

    most_units: int = 20

    def solve(self, problem: Problem, *, deadline: float, rng: np.random.Generator) -> Proposal:
        space, budget = problem.space, problem.budget
        if space.n > self.most_units:
            raise ValueError(
                f"`BruteForce` takes at most {self.most_units} units, got {space.n}; use "
                "`DynamicProgram` for an exact answer, or `LazyGreedy`."
            )
        best, best_value, evaluations = None, -math.inf, 0
        for counts in itertools.product(*(np.flatnonzero(fine) for fine in budget.allowed)):
            if not budget.allows(np.array(counts)):
                continue
            subsets = (
                itertools.combinations(range(where.start, where.stop), int(k))
                for where, k in zip(space.slices, counts, strict=True)
            )
            for chosen in itertools.product(*subsets):
                if best is not None and time.monotonic() > deadline:
                    return Proposal(
                        best, status=Status.TIME_LIMIT, stats={"evaluations": evaluations}
                    )
                kept = np.zeros(space.n, dtype=np.bool_)
                kept[[unit for block in chosen for unit in block]] = True
                value = problem.objective.value(kept)
                evaluations += 1
                if best is None or value > best_value:
                    best, best_value = kept, value
        assert best is not None  # a Budget that nothing meets cannot be made
        return Proposal(
            best, best_value, Status.OPTIMAL, "every keep-set", {"evaluations": evaluations}
        )
