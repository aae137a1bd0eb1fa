"""The laws of :mod:`cahp_opt.testing` over every solver, objective and budget of the library."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from helpers import SOLVERS, examples, make_problem, optimum, problems, random_start
from hypothesis import given, settings
from hypothesis import strategies as st

import cahp_opt.objectives
from cahp_opt import HeadSpace, Objective, Problem, Solver, Status, select
from cahp_opt.arrays import Bools
from cahp_opt.bounds.certified import Bound, certified_bound
from cahp_opt.solvers import (
    DynamicProgram,
    Greedy,
    LazyGreedy,
    RandomSubset,
    Spectral,
    StochasticGreedy,
    Tabu,
)
from cahp_opt.testing import OBJECTIVES, SPACES
from cahp_opt.testing.answers import CLOSE, answer
from cahp_opt.testing.objective_laws import check_declared_facts, check_tracker
from cahp_opt.testing.options import check_options
from cahp_opt.testing.relabelling import check_relabelling
from cahp_opt.testing.solver_laws import check_launch_time, check_selection

each_solver = pytest.mark.parametrize("solver", SOLVERS, ids=repr)
each_objective = pytest.mark.parametrize("name", sorted(OBJECTIVES))


@pytest.fixture(scope="module", autouse=True)
def bounds_found_once() -> Iterator[None]:
    """Solvers get the same problems and often keep the same units: the library's bound is proved once for all of them.

    It is the same every time, which :func:`test_bounds_are_never_below_the_optimum` says.
    """
    proved: dict[tuple[Problem, bytes], Bound] = {}

    def bound(problem: Problem, kept: Bools, value: float, *limit: float) -> Bound:
        key = problem, kept.tobytes()
        if key not in proved:
            proved[key] = certified_bound(problem, kept, value, *limit)
        return proved[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cahp_opt.selection.certified_bound", bound)
        yield


def test_every_objective_has_a_maker() -> None:
    public = [getattr(cahp_opt.objectives, name) for name in cahp_opt.objectives.__all__]
    made = {type(OBJECTIVES[o](np.random.default_rng(0), SPACES[2])) for o in OBJECTIVES}
    assert made == {c for c in public if issubclass(c, Objective)}


@each_solver
def test_a_solver_is_a_value(solver: Solver) -> None:
    check_options(solver)


@each_solver
def test_selection_laws(solver: Solver) -> None:
    @examples(solver)
    @given(problem=problems(), seed=st.integers(0, 100))
    def obeys(problem: Problem, seed: int) -> None:
        check_selection(solver, problem, optimum(problem), seed)

    obeys()


@given(problem=problems())
def test_lazy_equals_plain_greedy(problem: Problem) -> None:
    plain, lazy = select(problem, Greedy()), select(problem, LazyGreedy())
    assert math.isclose(plain.value, lazy.value, **CLOSE)
    assert np.array_equal(plain.kept, lazy.kept)


@given(problem=problems())
def test_dynamic_program_proves_what_it_accepts(problem: Problem) -> None:
    selection = answer(DynamicProgram(), problem)
    if selection is not None:
        assert selection.status is Status.OPTIMAL
        assert math.isclose(selection.value, optimum(problem), **CLOSE)


@settings(max_examples=300)
@given(problem=problems(), data=st.data())
def test_bounds_are_never_below_the_optimum(problem: Problem, data: st.DataObject) -> None:
    best = optimum(problem)
    seed = data.draw(st.integers(0, 2**16))
    start = random_start(problem, seed)
    found = certified_bound(problem, start, problem.objective.value(start))
    assert found.value >= best - 1e-9 * max(1, abs(best))
    if seed % 4 == 0:
        assert certified_bound(problem, start, problem.objective.value(start)) == found


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
        check_launch_time(solver, make_problem(objective, "launch bound", space, seed), seed)

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
