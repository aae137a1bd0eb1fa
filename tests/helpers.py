"""The matrix that the laws run over: every solver, and the public makers of objectives and budgets."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

import cahp_opt.solvers
from cahp_opt import HeadSpace, Problem, Solver, select, testing
from cahp_opt.arrays import Bools
from cahp_opt.solvers import (
    CAHP,
    MIQP,
    BackwardGreedy,
    BestOf,
    BranchAndBound,
    Greedy,
    LocalSearch,
    RandomSubset,
    Relaxation,
    RowPrices,
    Spectral,
    Tabu,
    TopK,
)
from cahp_opt.solvers.cahp import Reduction
from cahp_opt.solvers.spectral import Grouping
from cahp_opt.testing import BUDGETS, OBJECTIVES, SPACES
from cahp_opt.testing.answers import best_value

_OPTIONS: dict[str, Solver] = {
    "BestOf": BestOf((TopK(), BackwardGreedy(lookahead=1))),
    "Tabu": Tabu(iterations=20, patience=5),
}
"""Options of the solvers that need some, or take long without."""

SOLVERS: tuple[Solver, ...] = (
    *(_OPTIONS.get(name) or getattr(cahp_opt.solvers, name)() for name in cahp_opt.solvers.__all__),
    CAHP(degree=2, reduction=Reduction.NONE),
    CAHP(reduction=Reduction.NONE, clusters=5),
    Greedy(lookahead=1),
    LocalSearch(start=TopK(), reach=1),
    Spectral(grouping=Grouping.EMBEDDING),
    Spectral(grouping=Grouping.GREEDY_MODULARITY),
)
"""Every public solver with its defaults, and some with other options."""

DEAR = (BranchAndBound, CAHP, MIQP, Relaxation, RowPrices, Spectral, Tabu)
"""Solvers that think longer about one problem than the others: a law tries fewer on them."""


def examples(solver: Solver) -> settings:
    """How many random instances a law tries on a solver: all of them in the thorough profile."""
    usual = settings().max_examples
    thorough = usual >= settings.get_profile("thorough").max_examples
    return settings(max_examples=usual if thorough or not isinstance(solver, DEAR) else usual // 3)


@cache  # every solver gets the same random problems
def make_problem(objective: str, budget: str, space: HeadSpace, seed: int) -> Problem:
    """The random instance of this objective and budget."""
    return testing.make_problem(OBJECTIVES[objective], BUDGETS[budget], space, seed)


@cache
def optimum(problem: Problem) -> float:
    """The value of the best of all keep-sets, found once for all solvers that are compared with it."""
    return best_value(problem)


def random_start(problem: Problem, seed: int) -> Bools:
    """A random keep-set within the budget, ``[n]``, without the bound that :func:`select` proves of one."""
    if problem.budget.even:  # solvers are only asked for one number of units at a time
        return select(problem, RandomSubset(), seed=seed).kept
    rng = np.random.default_rng(seed)
    return RandomSubset().solve(problem, deadline=math.inf, rng=rng).kept


def problems() -> st.SearchStrategy[Problem]:
    """Random small problems of every kind."""
    return st.builds(
        make_problem,
        st.sampled_from(sorted(OBJECTIVES)),
        st.sampled_from(sorted(BUDGETS)),
        st.sampled_from(SPACES),
        st.integers(0, 2**32 - 1),
    )
