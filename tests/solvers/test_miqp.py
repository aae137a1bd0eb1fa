"""MIQP and Relaxation on instances of the kind they are for; the laws cover the small ones."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from helpers import make_problem
from instances_exact import coverage_problem, damage_problem, half_latency, redundancy_problem
from work_clock import WorkClock

from cahp_opt import HeadSpace, Problem, Status, select
from cahp_opt.objectives import ExplainedVariance, Modular, Quadratic
from cahp_opt.solvers import MIQP, BruteForce, DynamicProgram, Relaxation
from cahp_opt.solvers.miqp import Formulation
from cahp_opt.solvers.parts.master import Answer, Master

BOTH = (Formulation.OUTER_APPROXIMATION, Formulation.LINEARISED)


@pytest.mark.parametrize("formulation", BOTH)
@pytest.mark.parametrize("kind", [damage_problem, redundancy_problem])
def test_both_formulations_reach_the_optimum(kind: object, formulation: Formulation) -> None:
    for seed in range(3):
        problem = kind(seed, blocks=3, units=4)  # type: ignore[operator]
        best = select(problem, BruteForce())
        found = select(problem, MIQP(formulation=formulation))
        assert math.isclose(found.value, best.value, rel_tol=1e-9)
        assert found.gap <= 1e-6
        assert found.stats["formulation"] == formulation.value
        assert found.stats["because"] == "asked for"


def test_it_says_which_formulation_it_took_and_why() -> None:
    dense = select(damage_problem(0, 4, 4), MIQP())
    assert dense.stats["formulation"] == Formulation.OUTER_APPROXIMATION.value
    assert "dense pairs" in str(dense.stats["because"])
    weak = select(redundancy_problem(0, 4, 4), MIQP())
    assert weak.stats["formulation"] == Formulation.LINEARISED.value
    assert "weak pairs" in str(weak.stats["because"])
    space = HeadSpace.uniform(6, 2)
    pairs = np.zeros((12, 12))
    pairs[0, 5] = pairs[5, 0] = 9.0
    rng = np.random.default_rng(0)
    sparse = select(Problem(Quadratic(rng.random(12), pairs), half_latency(rng, space)), MIQP())
    assert "sparse pairs" in str(sparse.stats["because"])


def test_blocks_too_large_for_tables_use_counts() -> None:
    problem = damage_problem(2, blocks=1, units=14)
    best = select(problem, BruteForce())
    found = select(problem, MIQP())
    assert math.isclose(found.value, best.value, rel_tol=1e-9)
    assert found.gap <= 1e-5


def test_facility_location_of_some_size_is_solved() -> None:
    found = select(coverage_problem(1, blocks=5, units=6), MIQP())
    assert found.gap <= 1e-6


def test_sums_of_weights_are_exact_at_once() -> None:
    rng = np.random.default_rng(1)
    space = HeadSpace.uniform(12, 12)
    problem = Problem(Modular(rng.pareto(1.5, space.n)), half_latency(rng, space))
    with WorkClock() as clock:
        found = select(problem, DynamicProgram())
    assert clock.now < 0.01  # some thousand calls
    assert found.status is Status.OPTIMAL
    assert select(problem, MIQP()).value == found.value


def test_a_deadline_still_gives_an_answer_and_a_bound() -> None:
    problem = damage_problem(3)
    for solver in (MIQP(), Relaxation()):
        found = select(problem, solver, time_limit=0.3)
        assert found.status is Status.TIME_LIMIT
        assert math.isfinite(found.bound) and found.gap < 1
        assert "kept" not in found.stats


def test_refusals_name_the_alternative() -> None:
    problem = make_problem("explained variance", "heads", HeadSpace.uniform(2, 3), 0)
    assert isinstance(problem.objective, ExplainedVariance)
    with pytest.raises(ValueError, match=r"neither; use `LazyGreedy` or `Greedy`\.$"):
        select(problem, MIQP())
    with pytest.raises(ValueError, match=r"none; use `LazyGreedy` or `Greedy`\.$"):
        select(problem, Relaxation())


@pytest.mark.parametrize("bad", [{"gap": -1.0}, {"gap": math.nan}, {"rounds": 0}])
def test_bad_options_of_miqp(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(bad))}` must be at least"):
        MIQP(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [{"rounds": 0}, {"roundings": 0}])
def test_bad_options_of_relaxation(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(bad))}` must be at least 1"):
        Relaxation(**bad)


def test_relaxation_rounds_well() -> None:
    problem = redundancy_problem(0, blocks=6, units=6)
    found = select(problem, Relaxation())
    best = select(problem, MIQP())
    assert found.value >= best.value - 0.01 * abs(best.value)
    assert found.bound >= best.value


@pytest.mark.slow
def test_acceptance_of_72_units_and_of_facility_location() -> None:
    assert select(damage_problem(0, blocks=6), MIQP(), time_limit=30).gap <= 1e-6
    for seed in range(4):
        problem = coverage_problem(seed)
        assert select(problem, MIQP(), time_limit=2).gap <= 0.01
        assert select(problem, MIQP(), time_limit=60).gap <= 1e-6


def test_a_failure_of_highs_is_no_failure() -> None:
    """On this instance HiGHS 1.12 inside OR-Tools 9.15 ends in an internal error."""
    space = HeadSpace.uniform(4, 2)
    for seed in (9379, 9380):
        problem = make_problem("damage", "everything fits", space, seed)
        order = np.random.default_rng(2040).permutation(space.n)
        form = problem.objective.quadratic()
        assert form is not None
        renamed = Quadratic(form.linear[order], form.pairwise[np.ix_(order, order)])
        for objective in (problem.objective, renamed):
            found = select(Problem(objective, problem.budget), MIQP())
            best = select(Problem(objective, problem.budget), BruteForce())
            assert found.value == pytest.approx(best.value) and found.bound >= best.value - 1e-9


def test_a_failure_of_both_solvers_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer of the local search stands, with the bounds that need no master."""
    failed: list[str] = []
    solve = Master._solve

    def fail(self: Master, kind: Any, deadline: float, seed: int | None, hint: Any) -> Answer:
        if seed is None:
            return solve(self, kind, deadline, seed, hint)
        failed.append(kind.name)
        raise AttributeError("'StatusNotOk' object has no attribute 'canonical_code'")

    monkeypatch.setattr(Master, "_solve", fail)
    problem = damage_problem(0, blocks=3, units=4)
    found, best = select(problem, MIQP()), select(problem, BruteForce())
    assert failed == ["HIGHS", "GSCIP"]
    assert found.value <= best.value <= found.bound + 1e-9
