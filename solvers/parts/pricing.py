"""What prices of the rows make of a coverage's incumbent."""

from __future__ import annotations

from cahp_opt.bounds.row_prices import CERTIFICATE, CoverageBound, coverage_bound
from cahp_opt.objective import CoverageForm
from cahp_opt.solvers.parts.incumbent import Incumbent
from cahp_opt.solvers.parts.local_optimum import to_local_optimum
from cahp_opt.solvers.parts.neighbourhood import Neighbourhood

_WORK = 60_000_000  # numbers that all steps together look at, at most


def price_rows(best: Incumbent, form: CoverageForm, steps: int, deadline: float) -> CoverageBound:
    """Tighten the bound by subgradient steps, and offer the best keep-set that they meet, as it is and
    after swaps and exchanges.

    Args:
        best: the incumbent, from whose keep-set the steps set out.
        form: the objective's coverage.
        steps: subgradient steps at most; fewer for large matrices.
        deadline: the ``time.monotonic()`` at which to stop.
    """
    problem = best.problem
    steps = min(steps, 50 + 4 * problem.space.n, 1 + _WORK // form.similarity.size)
    priced = coverage_bound(
        problem.budget, form, best.kept, steps=steps, deadline=deadline, precision=1e-10
    )
    best.tighten(priced.bound, CERTIFICATE)
    here = Neighbourhood(problem, priced.kept)
    to_local_optimum(here, 2, deadline)
    best.offer(priced.kept)
    best.offer(here.kept)
    return priced
