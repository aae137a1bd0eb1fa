"""Frank-Wolfe bounds for quadratic forms over the exact oracle.

With ``f(x) = q(x) - x' R x``, ``q`` exact in the oracle and ``R`` positive semidefinite, every point
``y`` proves ``max f <= y' R y + max over the budget of q(x) - 2 (R y) @ x``. The best ``y`` is a mean
of keep-sets: the maximum of a concave function over their convex hull, found by fully corrective
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
from cahp_opt.bounds.oracle import MOST_TABULATED, Oracle, Vertex
from cahp_opt.costs.budget import Budget
from cahp_opt.objective import QuadraticForm
from cahp_opt.rounding import sum_rounding
from cahp_opt.space import HeadSpace
from cahp_opt.subsets import subset_values

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


class Improved(NamedTuple):
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
        oracle = split_oracle(budget, form, split, deadline)
        active.use(split.rest)
        found = improve(
            active, oracle, form, split, effort.steps, effort.precision, deadline, floor
        )
        taken += found.steps
        if found.bound < best:
            best, point, chosen = found.bound, found.point, split
        if best <= floor or time.monotonic() > deadline:
            break
        seen = active.covariance(parts)
        covariance = (covariance * (turn + 1) + seen) / (turn + 2)
    assert chosen is not None
    return FrankWolfe(best, point, chosen, active.met, taken)


def improve(
    active: Mixture,
    oracle: Oracle,
    form: QuadraticForm,
    split: ConvexSplit,
    steps: int,
    precision: float,
    deadline: float,
    floor: float,
) -> Improved:
    """Take fully corrective Frank-Wolfe steps from a mixture, in place.

    Args:
        active: the mixture to start from; it must use the rest of the split.
        oracle: that of the split.
        form: the objective.
        split: its split.
        steps: oracle calls.
        precision: relative gap to the concave maximum at which to stop.
        deadline: the ``time.monotonic()`` at which to stop.
        floor: stop once the bound is this small.
    """
    best, chosen, taken = float("inf"), active.point, 0
    for _ in range(steps):
        y = active.point
        bound, vertex = bound_at(oracle, form, split, y)
        taken += 1
        if bound < best:
            best, chosen = bound, y
        if best <= floor or time.monotonic() > deadline:
            break
        below = bound - form.constant - active.value
        # The gap to a floor is what matters if there is one, the spread of values otherwise.
        size = bound - floor if np.isfinite(floor) else max(abs(bound), abs(bound - active.worst))
        if below <= precision * max(size, 1e-300):
            break
        active.add(vertex.kept)
        active.correct(0.05 * below)
    return Improved(best, chosen, taken)


def bound_at(
    oracle: Oracle, form: QuadraticForm, split: ConvexSplit, point: Floats
) -> tuple[float, Vertex]:
    """The bound that any point ``[n]`` of the unit cube proves, and the keep-set that attains it.

    Args:
        oracle: that of the split, from :func:`split_oracle`.
        form: the objective.
        split: any split of it.
        point: the point at which the rest is linearised.
    """
    pull = split.rest @ point
    vertex = oracle.best(-2 * pull)
    bound = form.constant + float(point @ pull) + vertex.bound + split.excess
    return bound + _rounding(form, split), vertex


def split_oracle(
    budget: Budget, form: QuadraticForm, split: ConvexSplit, deadline: float = float("inf")
) -> Oracle:
    """The oracle of ``linear @ x + x' inside x`` plus weights, see :class:`Oracle`."""
    values, base = split_values(budget.space, form, split)
    return Oracle(budget, values, base, deadline)


def split_values(
    space: HeadSpace, form: QuadraticForm, split: ConvexSplit, *, every: bool = False
) -> tuple[list[Floats | None], Floats]:
    """The exact part of a split: tables of blocks by subset code, ``[2^units]`` or None, and
    weights of the other units, ``[n]``.

    Args:
        space: the blocks.
        form: the objective.
        split: its split.
        every: tabulate every block that is small enough, not only those with pairs inside.
    """
    inside = split.inside
    off = inside - np.diag(np.diagonal(inside))
    values: list[Floats | None] = []
    weights = form.linear + np.diagonal(inside)
    for where in space.slices:
        units = where.stop - where.start
        if units <= MOST_TABULATED and (every or np.any(off[where, where])):
            values.append(subset_values(form.linear[where], inside[where, where]))
            weights[where] = 0.0
        else:
            values.append(None)
    return values, weights


def _rounding(form: QuadraticForm, split: ConvexSplit) -> float:
    """A bound on the rounding error of sums of these terms."""
    size = float(
        np.abs(form.linear).sum() + np.abs(split.inside).sum() + 3 * np.abs(split.rest).sum()
    )
    return sum_rounding(size + abs(form.constant))
