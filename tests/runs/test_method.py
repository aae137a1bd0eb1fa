"""Methods: what objectives need, and what solvers refuse before anything is measured."""

from __future__ import annotations

import numpy as np
import pytest
from records_by_hand import SPACE, make_stats

from cahp_opt.costs.budget import Budget
from cahp_opt.objectives import ExplainedVariance, FacilityLocation, Modular
from cahp_opt.runs.measuring import ANYWAY
from cahp_opt.runs.method import Task
from cahp_opt.runs.names import DEFAULT_SOLVER, ObjectiveName, SolverName
from cahp_opt.runs.objective_and_solver import ObjectiveAndSolver
from cahp_opt.space import Block, HeadSpace, Unit
from cahp_opt.stats.needs import needs, needs_of
from cahp_opt.stats.registry import STATISTICS


def asked(space: HeadSpace) -> Task:
    return Task(Budget(space), labelled=True)


@pytest.mark.parametrize("objective", ObjectiveName)
def test_an_objective_needs_what_it_says_and_nothing_else(objective: ObjectiveName) -> None:
    stats = make_stats()
    kept = np.array([True, False, True, False, True])
    value = objective.build(stats).value(kept)
    assert objective.needs and objective.needs <= STATISTICS.keys()
    few = stats.without(*STATISTICS.keys() - objective.needs)
    assert few.statistics.keys() == objective.needs
    assert objective.build(few).value(kept) == value
    assert not objective.remarks(few)
    for name in objective.needs:
        with pytest.raises(ValueError, match="calibrate"):
            objective.build(stats.without(name))


@pytest.mark.parametrize("objective", ObjectiveName)
def test_the_example_of_an_objective_has_the_structure_of_the_real_one(
    objective: ObjectiveName,
) -> None:
    real, example = objective.build(make_stats()), objective.kind.example(SPACE)
    assert type(example) is type(real) and example.n == SPACE.n
    for form in ("linear", "quadratic", "coverage", "behaviour"):
        assert (getattr(example, form)() is None) == (getattr(real, form)() is None), form
    separable = real.separable(SPACE) is not None
    assert (example.separable(SPACE) is not None) == separable == objective.separable


def test_what_is_not_declared_is_not_needed() -> None:
    @needs("moments", "largest")
    def make() -> Modular:
        return Modular(np.ones(2))

    assert needs_of(make) == {"moments", "largest"} and not needs_of(Modular.from_curvature)
    assert needs_of(FacilityLocation.from_signatures) == {"signatures", "salience"}
    assert needs_of(ExplainedVariance.from_stats) == ANYWAY


def test_a_solver_that_cannot_is_refused_in_advance() -> None:
    with pytest.raises(ValueError, match="needs an objective|no sum over blocks|separable"):
        ObjectiveAndSolver(ObjectiveName.GAUSS_NEWTON, DEFAULT_SOLVER).check(asked(SPACE))
    with pytest.raises(ValueError, match="too many|at most"):
        ObjectiveAndSolver().check(asked(HeadSpace((Block("wide", 30),))))
    for objective in ObjectiveName:
        ObjectiveAndSolver(objective, SolverName("greedy")).check(asked(SPACE))
    unlabelled = Task(Budget(SPACE))
    with pytest.raises(ValueError, match=r"`--objective complementarity` .* no labels; give"):
        ObjectiveAndSolver(ObjectiveName.COMPLEMENTARITY).check(unlabelled)


@pytest.mark.parametrize("groups", [2, 24])
def test_a_rehearsal_takes_neurons_alone_and_more_groups_than_can_be_tabulated(groups: int) -> None:
    """Budgets of heads refuse a space without any, which a rehearsal must not."""
    ObjectiveAndSolver().check(asked(HeadSpace((Block("part", groups, Unit.NEURON_GROUP),))))
