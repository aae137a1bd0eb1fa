"""Another solver's answer to a coverage, bounded and often improved by Lagrangian prices of the rows."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from cahp_opt.problem import Problem
from cahp_opt.solver import Proposal, Solver, Status
from cahp_opt.solvers.lazy_greedy import LazyGreedy
from cahp_opt.solvers.local_search import LocalSearch
from cahp_opt.solvers.parts.incumbent import Incumbent
from cahp_opt.solvers.parts.pricing import price_rows


@dataclass(frozen=True)
class RowPrices(Solver):
    """A good answer to a coverage, with a bound near the best that its relaxation has.

    Subgradient steps make the bound of Cornuejols, Fisher and Nemhauser (1977) small; the keep-sets
    that they meet are answers too, and the best is improved by swaps and exchanges. It needs nothing
    but NumPy; :class:`MIQP` closes what is left.

    Cost: O(m n) per step for m rows; heuristic with a bound; needs `coverage()`.

    Args:
        start: the solver that makes the first keep-set; its refusals pass through.
        steps: subgradient steps at most; fewer for large matrices.

    Raises:
        ValueError: if the objective offers no coverage.
    """

    start: Solver = field(default_factory=lambda: LocalSearch(LazyGreedy()))
    steps: int = 600

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"`steps` must be at least 1, got {self.steps}.")

    def solve(self, problem: Problem, *, deadline: float, rng: np.random.Generator) -> Proposal:
        form = problem.objective.coverage()
        if form is None:
            raise ValueError(
                f"`RowPrices` needs a coverage, and `{type(problem.objective).__name__}` offers none; "
                "use `LocalSearch`."
            )
        first = self.start.solve(problem, deadline=deadline, rng=rng)
        if first.status is Status.OPTIMAL or time.monotonic() > deadline:
            return first
        best = Incumbent.following(problem, first, deadline)
        best.stats["price steps"] = price_rows(best, form, self.steps, deadline).steps
        return best.proposal()
