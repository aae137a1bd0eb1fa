"""The laws of the optimising room, over every solver, objective and budget (architecture: laws)."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from helpers import (
    OBJECTIVE_CLASSES,
    OBJECTIVES,
    SOLVERS,
    SPACES,
    examples,
    make_problem,
    optimum,
    problems,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import (
    CLOSE,
    check_declared_facts,
    check_relabelling,
    check_selection,
    check_tracker,
    check_value,
    run,
)

import cahp_opt.objectives
import cahp_opt.solvers
from cahp_opt import Budget, HeadSpace, Objective, Problem, Solver, Status, select
from cahp_opt.bounds.certified import certified_bound
from cahp_opt.solvers import (
    DynamicProgram,
    Greedy,
    LazyGreedy,
    RandomSubset,
    Spectral,
    StochasticGreedy,
    Tabu,
)

each_solver = pytest.mark.parametrize("solver", SOLVERS, ids=repr)
each_objective = pytest.mark.parametrize("name", sorted(OBJECTIVES))


def test_every_solver_and_objective_is_in_the_matrix() -> None:
    assert {type(s).__name__ for s in SOLVERS} == set(cahp_opt.solvers.__all__)
    public = {getattr(cahp_opt.objectives, name) for name in cahp_opt.objectives.__all__}
    assert set(OBJECTIVE_CLASSES) == {c for c in public if issubclass(c, Objective)}
    made = {type(OBJECTIVES[o](np.random.default_rng(0), SPACES[2])) for o in OBJECTIVES}
    assert made == set(OBJECTIVE_CLASSES)


@each_solver
def test_a_solver_is_a_value(solver: Solver) -> None:
    check_value(solver)


@each_solver
def test_selection_laws(solver: Solver) -> None:
    @examples(solver)
    @given(problem=problems(), seed=st.integers(0, 100))
    def obeys(problem: Problem, seed: int) -> None:
        check_selection(solver, problem, seed)

    obeys()


@given(problem=problems())
def test_lazy_equals_plain_greedy(problem: Problem) -> None:
    plain, lazy = select(problem, Greedy()), select(problem, LazyGreedy())
    assert math.isclose(plain.value, lazy.value, **CLOSE)
    assert np.array_equal(plain.kept, lazy.kept)


@given(problem=problems())
def test_dynamic_program_proves_what_it_accepts(problem: Problem) -> None:
    selection = run(problem, DynamicProgram())
    if selection is not None:
        assert selection.status is Status.OPTIMAL
        best = optimum(problem)
        assert math.isclose(selection.value, best.value, **CLOSE)


@settings(max_examples=300)
@given(problem=problems(), data=st.data())
def test_bounds_are_never_below_the_optimum(problem: Problem, data: st.DataObject) -> None:
    best = optimum(problem)
    seed = data.draw(st.integers(0, 2**16))
    start = select(problem, cahp_opt.solvers.RandomSubset(), seed=seed)
    bound = certified_bound(problem, start.kept, start.value).value
    assert bound >= best.value - 1e-9 * max(1, abs(best.value))


@each_solver
def test_relabelling_keeps_the_value(solver: Solver) -> None:
    """Permuting blocks, and units inside blocks, changes names and nothing else."""
    if isinstance(solver, RandomSubset | Spectral | StochasticGreedy | Tabu):
        return  # they draw units or blocks by their place, and their answer is one of many by design

    @examples(solver)
    @given(problem=problems(), seed=st.integers(0, 2**16))
    def obeys(problem: Problem, seed: int) -> None:
        check_relabelling(solver, problem, np.random.default_rng(seed))

    obeys()


@each_solver
def test_a_launch_time_within_the_limit_changes_nothing(solver: Solver) -> None:
    @examples(solver)
    @given(
        objective=st.sampled_from(sorted(OBJECTIVES)),
        space=st.sampled_from(SPACES),
        seed=st.integers(0, 2**16),
    )
    def obeys(objective: str, space: HeadSpace, seed: int) -> None:
        bound = make_problem(objective, "launch bound", space, seed)
        free = tuple(dataclasses.replace(t, least=0.0) for t in bound.budget.tables)
        found = run(bound, solver, seed)
        without = run(Problem(bound.objective, Budget(space, free)), solver, seed)
        assert (found is None) == (without is None)
        if found is not None and without is not None:
            assert np.array_equal(found.kept, without.kept)

    obeys()


@each_objective
@given(space=st.sampled_from(SPACES), seed=st.integers(0, 2**32 - 1))
def test_trackers_follow_the_value(name: str, space: HeadSpace, seed: int) -> None:
    rng = np.random.default_rng(seed)
    check_tracker(OBJECTIVES[name](rng, space), rng)


@each_objective
@given(space=st.sampled_from(SPACES), seed=st.integers(0, 2**32 - 1))
def test_declared_facts_hold(name: str, space: HeadSpace, seed: int) -> None:
    rng = np.random.default_rng(seed)
    check_declared_facts(OBJECTIVES[name](rng, space), space, rng)
