"""What the heuristic solvers promise beyond the laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers import problems
from hypothesis import given
from work_clock import WorkClock

from benchmarks.solvers.instances import instance
from cahp_opt import Budget, HeadSpace, Objective, Problem, Proposal, Solver, Status, select
from cahp_opt.objectives import FacilityLocation, FeatureBased, Modular, Quadratic
from cahp_opt.solvers import (
    Auto,
    BackwardGreedy,
    BestOf,
    DynamicProgram,
    Greedy,
    LazyGreedy,
    LocalSearch,
    RandomSubset,
    Spectral,
    StochasticGreedy,
    Tabu,
    TopK,
)

SPACE = HeadSpace.uniform(3, 4)


class Cardinality(Objective):
    """A concave function of the count: no structure that a solver could ask for."""

    n = property(lambda self: 12)

    def value(self, kept: np.ndarray) -> float:
        return math.sqrt(float(kept @ np.arange(1.0, 13.0)))


@given(problem=problems())
def test_local_search_and_tabu_are_never_worse_than_their_start(problem: Problem) -> None:
    starts: tuple[Solver, ...] = (LazyGreedy(), TopK(), RandomSubset())
    for start in starts:
        plain = select(problem, start).value
        assert select(problem, LocalSearch(start)).value >= plain
    first = LocalSearch(TopK())
    tabu = Tabu(first, iterations=10, patience=3)
    assert select(problem, tabu).value >= select(problem, first).value


def test_local_search_is_within_half_a_percent_on_staircases() -> None:
    gaps: list[float] = []
    for seed in range(10):
        problem = instance("modular", 144, seed)
        best = select(problem, DynamicProgram())
        assert best.status is Status.OPTIMAL
        gaps.append(1 - select(problem, LocalSearch(Greedy())).value / best.value)
    assert np.mean(gaps) < 0.005
    assert min(gaps) > -1e-9


@pytest.mark.parametrize("family", ["dense", "redundancy", "facility location"])
def test_tabu_beats_greedy_clearly(family: str) -> None:
    problem = instance(family, 72, 0)
    greedy, tabu = (select(problem, s) for s in (LazyGreedy(), Tabu(iterations=200)))
    assert tabu.value > greedy.value


def test_tabu_walks_without_a_form_too() -> None:
    problem = Problem(Cardinality(), Budget.heads(SPACE, 5))
    found = select(problem, Tabu(start=RandomSubset(), iterations=20, patience=4))
    assert set(np.flatnonzero(found.kept)) == {7, 8, 9, 10, 11}


@pytest.mark.parametrize(
    "solver",
    [
        LocalSearch(),
        LocalSearch(Greedy()),
        Tabu(iterations=10**9),
        BackwardGreedy(),
        StochasticGreedy(),
        BestOf((LazyGreedy(), LocalSearch(), Tabu(iterations=10**9))),
        Auto(),
    ],
    ids=repr,
)
@pytest.mark.parametrize("family", ["dense", "facility location"])
def test_the_deadline_is_honoured(family: str, solver: Solver) -> None:
    problem = instance(family, 384, 0)
    with WorkClock() as clock:
        found = solver.solve(problem, deadline=0.02, rng=np.random.default_rng(0))
    assert clock.now < 0.15  # to the end, most would take 0.4 to 9
    assert problem.budget.allows(problem.space.counts(found.kept))


def test_multiples_are_filled_up_in_order() -> None:
    value = Modular(np.arange(1.0, 13.0)[::-1])
    budget = Budget.heads(SPACE, 7, multiple_of=2)
    found = select(Problem(value, budget), TopK())
    assert found.counts.tolist() == [4, 2, 0] and np.flatnonzero(found.kept).tolist() == [*range(6)]
    for seed in range(5):
        counts = select(Problem(value, budget), RandomSubset(), seed=seed).counts
        assert counts.sum() == 6 and not (counts % 2).any()


def test_lazy_greedy_looks_again_at_an_equal_that_comes_first() -> None:
    """Unit 0 was not among those looked at when the best was found, and is as good up to rounding."""
    linear = np.array([1 - 1e-12, *np.linspace(2, 2.1, 9), 5, 0])
    pairwise = np.zeros((12, 12))
    pairwise[10, 1:10] = pairwise[1:10, 10] = (np.linspace(0.9, 1, 9) - linear[1:10]) / 2
    problem = Problem(Quadratic(linear, pairwise), Budget.heads(HeadSpace.uniform(2, 6), 2))
    for solver in (Greedy(), LazyGreedy()):
        assert np.flatnonzero(select(problem, solver).kept).tolist() == [0, 10]


def test_best_of_takes_the_best_and_the_tightest_bound() -> None:
    problem = instance("facility location", 72, 1)
    every = (RandomSubset(), TopK(), LocalSearch())
    found = select(problem, BestOf(every))
    assert found.value >= max(select(problem, solver).value for solver in every[1:])
    assert found.stats["best"] == repr(LocalSearch())
    problem = instance("modular", 72, 1)
    proved = select(problem, BestOf((RandomSubset(), DynamicProgram())))
    assert proved.status is Status.OPTIMAL
    assert proved.bound == select(problem, DynamicProgram()).bound


def test_best_of_passes_over_refusals() -> None:
    problem = instance("dense", 72, 0)
    found = select(problem, BestOf((DynamicProgram(), TopK())))
    assert found.value == select(problem, TopK()).value
    assert found.stats["refused"] == 1
    with pytest.raises(ValueError, match=r"`BestOf`.*`LazyGreedy\(\)`.*`DynamicProgram`"):
        select(problem, BestOf((DynamicProgram(),)))


def test_best_of_does_not_hide_a_broken_budget() -> None:
    problem = Problem(Modular(np.ones(12)), Budget.heads(SPACE, 5))
    with pytest.raises(RuntimeError, match=r"`Everything` proposed .* bug\."):
        select(problem, BestOf((TopK(), Everything())))


class Everything(Solver):
    """Wrong on purpose: ignores the budget."""

    def solve(self, problem: Problem, *, deadline: float, rng: np.random.Generator) -> Proposal:
        return Proposal(np.ones(problem.space.n, dtype=np.bool_))


@pytest.mark.parametrize("wrapper", [LocalSearch, Tabu])
def test_the_refusal_of_a_start_passes_through(wrapper: type[LocalSearch] | type[Tabu]) -> None:
    with pytest.raises(ValueError, match="`DynamicProgram` needs"):
        select(instance("dense", 72, 0), wrapper(DynamicProgram()))


@pytest.mark.parametrize(
    ("problem", "chosen", "reason"),
    [
        (instance("modular", 72, 0), "DynamicProgram", "sum over blocks"),
        (Problem(Cardinality(), Budget.heads(SPACE, 5)), "BruteForce", "12 units"),
        (instance("facility location", 72, 0), "MIQP(", "prices of its rows"),
        (
            Problem(FeatureBased(np.eye(72)), Budget.heads(HeadSpace.uniform(12, 6), 9)),
            "LocalSearch(start=LazyGreedy",
            "submodular",
        ),
        (instance("dense", 36, 0), "BestOf(solvers=(Tabu(", "proves how good"),
        (instance("dense", 216, 0), "Tabu", "all swaps are known"),
    ],
)
def test_auto_says_what_it_chose_and_why(problem: Problem, chosen: str, reason: str) -> None:
    found = select(problem, Auto(), time_limit=0.5)
    assert str(found.stats["chose"]).startswith(chosen)
    assert reason in str(found.stats["because"])
    assert str(found.stats["because"]).endswith(".")


def test_auto_without_structure() -> None:
    problem = Problem(Cardinality(), Budget.heads(SPACE, 5))
    found = select(problem, Auto(few=0))
    assert str(found.stats["chose"]).startswith("LocalSearch(start=Greedy")
    assert set(np.flatnonzero(found.kept)) == {7, 8, 9, 10, 11}


def test_spectral_keeps_one_of_each_group_first() -> None:
    groups = np.kron(np.eye(4), np.ones((3, 3)))
    problem = Problem(FacilityLocation(groups), Budget.heads(SPACE, 4))
    found = select(problem, Spectral())
    assert found.stats["communities"] == 4
    assert found.value == 12
    few = select(Problem(problem.objective, Budget.heads(SPACE, 2)), Spectral())
    assert few.value == 6
    redundant = Quadratic(np.linspace(1, 2, 12), -groups)
    assert select(Problem(redundant, Budget.heads(SPACE, 4)), Spectral()).kept[2::3].all()


def test_spectral_needs_a_similarity() -> None:
    with pytest.raises(ValueError, match=r"`Spectral` needs .*`Cardinality`.*use `LazyGreedy`"):
        select(Problem(Cardinality(), Budget.heads(SPACE, 5)), Spectral())


@pytest.mark.parametrize(
    "make",
    [
        lambda: StochasticGreedy(epsilon=0),
        lambda: StochasticGreedy(lookahead=0),
        lambda: BackwardGreedy(lookahead=0),
        lambda: LocalSearch(reach=0),
        lambda: Tabu(iterations=0),
        lambda: Tabu(warmth=-1),
        lambda: BestOf(()),
        lambda: Auto(few=-1),
        lambda: Spectral(resolution=0),
    ],
)
def test_bad_options_are_refused_with_a_sentence(make: object) -> None:
    with pytest.raises(ValueError, match=r"^`\w+` .* got .*\.$"):
        make()  # type: ignore[operator]
