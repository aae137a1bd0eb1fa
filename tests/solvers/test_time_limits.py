"""What a time limit ends, and what an answer is worth then; and work that blocks must not multiply."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from cahp_opt import Budget, HeadSpace, Problem, Solver, Status, select
from cahp_opt.bounds.convex_split import best_split, single_parts
from cahp_opt.costs import knapsack
from cahp_opt.costs.budget import Budget as BudgetClass
from cahp_opt.costs.count_table import CountTable
from cahp_opt.objective import QuadraticForm
from cahp_opt.objectives import FacilityLocation, GraphCut, Modular
from cahp_opt.solvers import (
    MIQP,
    Auto,
    BackwardGreedy,
    BranchAndBound,
    DynamicProgram,
    Greedy,
    LazyGreedy,
    LocalSearch,
    RandomSubset,
    Relaxation,
    Spectral,
    StochasticGreedy,
    Tabu,
    TopK,
)
from cahp_opt.solvers.parts.master import Master, TimeUp

PASSED = 0.0  # a deadline that lies behind


def space_of(blocks: int, units: int) -> HeadSpace:
    return HeadSpace.uniform(blocks, units)


def hard_budget(space: HeadSpace, tables: int, seed: int = 0) -> Budget:
    """Several tables of real costs at half of the full ones: many states, few of them dominated."""
    rng = np.random.default_rng(seed)
    found: list[CountTable] = []
    for t in range(tables):
        costs = tuple(
            np.concatenate([[0.0], np.cumsum(rng.pareto(2, units) + 0.1)]) for units in space.units
        )
        found.append(CountTable(f"cost {t}", costs, 0.5 * sum(float(c[-1]) for c in costs)))
    return Budget(space, tuple(found))


def similarity(n: int, seed: int = 0) -> Any:
    points = np.random.default_rng(seed).normal(size=(n, 8))
    return np.exp(-np.sum((points[:, None] - points[None]) ** 2, axis=2) / 8)


class Clock:
    """A clock that an event moves past any deadline."""

    def __init__(self) -> None:
        self.now = 1.0

    def monotonic(self) -> float:
        return self.now


def test_the_dynamic_program_ends_between_two_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    space = space_of(12, 6)
    problem = Problem(Modular(np.random.default_rng(1).pareto(1.5, space.n)), hard_budget(space, 2))
    exact = select(problem, DynamicProgram())
    assert exact.status is Status.OPTIMAL
    clock, seen = Clock(), list[int]()
    undominated = knapsack._undominated

    def counted(cost: Any, value: Any) -> Any:
        seen.append(len(value))
        if len(seen) == 3:
            clock.now += 100
        return undominated(cost, value)

    monkeypatch.setattr(knapsack, "_undominated", counted)
    monkeypatch.setattr("time.monotonic", clock.monotonic)
    found = DynamicProgram().solve(problem, deadline=50.0, rng=np.random.default_rng(0))
    assert len(seen) == 3, "nothing is searched behind the deadline"
    assert found.status is Status.TIME_LIMIT
    value = problem.objective.value(found.kept)
    assert problem.budget.allows(space.counts(found.kept))
    assert value <= exact.value <= found.bound < 1.1 * value


def test_bounds_of_hard_budgets_end_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that `select` proves for solvers without a bound of their own."""
    space = space_of(12, 6)
    problem = Problem(Modular(np.random.default_rng(1).pareto(1.5, space.n)), hard_budget(space, 2))
    exact = select(problem, DynamicProgram())
    clock = Clock()
    undominated = knapsack._undominated
    seen = list[int]()

    def slow(cost: Any, value: Any) -> Any:
        seen.append(len(value))
        clock.now += 1.0
        return undominated(cost, value)

    monkeypatch.setattr(knapsack, "_undominated", slow)
    monkeypatch.setattr("time.monotonic", clock.monotonic)
    found = select(problem, TopK(), time_limit=8.0)
    assert len(seen) <= 3, "a quarter of the limit, and at most two seconds"
    assert exact.value <= found.bound < math.inf


@pytest.mark.parametrize("deadline", [PASSED, math.inf])
def test_a_split_cut_short_is_a_split(deadline: float) -> None:
    rng = np.random.default_rng(0)
    pairwise = rng.normal(size=(12, 12))
    pairwise = (pairwise + pairwise.T) / 2
    found = best_split(pairwise, single_parts(0, 12), np.eye(12) / 4, deadline=deadline)
    assert np.allclose(found.inside - found.rest, pairwise)
    assert np.linalg.eigvalsh(found.rest)[0] > -1e-9
    assert found.excess < 1e-9


def test_no_master_is_built_behind_the_deadline() -> None:
    budget = Budget.heads(space_of(3, 4), 5)
    with pytest.raises(TimeUp):
        Master(budget, np.ones(12), [None] * 3, 0.0, 1.0, PASSED)


FILLING: list[Solver] = [
    BackwardGreedy(),
    Greedy(),
    LazyGreedy(),
    LocalSearch(),
    Spectral(),
    StochasticGreedy(),
    Tabu(),
    Auto(),
    MIQP(),
]


@pytest.mark.parametrize("alike", [True, False], ids=["units", "stairs"])
@pytest.mark.parametrize("solver", FILLING, ids=lambda s: type(s).__name__)
def test_an_answer_out_of_time_fills_the_budget(solver: Solver, alike: bool) -> None:
    space = space_of(6, 4)
    budget = Budget.heads(space, 11) if alike else hard_budget(space, 1)
    problem = Problem(FacilityLocation(similarity(space.n)), budget)
    found = solver.solve(problem, deadline=PASSED, rng=np.random.default_rng(0))
    counts = space.counts(found.kept)
    assert budget.allows(counts)
    for b in range(6):
        more = counts.copy()
        more[b] += 1
        assert more[b] > 4 or not budget.allows(more), "one more unit would fit"


@pytest.mark.parametrize(
    "solver", [BranchAndBound(), Relaxation(), MIQP(), Auto()], ids=lambda s: type(s).__name__
)
def test_quadratics_out_of_time_have_a_valid_bound(solver: Solver) -> None:
    space = space_of(4, 4)
    problem = Problem(GraphCut(similarity(space.n), 0.7), Budget.heads(space, 7))
    exact = select(problem, BranchAndBound())
    found = solver.solve(problem, deadline=PASSED, rng=np.random.default_rng(0))
    assert problem.budget.allows(space.counts(found.kept))
    assert exact.value <= found.bound + 1e-9
    assert isinstance(problem.objective.quadratic(), QuadraticForm)


@pytest.mark.parametrize(
    "solver",
    [LazyGreedy(), Greedy(), TopK(), RandomSubset(), StochasticGreedy()],
    ids=lambda s: type(s).__name__,
)
def test_many_small_blocks_take_no_sums_over_all_of_them(
    solver: Solver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums over all blocks, taken a few times per answer and not once per block."""
    sums = list[int]()
    cost, violation = CountTable.cost, BudgetClass.violation

    def counted_cost(self: CountTable, counts: Any) -> float:
        sums.append(1)
        return cost(self, counts)

    def counted_violation(self: Budget, counts: Any) -> str | None:
        sums.append(1)
        return violation(self, counts)

    monkeypatch.setattr(CountTable, "cost", counted_cost)
    monkeypatch.setattr(BudgetClass, "violation", counted_violation)
    taken: list[int] = []
    for blocks in (30, 120):
        space = space_of(blocks, 1)
        problem = Problem(FacilityLocation(similarity(blocks)), Budget.heads(space, 12))
        sums.clear()
        select(problem, solver)
        taken.append(len(sums))
    assert taken[1] <= taken[0] + 20 and taken[1] < 100, taken


def test_auto_proves_coverages() -> None:
    space = space_of(12, 6)
    rng = np.random.default_rng(3)
    objective = FacilityLocation(similarity(space.n), rng.pareto(2, space.n) + 0.1)
    for budget in (Budget.heads(space, 18, minimum=1), hard_budget(space, 1)):
        problem = Problem(objective, budget)
        swapped = select(problem, LocalSearch(LazyGreedy()))
        found = select(problem, Auto())
        assert found.value >= swapped.value
        assert found.gap < swapped.gap / 3 and found.gap < 2e-3
        assert "RowPrices" in str(found.stats["chose"])
    chosen, _ = Auto().choose(problem, limited=True)
    assert isinstance(chosen, MIQP), "which uses what a time limit leaves"


def test_graph_cut_as_the_other_libraries_write_it() -> None:
    """As the documentation says: apricot's alpha is one over the redundancy, and scales the value."""
    matrix = similarity(9)
    rng = np.random.default_rng(0)
    for _ in range(5):
        kept = rng.random(9) < 0.5
        represented, among = matrix[:, kept].sum(), matrix[np.ix_(kept, kept)].sum()
        assert GraphCut(matrix, 0.3).value(kept) == pytest.approx(represented - 0.3 * among)
        for alpha in (1.0, 4.0):
            apricot = alpha * represented - among
            assert alpha * GraphCut(matrix, 1 / alpha).value(kept) == pytest.approx(apricot)
