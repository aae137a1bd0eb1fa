"""The laws of solvers, each stated once, and the check of a solver against all of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cahp_opt.problem import Problem
from cahp_opt.selection import Selection
from cahp_opt.solver import Solver, Status
from cahp_opt.space import HeadSpace
from cahp_opt.testing.answers import CLOSE, answer, best_value
from cahp_opt.testing.broken_law import found_on, require
from cahp_opt.testing.instances import (
    BUDGETS,
    OBJECTIVES,
    SPACES,
    BudgetMaker,
    ObjectiveMaker,
    make_problem,
)
from cahp_opt.testing.options import check_options
from cahp_opt.testing.relabelling import check_relabelling
from cahp_opt.testing.within_budget import check_costs, check_within


class SolverCheck(NamedTuple):
    """What a solver did on the problems that it was checked on."""

    answered: int
    """The problems that it answered; it refused the others with a sentence."""
    refused: int
    """The problems whose structure it refused."""
    best: int
    """The answers that no keep-set within the budget exceeds."""


def check_solver(
    solver: Solver,
    *,
    objectives: Mapping[str, ObjectiveMaker] = OBJECTIVES,
    budgets: Mapping[str, BudgetMaker] = BUDGETS,
    spaces: Sequence[HeadSpace] = SPACES,
    rounds: int = 1,
    seed: int = 0,
    ignores_names: bool = False,
) -> SolverCheck:
    """Check a solver against the laws on small random problems, whose best keep-set is known.

    It must be a frozen dataclass with a docstring; stay within every budget; never claim a bound
    below the optimum, or an optimum that is none; repeat itself with the same seed; and take a time to
    launch within the limit for what it is, none. It may refuse a structure by a ``ValueError`` that
    names it, but not all of them.

    Args:
        solver: the solver; give it options that make it quick.
        objectives: makers of objectives by name; add your own.
        budgets: makers of budgets by name.
        spaces: the units, at most 20 in each, since every keep-set is tried.
        rounds: how many problems of every objective with every budget.
        seed: of the first problem; the following ones count on from it.
        ignores_names: check also that another order of blocks and units leaves the value as it is. For
            solvers that do not draw units by their number.

    Raises:
        BrokenLaw: an ``AssertionError``; it names the law, the problem, and what came.
        TypeError: if it is not a solver.
        ValueError: if there is nothing to check it on.
        ImportError: if the solver needs a package that is not installed.
    """
    if not isinstance(solver, Solver):
        raise TypeError(f"`solver` must be a Solver value such as `LazyGreedy()`, got {solver!r}.")
    if not (objectives and budgets and spaces and rounds >= 1):
        raise ValueError(
            "`objectives`, `budgets` and `spaces` must hold at least one each, and `rounds` must be at "
            f"least 1, got {len(objectives)}, {len(budgets)}, {len(spaces)} and {rounds}."
        )
    check_options(solver)
    pairs = [(o, b) for o in objectives for b in budgets]
    refused = best = 0
    for k in range(rounds * len(pairs)):
        (objective, budget), place = pairs[k % len(pairs)], k % len(spaces)
        problem = make_problem(objectives[objective], budgets[budget], spaces[place], seed + k)
        with found_on(
            f"make_problem(objectives[{objective!r}], budgets[{budget!r}], spaces[{place}], "
            f"seed={seed + k}), solved with the same seed"
        ):
            optimum = best_value(problem)
            selection = check_selection(solver, problem, optimum, seed + k)
            check_launch_time(solver, problem, seed + k)
            if ignores_names:
                check_relabelling(solver, problem, np.random.default_rng(seed + k))
        refused += selection is None
        best += selection is not None and math.isclose(selection.value, optimum, **CLOSE)
    require(
        refused < rounds * len(pairs),
        f"`{type(solver).__name__}` refuses each of the {refused} problems; a solver must take some.",
    )
    return SolverCheck(rounds * len(pairs) - refused, refused, best)


def check_selection(
    solver: Solver, problem: Problem, optimum: float, seed: int
) -> Selection | None:
    """What every selection of every solver must be; returns it, or None where the solver refuses.

    Args:
        solver: the solver.
        problem: a problem.
        optimum: the value of its best keep-set.
        seed: for the solver.
    """
    selection = answer(solver, problem, seed)
    if selection is None:
        return None
    name, value, bound = type(solver).__name__, selection.value, selection.bound
    counts = problem.space.counts(selection.kept)
    check_within(name, problem.budget, counts)
    check_costs(name, problem.budget, counts, selection.costs)
    slack = 1e-9 * max(1, abs(optimum))
    require(
        value == problem.objective.value(selection.kept) and value <= optimum + slack,
        f"the selection of `{name}` has the value {value}, its keep-set "
        f"{problem.objective.value(selection.kept)}, and the best keep-set {optimum}.",
    )
    require(
        bound >= max(value, optimum - slack),
        f"`{name}` claims that no keep-set exceeds {bound}, and the best one has the value {optimum}.",
    )
    require(
        selection.status is not Status.OPTIMAL or math.isclose(value, optimum, **CLOSE),
        f"`{name}` claims an optimal answer of value {value}, and the best keep-set has {optimum}.",
    )
    require(
        math.isfinite(bound) or selection.certificate.startswith("none"),
        f"`{name}` has no bound, but the certificate {selection.certificate!r}.",
    )
    again = answer(solver, problem, seed)
    require(
        again is not None
        and np.array_equal(again.kept, selection.kept)
        and (again.value, again.bound) == (value, bound),
        f"`{name}` must repeat itself with the same seed ({seed}): it kept "
        f"{np.flatnonzero(selection.kept).tolist()} with the bound {bound}, and then "
        + (f"{np.flatnonzero(again.kept).tolist()} with {again.bound}." if again else "refused."),
    )
    return selection


def check_launch_time(solver: Solver, problem: Problem, seed: int) -> None:
    """A launch time within the limit rules nothing out, and so it changes nothing."""
    if all(table.least == 0 for table in problem.budget.tables):
        return
    free = tuple(dataclasses.replace(t, least=0.0) for t in problem.budget.tables)
    budget = problem.budget
    without = dataclasses.replace(budget, tables=free)
    first = answer(solver, problem, seed)
    second = answer(solver, Problem(problem.objective, without), seed)
    require(
        (first is None) == (second is None)
        and (first is None or second is None or np.array_equal(first.kept, second.kept)),
        f"`{type(solver).__name__}` must not heed a launch time (`least`) within the limit: it keeps "
        f"{first and first.heads()}, and without one {second and second.heads()}.",
    )
