"""Another solver's answer to a coverage, bounded and often improved by Lagrangian prices of the rows."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import numpy as np

from cahp_opt.arrays import Bools
from cahp_opt.bounds.row_prices import CoverageBound, coverage_bound
from cahp_opt.objective import CoverageForm
from cahp_opt.problem import Problem
from cahp_opt.rounding import rounding_slack
from cahp_opt.solver import Proposal, Solver, Status
from cahp_opt.solvers.lazy_greedy import LazyGreedy
from cahp_opt.solvers.local_search import LocalSearch, improve
from cahp_opt.solvers.parts.neighbourhood import Neighbourhood

CERTIFICATE = "Lagrangian prices of the rows over the exact oracle"
"""Where the bound comes from."""

_WORK = 60_000_000  # numbers that all steps together look at, at most


@dataclass(frozen=True)
class RowPrices(Solver):
    """A good answer to a coverage, with a bound near the best that its relaxation has.

    Subgradient steps make the bound of Cornuejols, Fisher and Nemhauser (1977) small; the keep-sets
    that they meet are answers too, and the best is improved by swaps and exchanges. It needs nothing
    but NumPy; :class:`MIQP` closes what is left.

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
        priced = price_rows(problem, form, first.kept, self.steps, deadline)
        value = problem.objective.value(priced.kept)
        if priced.bound <= value + rounding_slack(value, priced.bound):
            status = Status.OPTIMAL
        else:
            status = Status.TIME_LIMIT if time.monotonic() > deadline else Status.FEASIBLE
        stats = {**first.stats, "price steps": priced.steps}
        return Proposal(priced.kept, max(priced.bound, value), status, CERTIFICATE, stats)


def price_rows(
    problem: Problem, form: CoverageForm, start: Bools, steps: int, deadline: float
) -> CoverageBound:
    """The bound and the prices, and the best of the keep-sets met, after swaps and exchanges.

    Args:
        problem: the objective and the budget.
        form: the objective's coverage.
        start: a keep-set within the budget, bool ``[n]``.
        steps: subgradient steps at most; fewer for large matrices.
        deadline: the ``time.monotonic()`` at which to stop.
    """
    steps = min(steps, 50 + 4 * problem.space.n, 1 + _WORK // form.similarity.size)
    priced = coverage_bound(
        problem.budget, form, start, steps=steps, deadline=deadline, precision=1e-10
    )
    here = Neighbourhood(problem, priced.kept)
    improve(here, 2, deadline)
    kept = max((start, priced.kept, here.kept), key=problem.objective.value)
    return replace(priced, kept=kept, value=problem.objective.value(kept))
