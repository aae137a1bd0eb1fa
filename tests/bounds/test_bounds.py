"""Bounds: never below the optimum, and tight where that matters."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import make_problem, random_start
from instances_exact import coverage_problem, damage_problem

from cahp_opt import HeadSpace, Problem, select
from cahp_opt.bounds.certified import certified_bound
from cahp_opt.bounds.convex_split import best_split, single_parts, tabulated_parts
from cahp_opt.bounds.frank_wolfe import Effort, quadratic_frank_wolfe
from cahp_opt.bounds.oracle import Oracle
from cahp_opt.bounds.row_prices import coverage_bound
from cahp_opt.solvers import LazyGreedy, LocalSearch
from cahp_opt.testing import BUDGETS, OBJECTIVES, SPACES
from cahp_opt.testing.answers import best_value


def check_bounds(problem: Problem, seed: int) -> None:
    best = best_value(problem)
    floor = best - 1e-9 * max(1.0, abs(best))
    start = random_start(problem, seed)
    value = problem.objective.value(start)
    assert certified_bound(problem, start, value).value >= floor
    if problem.budget.even:
        return  # solvers, and what follows, are only asked for one number of units at a time
    form, cover = problem.objective.quadratic(), problem.objective.coverage()
    if form is not None:
        effort = Effort(splits=seed % 4, steps=1 + seed % 9, precision=0)
        tables = bool(seed % 2)
        found = quadratic_frank_wolfe(problem.budget, form, start, effort, tabulate=tables)
        assert found.bound >= floor
        assert all(problem.budget.allows(problem.space.counts(kept)) for kept in found.met)
    if cover is not None:
        priced = coverage_bound(problem.budget, cover, start, steps=1 + seed % 40)
        assert priced.bound >= floor
        assert np.isclose(priced.value, problem.objective.value(priced.kept))
        assert problem.budget.allows(problem.space.counts(priced.kept))


@pytest.mark.parametrize("budget", sorted(BUDGETS))
def test_bounds_on_a_few_of_every_kind(budget: str) -> None:
    for seed, objective in enumerate(sorted(OBJECTIVES)):
        for space in SPACES[seed % 2 :: 2]:  # every objective, and every space; not every pair
            check_bounds(make_problem(objective, budget, space, seed), seed)


@pytest.mark.slow
@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_bounds_on_thousands(objective: str) -> None:
    rng = np.random.default_rng(5)
    budgets = sorted(BUDGETS)
    for seed in range(1000):
        space = SPACES[rng.integers(len(SPACES))]
        check_bounds(make_problem(objective, budgets[seed % len(budgets)], space, seed), seed)


@pytest.mark.parametrize("seed", [0, 2, 3])
def test_frank_wolfe_bound_of_a_damage_matrix_is_tight(seed: int) -> None:
    problem = damage_problem(seed, blocks=6, units=12)
    form = problem.objective.quadratic()
    assert form is not None
    all_kept = form.linear.sum() + form.pairwise.sum()
    start = select(problem, LocalSearch())
    found = quadratic_frank_wolfe(problem.budget, form, start.kept, Effort(3, 30))
    best = max(problem.objective.value(kept) for kept in found.met)
    best = max(best, start.value)
    assert all_kept - found.bound >= 0.75 * (all_kept - best)


def test_lagrangian_bound_of_facility_location_is_tight() -> None:
    problem = coverage_problem(1, blocks=6, units=8)
    start = select(problem, LazyGreedy())
    form = problem.objective.coverage()
    assert form is not None
    found = coverage_bound(problem.budget, form, start.kept, steps=150)
    assert found.bound <= found.value * 1.01
    assert select(problem, LazyGreedy()).gap <= 0.02


def test_a_split_leaves_a_semidefinite_rest() -> None:
    rng = np.random.default_rng(0)
    space = HeadSpace.uniform(3, 4)
    pairs = rng.normal(size=(12, 12))
    pairs += pairs.T
    covariance = np.eye(12)
    for parts in (tabulated_parts(space), single_parts(0, 12)):
        split = best_split(pairs, parts, covariance)
        assert np.linalg.eigvalsh(split.rest)[0] >= -1e-9
        np.testing.assert_allclose(split.inside - split.rest, pairs, atol=1e-12)
        outside = np.ones((12, 12), dtype=bool)
        for part in parts:
            outside[part, part] = False
        assert not split.inside[outside].any()


def test_oracle_finds_the_best_of_tables_and_weights() -> None:
    rng = np.random.default_rng(2)
    problem = make_problem("modular", "staircase", SPACES[4], 3)
    space = problem.space
    values = [rng.normal(size=1 << int(u)) if u < 4 else None for u in space.units]
    weights = rng.normal(size=space.n)
    found = Oracle(problem.budget, values).best(weights)

    def worth(kept: np.ndarray) -> float:
        total = float(weights @ kept)
        for v, where in zip(values, space.slices, strict=True):
            if v is not None:
                total += v[int(kept[where] @ (1 << np.arange(where.stop - where.start)))]
        return total

    every = ((np.arange(1 << space.n)[:, None] >> np.arange(space.n)) & 1).astype(bool)
    best = max(worth(k) for k in every if problem.budget.allows(space.counts(k)))
    assert np.isclose(worth(found.kept), best) and np.isclose(found.bound, best)
