"""`select` disposes: no claim of a solver is trusted."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest

from cahp_opt import (
    Block,
    Budget,
    HeadSpace,
    Objective,
    Problem,
    Proposal,
    Selection,
    Solver,
    Status,
    Unit,
    select,
)
from cahp_opt.objectives import ExplainedVariance, FacilityLocation, Modular, Quadratic
from cahp_opt.solvers import BruteForce, DynamicProgram, Greedy, LazyGreedy, TopK

SPACE = HeadSpace.uniform(2, 3)
PROBLEM = Problem(Modular(np.arange(6.0)), Budget.heads(SPACE, 2))


@dataclass(frozen=True)
class Says(Solver):
    """Proposes what it is told."""

    units: tuple[int, ...]
    bound: float = math.inf
    status: Status = Status.FEASIBLE

    def solve(self, problem: Problem, *, deadline: float, rng: np.random.Generator) -> Proposal:
        kept = np.zeros(problem.space.n, dtype=np.bool_)
        kept[list(self.units)] = True
        return Proposal(kept, self.bound, self.status)


@pytest.mark.parametrize(
    ("solver", "words"),
    [
        (Says((3, 4, 5)), "outside the budget: units is 3, and the limit is 2"),
        (Says((4, 5), bound=8.9), "claims the upper bound 8.9"),
        (Says((4, 5), bound=math.nan), "claims the upper bound nan"),
        (Says((3, 5), bound=9, status=Status.OPTIMAL), "claims an optimal answer of value 8"),
        (Says((3, 5), status=Status.OPTIMAL), "claims an optimal answer"),
    ],
)
def test_a_lying_solver_is_refused(solver: Solver, words: str) -> None:
    with pytest.raises(RuntimeError, match=words):
        select(PROBLEM, solver)


def test_value_costs_and_bound_are_computed_here() -> None:
    selection = select(PROBLEM, Says((3, 5)))
    assert selection.value == 8 and selection.bound == 9 and selection.gap == 1 / 8
    assert selection.costs == {"units": (2, 2)}
    assert select(PROBLEM, Says((4, 5))).status is Status.OPTIMAL


def test_values_are_shares_of_what_the_unpruned_model_has() -> None:
    found = select(PROBLEM, TopK())
    assert found.whole == 15.0 and found.share == found.value / 15 == 0.6
    again = Selection.from_json(found.to_json())
    assert (again.whole, again.share) == (found.whole, found.share)
    assert "9, 60 % of the unpruned model's" in str(found)
    doubled = select(Problem(2 * PROBLEM.objective, PROBLEM.budget), TopK())
    assert doubled.whole == 30.0 and doubled.share == 0.6
    for unknown in (math.nan, math.inf, 0.0, -1.0):
        assert math.isnan(replace(found, whole=unknown).share)
    assert "unpruned" not in str(replace(found, whole=math.nan))


def test_what_least_squares_could_explain_is_the_variance_of_all_outputs() -> None:
    rng = np.random.default_rng(0)
    covariance = [np.cov(rng.normal(size=(9, 50))) for _ in range(2)]
    readout = [w @ w.T for w in rng.normal(size=(2, 9, 9))]
    found = ExplainedVariance(covariance, readout, [3, 3], weights=[2.0, 0.5])
    told = 2 * np.trace(covariance[0] @ readout[0]) + 0.5 * np.trace(covariance[1] @ readout[1])
    assert found.whole == pytest.approx(told)
    assert 0.9 * told < found.value(np.ones(6, dtype=bool)) < told  # the ridge takes a little


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match="`solver` must be a Solver value"):
        select(PROBLEM, TopK)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`time_limit`"):
        select(PROBLEM, TopK(), time_limit=0)
    with pytest.raises(ValueError, match="`objective` is over 5 units"):
        Problem(Modular(np.ones(5)), Budget.heads(SPACE, 2))
    with pytest.raises(ValueError, match="`lookahead`"):
        Greedy(lookahead=0)
    with pytest.raises(ValueError, match="`lookahead`"):
        LazyGreedy(lookahead=0)


def test_cancelling_weights_are_no_bug_of_the_solver() -> None:
    """Large weights that leave a small value: the table's sum and the objective's round differently."""
    space = HeadSpace.uniform(4, 2)
    for seed in range(30):
        rng = np.random.default_rng(seed)
        large = 1e9 * rng.normal(size=3)
        weights = np.append(large, 1e-3 - large.sum()).repeat(2)
        problem = Problem(Modular(weights), Budget.heads(space, 4, minimum=1))
        assert select(problem, DynamicProgram()).status is Status.OPTIMAL


def test_a_value_that_is_no_number_is_refused() -> None:
    class Broken(Objective):
        n = 6

        def value(self, kept: np.ndarray) -> float:
            return math.nan

    with pytest.raises(ValueError, match="`Broken` has the value nan"):
        select(Problem(Broken(), Budget.heads(SPACE, 2)), TopK())


class Boastful(Objective):
    """Declares that units never add up to more than they are worth alone; they do."""

    n = 6
    submodular = True

    def value(self, kept: np.ndarray) -> float:
        return float(kept.sum() ** 2)


def test_an_objective_that_declares_what_does_not_hold_is_refused() -> None:
    with pytest.raises(RuntimeError, match="`Boastful` declares a fact that does not hold"):
        select(Problem(Boastful(), Budget.heads(SPACE, 3)), Greedy())


class Bare(Objective):
    """Declares nothing: no bound can be proved for it."""

    n = 6

    def value(self, kept: np.ndarray) -> float:
        return float(np.sin(np.flatnonzero(kept).sum()))


def test_no_bound_is_infinite_with_a_reason() -> None:
    selection = select(Problem(Bare(), Budget.heads(SPACE, 2)), Greedy())
    assert math.isinf(selection.bound) and math.isinf(selection.gap)
    assert selection.certificate.startswith(
        "none: the objective is neither monotone nor submodular"
    )


def test_explained_variance_gets_no_submodular_bound() -> None:
    """A weakly submodular instance on which the submodular bound would be wrong."""
    # Two heads that explain the output only together: z1 = s + e, z2 = e with a large e.
    covariance = np.array([[101.0, 100.0, 0], [100.0, 100.0, 0], [0, 0, 0.5]])
    weight = np.array([[1.0, -1.0, 0], [0, 0, 1.0]])
    objective = ExplainedVariance([covariance], [weight.T @ weight], [3], ridge=1e-9)
    space = HeadSpace.uniform(1, 3)
    problem = Problem(objective, Budget.heads(space, 2))
    best = select(problem, BruteForce())
    alone = objective.gains(np.zeros(3, dtype=bool))
    assert np.sort(alone)[-2:].sum() < best.value - 0.1  # what that bound would have claimed
    greedy = select(problem, Greedy())
    assert greedy.bound >= best.value and "submodular" not in greedy.certificate
    assert math.isclose(select(problem, DynamicProgram()).value, best.value, rel_tol=1e-9)


def test_exact_solvers_refuse_what_they_cannot_do() -> None:
    budget = Budget.heads(SPACE, 2)
    with pytest.raises(ValueError, match="does not say that it is one; use `LazyGreedy`"):
        select(Problem(FacilityLocation(np.eye(6)), budget), DynamicProgram())
    with pytest.raises(ValueError, match="takes at most 4 units, got 6"):
        select(Problem(Modular(np.ones(6)), budget), BruteForce(most_units=4))
    space = HeadSpace.uniform(1, 17)
    pairs = np.ones((17, 17))
    with pytest.raises(ValueError, match=r"2\^17 subsets are too many to tabulate"):
        select(Problem(Quadratic(np.ones(17), pairs), Budget.heads(space, 3)), DynamicProgram())


def test_a_plateau_is_filled_for_nothing() -> None:
    stairs = np.array([0, 2, 2, 2, 4, 4, 4, 6])
    space = HeadSpace.uniform(2, 7)
    budget = Budget.table(space, [stairs, stairs], 6)
    weights = np.concatenate([np.arange(1.0, 8), np.arange(2.0, 9)])
    for solver in (Greedy(), LazyGreedy(), TopK(), DynamicProgram()):
        counts = select(Problem(Modular(weights), budget), solver).counts
        assert counts.tolist() in ([3, 6], [6, 3])


def test_a_stair_is_judged_by_all_that_it_holds() -> None:
    """One large unit on an expensive stair against three good ones on a stair of the same cost."""
    space = HeadSpace.uniform(2, 3)
    budget = Budget.table(space, [[0, 2, 4, 6], [0, 2, 2, 2]], 2)
    problem = Problem(Modular(np.array([5.0, 1, 1, 4, 4, 4])), budget)
    assert select(problem, Greedy()).value == 12


def test_a_time_limit_returns_what_there_is() -> None:
    rng = np.random.default_rng(0)
    space = HeadSpace.uniform(4, 50)
    problem = Problem(FacilityLocation(rng.random((200, 200))), Budget.heads(space, 100))
    selection = select(problem, LazyGreedy(), time_limit=1e-6)
    assert selection.status is Status.TIME_LIMIT and math.isfinite(selection.bound)


def test_facility_location_trackers_at_size() -> None:
    """Lazy evaluation saves most of the work, and finds the same units."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(240, 6))
    similarity = np.exp(-((features[:, None] - features[None]) ** 2).sum(-1) / 8)
    problem = Problem(FacilityLocation(similarity), Budget.heads(HeadSpace.uniform(12, 20), 60))
    plain, lazy = select(problem, Greedy()), select(problem, LazyGreedy())
    assert np.array_equal(plain.kept, lazy.kept)
    assert int(lazy.stats["evaluations"]) < int(plain.stats["evaluations"]) / 2
    assert plain.gap < 0.2


def test_importing_stays_light() -> None:
    heavy = "{'torch', 'transformers', 'ortools', 'cvxpy', 'scipy', 'networkx'}"
    code = f"import cahp_opt, cahp_opt.solvers, sys; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("monotone", [False, True])
@pytest.mark.parametrize("solver", [BruteForce(), Greedy(), DynamicProgram()])
def test_even_selections_are_the_best_of_all_even_ones(solver: Solver, monotone: bool) -> None:
    """The bound holds for every keep-set that is even, found here by trying them."""
    space = HeadSpace((Block("a", 3), Block("b", 2, Unit.NEURON_GROUP), Block("c", 3)))
    rng = np.random.default_rng(5)
    weights = rng.normal(size=space.n)
    objective = Modular(np.abs(weights) if monotone else weights)
    budget = Budget(space, even=True) & Budget.table(
        space, [[0, 1, 2, 3], [0, 3, 4], [0, 1, 2, 3]], 7
    )
    within = [
        objective.value(kept)
        for kept in np.array(list(itertools.product([False, True], repeat=space.n)))
        if budget.allows(space.counts(kept))
    ]
    selection = select(Problem(objective, budget), solver, time_limit=5)
    assert selection.counts[0] == selection.counts[2] and budget.allows(selection.counts)
    assert math.isclose(selection.value, max(within)) and selection.status is Status.OPTIMAL
    assert math.isclose(selection.bound, max(within))
    tried = selection.stats["even numbers tried"]
    assert tried == (3 if monotone else len(budget.even_counts)) and len(budget.even_counts) > 2
    assert f"{tried} such numbers tried" in selection.certificate


def test_an_even_selection_is_as_uncertain_as_its_most_uncertain_number() -> None:
    """A bound of one number that is above the best value of all leaves the gap open."""

    class Counting(Bare):
        def value(self, kept: np.ndarray) -> float:
            return float(kept.sum())

    class Doubting(Solver):
        def solve(self, problem: Problem, *, deadline: float, rng: np.random.Generator) -> Proposal:
            count = problem.budget.fewest[0]
            kept = problem.space.join({b.name: range(count) for b in problem.space.blocks})
            return Proposal(kept, 99.0 if count == 1 else 2.0 * count, certificate="own")

    budget = Budget(SPACE, minimum=1, even=True) & Budget.heads(SPACE, 4)
    selection = select(Problem(Counting(), budget), Doubting())
    assert selection.counts.tolist() == [2, 2] and selection.bound == 99
    assert selection.status is Status.FEASIBLE and "own" in selection.certificate
