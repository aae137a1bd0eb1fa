"""Convex relaxation of quadratic forms through cvxpy, rounded, with a bound that needs no trust."""

from __future__ import annotations

import importlib
import math
import time
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from cahp_opt.arrays import Bools, Floats
from cahp_opt.bounds.convex_split import ConvexSplit, best_split, single_parts, tabulated_parts
from cahp_opt.bounds.oracle import Oracle
from cahp_opt.bounds.split_form import SplitForm
from cahp_opt.costs.budget import Budget
from cahp_opt.objective import QuadraticForm
from cahp_opt.problem import Problem
from cahp_opt.solver import Proposal, Solver
from cahp_opt.solvers.parts.climbing import climb
from cahp_opt.solvers.parts.incumbent import Incumbent
from cahp_opt.solvers.parts.polishing import Polisher

CERTIFICATE = "a convex relaxation, proved by the exact oracle at its gradient"


@dataclass(frozen=True)
class Relaxation(Solver):
    """Solve a convex relaxation, round it to the budget, and polish.

    The form is made concave by a diagonal that costs nothing on 0/1 vectors, the best one for the
    point found (a semidefinite program, refitted every round; Billionnet, Elloumi and Plateau 2009),
    and maximised by cvxpy over fractions of units whose counts are a mix of allowed counts. The bound
    is not cvxpy's word: the exact oracle proves it at the relaxation's gradient.

    Cost: O(n^3) per round; heuristic with a bound; needs `quadratic()`.

    Args:
        rounds: how often the diagonal is fitted and the relaxation solved; at least 1.
        roundings: how many random roundings are tried; at least 1.

    Raises:
        ValueError: if the objective offers no quadratic form, or cvxpy is missing.
    """

    rounds: int = 3
    roundings: int = 8

    def __post_init__(self) -> None:
        for name in ("rounds", "roundings"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")

    def solve(self, problem: Problem, *, deadline: float, rng: np.random.Generator) -> Proposal:
        form, budget = problem.objective.quadratic(), problem.budget
        if form is None:
            raise ValueError(
                f"`Relaxation` needs a quadratic form, and `{type(problem.objective).__name__}` "
                "offers none; use `LazyGreedy` or `Greedy`."
            )
        cvxpy = _cvxpy()
        n = problem.space.n
        start = climb(problem, 3, lazy=problem.objective.submodular, deadline=deadline).kept
        polisher = Polisher(budget, form)
        best = Incumbent(problem, start, deadline)
        met: list[Bools] = [start]
        point = start.astype(np.float64)
        covariance = np.eye(n) * 0.25
        split: ConvexSplit | None = None
        solved = 0
        for _ in range(self.rounds):
            if solved and time.monotonic() > deadline:
                break
            split = best_split(
                form.pairwise, single_parts(0, n), covariance, split, deadline=deadline
            )
            if time.monotonic() > deadline:
                break
            found = _relaxed(cvxpy, budget, form, split, deadline)
            point = point if found is None else found
            proved, vertex = SplitForm.of(budget, form, split, deadline).bound_at(point)
            solved += 1
            best.tighten(proved, CERTIFICATE)
            met.append(vertex.kept)
            # Where all subsets of a block can be tabulated, the same point proves more.
            spread = np.diag(point * (1 - point) + 0.01)
            tabulated = best_split(
                form.pairwise, tabulated_parts(problem.space), spread, deadline=deadline
            )
            proved, vertex = SplitForm.of(budget, form, tabulated, deadline).bound_at(point)
            best.tighten(proved, CERTIFICATE)
            met.append(vertex.kept)
            covariance = (covariance + spread) / 2
        plain = Oracle(budget, [None] * len(budget.space.blocks), deadline=deadline)
        met.append(plain.best(point).kept)
        met += [plain.best(point - rng.random(n)).kept for _ in range(self.roundings)]
        kept, _ = polisher.best_of(met, deadline)
        best.offer(kept)
        best.stats.update(relaxations=solved, roundings=len(met))
        return best.proposal()


def _cvxpy() -> Any:
    try:
        return importlib.import_module("cvxpy")
    except ImportError as error:
        raise ValueError(
            "`Relaxation` needs cvxpy, which is not installed; "
            "`pip install 'cahp-opt[relaxation]'` brings it."
        ) from error


def _relaxed(
    cvxpy: Any, budget: Budget, form: QuadraticForm, split: ConvexSplit, deadline: float
) -> Floats | None:
    """The relaxation's maximiser, ``[n]``; None if cvxpy finds none in time."""
    space = budget.space
    x = cvxpy.Variable(space.n)
    mixes = [cvxpy.Variable(len(f), nonneg=True) for f in budget.allowed]
    limits: list[Any] = [x >= 0, x <= 1]
    for b, (where, mix, fine) in enumerate(zip(space.slices, mixes, budget.allowed, strict=True)):
        counts = np.arange(len(fine), dtype=np.float64)
        limits += [cvxpy.sum(mix) == 1, cvxpy.sum(x[where]) == counts @ mix]
        if not fine.all():
            limits.append(mixes[b][np.flatnonzero(~fine)] == 0)
    for table in budget.coupling:
        size = max(float(c.max()) for c in table.costs)
        spent = sum(c / size @ mix for c, mix in zip(table.costs, mixes, strict=True))
        limits.append(spent <= (table.limit - table.fixed) / size)
    values, vectors = np.linalg.eigh(split.rest)
    factor = vectors * np.sqrt(np.maximum(values, 0.0))
    weights = form.linear + np.diagonal(split.inside)
    scale = max(float(np.abs(weights).max()), 1e-300)
    worth = weights / scale @ x - cvxpy.sum_squares(factor.T / math.sqrt(scale) @ x)
    problem = cvxpy.Problem(cvxpy.Maximize(worth), limits)
    left = deadline - time.monotonic()
    options = {"time_limit": max(left, 0.01)} if math.isfinite(left) else {}
    try:
        with warnings.catch_warnings():  # an inaccurate point only makes the bound weaker
            warnings.simplefilter("ignore", UserWarning)
            problem.solve(solver=cvxpy.CLARABEL, **options)
    except cvxpy.error.SolverError:
        return None
    if x.value is None or not np.all(np.isfinite(x.value)):
        return None
    return np.clip(np.asarray(x.value, dtype=np.float64), 0.0, 1.0)
