"""Best subsets of groups of neurons: valid bounds over all subsets, against trying every one."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cahp_opt import Budget, HeadSpace, Problem, Status, select
from cahp_opt.arrays import Bools, Floats
from cahp_opt.objectives import ExplainedVariance, explained_variance
from cahp_opt.objectives.group_subsets import group_subsets
from cahp_opt.solvers import Auto, DynamicProgram
from cahp_opt.space import Block, Unit
from cahp_opt.stats.column_form import ColumnForm
from cahp_opt.subsets import best_by_count
from cahp_opt.testing import check_solver
from cahp_opt.testing.instances import BUDGETS, OBJECTIVES, SPACES


def fit(seed: int, units: int, width: int, rows: int) -> tuple[Floats, Floats]:
    """A covariance with groups that are redundant to one another, and a factor of the readout."""
    rng = np.random.default_rng(seed)
    d = units * width
    shared = rng.normal(size=(d // 2 + 1, d)) * rng.pareto(1, d)
    z = rng.normal(size=(2 * d, d // 2 + 1)) @ shared + 0.3 * rng.normal(size=(2 * d, d))
    return np.atleast_2d(np.cov(z.T)), rng.normal(size=(rows, d))


def every(gram: Floats, target: Floats, units: int) -> Floats:
    equations = explained_variance.Equations(gram, target.T @ target, False)
    return explained_variance._subset_values(equations, units)


@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.integers(1, 3), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_bounds_hold_for_every_subset_and_proofs_are_right(
    seed: int, units: int, width: int, rows: int
) -> None:
    covariance, factor = fit(seed, units, width, rows)
    gram = np.array(covariance) + 0.01 * np.mean(np.diagonal(covariance)) * np.eye(len(covariance))
    target = factor @ covariance
    best = best_by_count(units, every(gram, target, units))
    found = group_subsets(gram, target, units, explained_variance._of_matrices)
    slack = 1e-7 * best.values[-1]
    assert np.all(found.values <= best.values + slack)
    assert np.all(found.most >= best.values - slack)
    assert found.bound is not None or np.all(found.values >= best.values - slack)
    assert found.kept.sum(axis=1).tolist() == list(range(units + 1))
    objective = ExplainedVariance([covariance], [ColumnForm.small(factor)], [units])
    for kept, value in zip(found.kept, found.values, strict=True):
        assert objective.value(kept) == pytest.approx(value, rel=1e-6, abs=slack)


@pytest.mark.parametrize("ridge", [1e-2, 1e-6, 1e-9])
@pytest.mark.parametrize("degenerate", ["duplicates", "one direction", "zeros", "scales"])
def test_nearly_singular_equations_prove_nothing_that_is_not_so(
    monkeypatch: pytest.MonkeyPatch, degenerate: str, ridge: float
) -> None:
    monkeypatch.setattr(explained_variance, "is_cheaper_whole", lambda *_: False)
    units, width = 5, 2
    space = HeadSpace((Block("part", units, Unit.NEURON_GROUP),))
    for seed in range(8):
        rng = np.random.default_rng(seed)
        z = rng.normal(size=(30, units * width))
        if degenerate == "duplicates":
            z = z[:, rng.integers(0, 4, units * width)]
        elif degenerate == "one direction":
            z = z[:, :1] * rng.normal(size=units * width)
        elif degenerate == "zeros":
            z[:, :width] = 0.0
        else:
            z = z * np.repeat(10.0 ** rng.uniform(-6, 6, units), width)
        factor = rng.normal(size=(3, units * width))
        objective = ExplainedVariance([z.T @ z], [ColumnForm.small(factor)], [units], ridge=ridge)
        found = objective.separable(space)[0]
        best = np.zeros(units + 1)
        for chosen in product((False, True), repeat=units):
            kept = np.array(chosen)
            best[kept.sum()] = max(best[kept.sum()], objective.value(kept))
        slack = 1e-6 * best[-1]
        assert np.all(found.most >= best - slack)
        assert found.bound is not None or np.all(found.values >= best - slack)
        for kept, value in zip(found.kept, found.values, strict=True):
            assert objective.value(kept) == pytest.approx(value, abs=slack)


@pytest.mark.parametrize("seed", range(3))
def test_bounds_hold_for_blocks_of_more_units_than_can_be_tabulated(seed: int) -> None:
    covariance, factor = fit(seed, 17, 1, 3)
    gram = np.array(covariance) + 0.01 * np.mean(np.diagonal(covariance)) * np.eye(17)
    target = factor @ covariance
    best = best_by_count(17, every(gram, target, 17))
    found = group_subsets(gram, target, 17, explained_variance._of_matrices)
    assert found.bound is not None and np.all(found.bound >= best.values)
    assert np.all(found.bound <= best.values[-1] * (1 + 1e-7)) and np.all(np.diff(found.bound) >= 0)
    assert found.bound[10] < best.values[-1]  # more is proved than that the value is monotone
    first: Bools = np.tri(18, 17, -1, dtype=np.bool_)
    np.testing.assert_array_equal(found.kept, first)


def test_a_certificate_names_the_blocks_that_are_best_by_their_order_alone() -> None:
    space = HeadSpace((Block("heads", 3), Block("part", 20, Unit.NEURON_GROUP)))
    (heads, _), (wide, factor) = fit(0, 3, 2, 6), fit(1, 20, 2, 3)
    objective = ExplainedVariance([heads, wide], [np.eye(6), ColumnForm.small(factor)], [3, 20])
    budget = Budget.heads_per_block(space, np.array([2, 9]))
    for solver in (DynamicProgram(), Auto()):
        found = select(Problem(objective, budget), solver)
        assert found.status is Status.FEASIBLE and found.counts.tolist() == [2, 9]
        assert found.value < found.bound < np.inf
        assert np.all(found.kept[3:12]) and not found.kept[12:].any()
    assert "part by their measured order, with a bound over all subsets" in (
        select(Problem(objective, budget), DynamicProgram()).certificate
    )
    with pytest.raises(ValueError, match=r"block 'part' has 20 units"):
        objective.separable(HeadSpace((Block("heads", 3), Block("part", 20))))


def test_solvers_and_proofs_stay_right_where_few_subsets_are_fitted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As for wide groups, whose subsets are not all tabulated."""
    monkeypatch.setattr(explained_variance, "is_cheaper_whole", lambda *_: False)
    spaces = [
        HeadSpace(tuple(Block(b.name, b.units, Unit.NEURON_GROUP) for b in space.blocks))
        for space in SPACES
    ]
    objectives = {name: OBJECTIVES[name] for name in ("explained variance", "scaled")}
    names = ("linear latency", "staircase", "not monotone", "two tables", "multiples")
    done = check_solver(
        DynamicProgram(),
        objectives=objectives,
        budgets={name: BUDGETS[name] for name in names},
        spaces=spaces,
        rounds=3,
    )
    assert done.refused == 0 and done.best >= 0.9 * done.answered


def test_values_do_not_depend_on_what_was_asked_before() -> None:
    space = HeadSpace((Block("heads", 3), Block("part", 6, Unit.NEURON_GROUP)))
    (heads, _), (wide, factor) = fit(0, 3, 2, 6), fit(1, 6, 2, 3)

    def fresh() -> ExplainedVariance:
        return ExplainedVariance(
            [heads, wide], [np.eye(6), ColumnForm.small(factor)], [3, 6], weights=[2.0, 0.5]
        )

    rng, asked = np.random.default_rng(0), fresh()
    masks = [*(rng.random((12, 9)) < 0.5), np.ones(9, bool), np.zeros(9, bool)]
    expected = [fresh().value(kept) for kept in masks]
    for _ in range(2):
        found = [asked.value(kept) for kept in masks for _ in range(2)]
        np.testing.assert_allclose(found, np.repeat(expected, 2), rtol=1e-12)
        asked.separable(space)
