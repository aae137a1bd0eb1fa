"""Certified upper bounds on the optimum, from what an objective declares."""

from __future__ import annotations

import math
import time
from typing import NamedTuple

import numpy as np

from cahp_opt.arrays import Bools, Floats
from cahp_opt.bounds import frank_wolfe, row_prices
from cahp_opt.bounds.frank_wolfe import Effort, quadratic_frank_wolfe
from cahp_opt.bounds.row_prices import coverage_bound
from cahp_opt.costs.budget import Budget
from cahp_opt.costs.knapsack import best_counts
from cahp_opt.objective import QuadraticForm
from cahp_opt.problem import Problem
from cahp_opt.subsets import modular_subsets

# `select` asks for a bound every time: these limits keep it at about a tenth of a second. Solvers
# that prove more call the functions below with more steps.
_MOST_UNITS = 700
_MOST_SPLIT = 200
_COVERAGE_WORK = 4_000_000
MOST_SECONDS = 2.0
"""Time for proving a bound; about a tenth of a second is needed unless a budget is hard."""


class Bound(NamedTuple):
    """An upper bound on the value of every keep-set within the budget, and where it comes from."""

    value: float
    certificate: str


def certified_bound(
    problem: Problem, kept: Bools, value: float, seconds: float = MOST_SECONDS
) -> Bound:
    """The tightest bound that the objective's declared facts allow; infinite, with a reason, if none.

    Cheap enough to be called for every answer; :class:`~cahp_opt.solvers.MIQP` works longer.

    Args:
        problem: the objective and the budget.
        kept: a keep-set within the budget, bool ``[n]``; good ones give tight bounds.
        value: its value.
        seconds: about how long it may take; only hard budgets, of several tables, use it up.
    """
    deadline = time.monotonic() + seconds
    objective = problem.objective
    bounds: list[Bound] = []
    weights = objective.linear()
    if weights is not None:
        bounds.append(
            Bound(
                modular_bound(problem.budget, weights, deadline),
                "the exact optimum of a sum of weights",
            )
        )
    elif objective.submodular:
        bounds.append(
            Bound(
                submodular_bound(problem, kept, value, deadline),
                "the data-dependent submodular bound (Leskovec et al. 2007)",
            )
        )
    form = objective.quadratic() if weights is None else None
    if form is not None:
        bounds.append(
            Bound(quadratic_bound(problem.budget, form, deadline), "positive pair terms only")
        )
        if objective.n <= _MOST_UNITS:
            effort = Effort(splits=2 if objective.n <= _MOST_SPLIT else 0, steps=10)
            found = quadratic_frank_wolfe(problem.budget, form, kept, effort, deadline=deadline)
            bounds.append(Bound(found.bound, frank_wolfe.CERTIFICATE))
    cover = objective.coverage() if weights is None else None
    steps = 0 if cover is None else _COVERAGE_WORK // cover.similarity.size
    if cover is not None and steps:
        priced = coverage_bound(
            problem.budget, cover, kept, steps=min(24, steps), deadline=deadline
        )
        bounds.append(Bound(priced.bound, row_prices.CERTIFICATE))
    if objective.monotone:
        everything = np.ones(objective.n, dtype=np.bool_)
        bounds.append(
            Bound(objective.value(everything), "the value of keeping every unit (monotone)")
        )
    if not bounds:
        return Bound(
            math.inf,
            "none: the objective is neither monotone nor submodular, and offers no linear or "
            "quadratic form that a bound could use",
        )
    return min(bounds, key=lambda bound: bound.value)


def modular_bound(budget: Budget, weights: Floats, deadline: float = math.inf) -> float:
    """The largest ``weights @ kept`` within the budget, or a bound on it.

    Args:
        budget: the limits.
        weights: one per unit, shape ``[n]``.
        deadline: the ``time.monotonic()`` after which any valid bound will do.
    """
    values = [table.values for table in modular_subsets(weights, budget.space)]
    return best_counts(values, budget.allowed, budget.coupling, deadline).bound


def submodular_bound(
    problem: Problem, kept: Bools, value: float, deadline: float = math.inf
) -> float:
    """A bound for any submodular objective from its gains at ``S``, which is ``kept``, bool
    ``[n]``.

    With ``f(j | A) = f(A + j) - f(A)``, it is the smallest of three maxima over ``T`` within the
    budget, each of a sum of weights, which is found exactly (Nemhauser, Wolsey and Fisher 1978,
    proposition 2.1)::

        f(S) + sum_{j in T - S} f(j | S) - sum_{j in S - T} f(j | all but j)
        f(S) + sum_{j in T - S} f(j | none) - sum_{j in S - T} f(j | S - j)
        f(none) + sum_{j in T} f(j | none)

    For a monotone objective the first implies the bound of Leskovec et al. (2007, "Cost-effective
    outbreak detection", section 3.2), which lacks its last sum.

    Args:
        problem: the objective and the budget.
        kept: a keep-set within the budget, bool ``[n]``.
        value: its value.
        deadline: the ``time.monotonic()`` after which any valid bound will do.
    """
    objective, budget = problem.objective, problem.budget
    everything = np.ones(objective.n, dtype=np.bool_)
    nothing = np.zeros(objective.n, dtype=np.bool_)
    worth_least = -objective.gains(everything)
    first_gains = objective.gains(nothing)
    at_kept = objective.gains(kept)
    bounds: list[float] = []
    weights = np.where(kept, worth_least, at_kept)
    bounds.append(value - float(weights[kept].sum()) + modular_bound(budget, weights, deadline))
    bounds.append(objective.value(nothing) + modular_bound(budget, first_gains, deadline))
    weights = np.where(kept, -at_kept, first_gains)
    bounds.append(value - float(weights[kept].sum()) + modular_bound(budget, weights, deadline))
    return min(bounds)


def quadratic_bound(budget: Budget, form: QuadraticForm, deadline: float = math.inf) -> float:
    """A bound for any quadratic form: negative pair terms left out, positive ones counted in full.

    ``x' P x <= sum_i x_i (P_ii + sum_{j != i} max(P_ij, 0))`` for 0/1 vectors ``x``.
    """
    diagonal = np.diagonal(form.pairwise)
    positive = np.maximum(form.pairwise, 0.0).sum(axis=1) - np.maximum(diagonal, 0.0)
    return form.constant + modular_bound(budget, form.linear + diagonal + positive, deadline)
