"""Frank-Wolfe bounds for quadratic forms over the exact oracle.

Every point proves a bound, see :class:`SplitForm`. The best point is a mean of keep-sets: the maximum of a concave function over their convex hull, found by fully corrective
Frank-Wolfe steps (Lacoste-Julien and Jaggi 2015, "On the global linear convergence of Frank-Wolfe
optimization variants") whose inner problem takes pairwise steps.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cahp_opt.arrays import Bools, Floats
from cahp_opt.bounds.convex_split import (
    ConvexSplit,
    best_split,
    shifted,
    single_parts,
    tabulated_parts,
)
from cahp_opt.bounds.mixture import Mixture
from cahp_opt.bounds.split_form import SplitForm
from cahp_opt.costs.budget import Budget
from cahp_opt.objective import QuadraticForm

CERTIFICATE = "Frank-Wolfe over the exact oracle"
"""Where such a bound comes from."""


@dataclass(frozen=True)
class Effort:
    """How much work a bound may take.

    Args:
        splits: how often the split is fitted to the point found so far.
        steps: oracle calls per split.
        precision: relative gap between the bound and the concave maximum at which steps stop.
    """

    splits: int = 2
    steps: int = 12
    precision: float = 1e-3


class Lowest(NamedTuple):
    """The smallest bound of some steps, the point ``[n]`` that proves it, and the number of
    steps."""

    bound: float
    point: Floats
    steps: int


@dataclass(frozen=True, eq=False)
class FrankWolfe:
    """The outcome: the bound, the point ``y``, ``[n]``, that proves it, its split, and the
    keep-sets met."""

    bound: float
    point: Floats
    split: ConvexSplit
    met: Bools
    """Keep-sets within the budget whose mean the point is, bool ``[m, n]``; good places to start."""
    steps: int


def quadratic_frank_wolfe(
    budget: Budget,
    form: QuadraticForm,
    start: Bools,
    effort: Effort | None = None,
    *,
    deadline: float = float("inf"),
    tabulate: bool = True,
    floor: float = -float("inf"),
) -> FrankWolfe:
    """The smallest bound that Frank-Wolfe finds for a quadratic form within a budget.

    Args:
        budget: the limits.
        form: the objective.
        start: a keep-set within the budget, bool ``[n]``; good ones save steps.
        effort: how much work; None for the default.
        deadline: the ``time.monotonic()`` at which to stop, between two steps.
        tabulate: use exact tables of all subsets in blocks that are small enough.
        floor: stop once the bound is this small, such as the value of a keep-set.
    """
    effort = Effort() if effort is None else effort
    n = len(form.linear)
    parts = tabulated_parts(budget.space) if tabulate else single_parts(0, n)
    active = Mixture(form, start)
    kept = start.astype(np.float64)
    best = float("inf")
    point = kept
    density = max(float(kept.mean()), 0.05)
    covariance = np.eye(n) * max(density * (1 - density), 0.01)
    split: ConvexSplit | None = None
    chosen: ConvexSplit | None = None
    taken = 0
    for turn in range(max(effort.splits, 1)):
        if effort.splits == 0:
            split = shifted(form.pairwise)
        else:
            split = best_split(form.pairwise, parts, covariance, split, deadline=deadline)
        chosen = split if chosen is None else chosen
        active.use(split.rest)
        terms = SplitForm.of(budget, form, split, deadline)
        found = frank_wolfe_steps(terms, active, effort, deadline=deadline, floor=floor)
        taken += found.steps
        if found.bound < best:
            best, point, chosen = found.bound, found.point, split
        if best <= floor or time.monotonic() > deadline:
            break
        seen = active.covariance(parts)
        covariance = (covariance * (turn + 1) + seen) / (turn + 2)
    assert chosen is not None
    return FrankWolfe(best, point, chosen, active.met, taken)


def frank_wolfe_steps(
    terms: SplitForm, active: Mixture, effort: Effort, *, deadline: float, floor: float
) -> Lowest:
    """Take fully corrective Frank-Wolfe steps from a mixture, in place.

    Args:
        terms: the objective with one split of it.
        active: the mixture to start from; it must use the rest of the split.
        effort: how many steps at most, and the precision at which to stop.
        deadline: the ``time.monotonic()`` at which to stop.
        floor: stop once the bound is this small.
    """
    best, chosen, taken = float("inf"), active.point, 0
    for _ in range(effort.steps):
        y = active.point
        bound, vertex = terms.bound_at(y)
        taken += 1
        if bound < best:
            best, chosen = bound, y
        if best <= floor or time.monotonic() > deadline:
            break
        below = bound - terms.form.constant - active.value
        # The gap to a floor is what matters if there is one, the spread of values otherwise.
        size = bound - floor if np.isfinite(floor) else max(abs(bound), abs(bound - active.worst))
        if below <= effort.precision * max(size, 1e-300):
            break
        active.add(vertex.kept)
        active.correct(0.05 * below)
    return Lowest(best, chosen, taken)
