"""The laws of solvers and objectives, each stated once."""

from __future__ import annotations

import dataclasses
import inspect
import math

import numpy as np
from helpers import (
    optimum,
)

from cahp_opt import Budget, HeadSpace, Objective, Problem, Selection, Solver, Status, select
from cahp_opt.objective import CoverageForm, QuadraticForm

CLOSE = {"rel_tol": 1e-9, "abs_tol": 1e-9}


def run(problem: Problem, solver: Solver, seed: int = 0) -> Selection | None:
    """The solver's selection, or None where it refuses the structure with a sentence."""
    try:
        return select(problem, solver, seed=seed)
    except ValueError as refusal:
        assert type(solver).__name__ in str(refusal)
        assert str(refusal).endswith(".")
        return None


def check_value(solver: Solver) -> None:
    """A solver is a frozen dataclass of options, with a docstring."""
    assert dataclasses.is_dataclass(solver)
    assert hash(solver) == hash(dataclasses.replace(solver))
    assert solver == dataclasses.replace(solver)
    assert all(f.type != "str" for f in dataclasses.fields(solver)), "no string-typed options"
    assert inspect.getdoc(type(solver))


def check_selection(solver: Solver, problem: Problem, seed: int) -> None:
    """What every selection of every solver must be; a solver of your own can be checked with it."""
    selection = run(problem, solver, seed)
    if selection is None:
        return
    best = optimum(problem)
    counts = problem.space.counts(selection.kept)
    assert np.all(problem.budget.fewest <= counts) and np.all(counts <= problem.budget.most)
    uneven = counts % problem.budget.multiples > 0
    assert np.all(counts[uneven] == problem.space.units[uneven])
    for table in problem.budget.tables:
        own = sum(c[k] for c, k in zip(table.costs, counts, strict=True))
        cost = max(table.least, table.fixed + own)
        assert cost <= table.limit * (1 + 1e-12)
        assert math.isclose(selection.costs[table.name].value, cost, rel_tol=1e-12, abs_tol=1e-15)
        assert selection.costs[table.name][1:] == (table.limit, table.unit)
    assert selection.value == problem.objective.value(selection.kept)
    assert selection.value <= selection.bound
    assert selection.value <= best.value + 1e-9 * max(1, abs(best.value))
    assert selection.bound >= best.value - 1e-9 * max(1, abs(best.value))
    if selection.status is Status.OPTIMAL:
        assert math.isclose(selection.value, best.value, **CLOSE)
    assert math.isfinite(selection.bound) or selection.certificate.startswith("none")
    again = select(problem, solver, seed=seed)
    assert np.array_equal(again.kept, selection.kept)
    assert (again.value, again.bound) == (selection.value, selection.bound)


def check_relabelling(solver: Solver, problem: Problem, rng: np.random.Generator) -> None:
    if has_ties(problem.objective):
        return  # equal gains are broken by order, and other ties lead to other answers
    first = run(problem, solver)
    if first is None:
        return
    space = problem.space
    blocks = rng.permutation(len(space.blocks))
    order = np.concatenate(
        [space.slices[b].start + rng.permutation(space.units[b]) for b in blocks]
    )
    renamed = HeadSpace(tuple(space.blocks[b] for b in blocks))
    budget = Budget(
        renamed,
        tuple(
            dataclasses.replace(t, costs=tuple(t.costs[b] for b in blocks))
            for t in problem.budget.tables
        ),
        problem.budget.fewest[blocks],
        problem.budget.most[blocks],
        problem.budget.multiples[blocks],
    )
    second = run(Problem(Relabelled(problem.objective, order), budget), solver)
    if second is not None:  # the relabelled view hides structure, which an exact solver may need
        assert math.isclose(first.value, second.value, **CLOSE)


class Relabelled(Objective):
    """The same objective with its units in another order."""

    def __init__(self, inner: Objective, order: np.ndarray) -> None:
        self.inner, self.order = inner, order

    n = property(lambda self: self.inner.n)
    monotone = property(lambda self: self.inner.monotone)
    submodular = property(lambda self: self.inner.submodular)

    def value(self, kept: np.ndarray) -> float:
        inner = np.empty(self.n, dtype=np.bool_)
        inner[self.order] = kept
        return self.inner.value(inner)

    def linear(self) -> np.ndarray | None:
        weights = self.inner.linear()
        return None if weights is None else weights[self.order]

    def quadratic(self) -> QuadraticForm | None:
        form = self.inner.quadratic()
        if form is None:
            return None
        pairs = form.pairwise[np.ix_(self.order, self.order)]
        return QuadraticForm(form.linear[self.order], pairs, form.constant)

    def coverage(self) -> CoverageForm | None:
        form = self.inner.coverage()
        return None if form is None else CoverageForm(form.similarity[:, self.order], form.weights)


def has_ties(objective: Objective) -> bool:
    ends = (np.zeros(objective.n, dtype=np.bool_), np.ones(objective.n, dtype=np.bool_))
    return any(bool(np.any(np.diff(np.sort(objective.gains(end))) < 1e-9)) for end in ends)


def check_tracker(objective: Objective, rng: np.random.Generator) -> None:
    """A tracker says what the objective says, after any sequence of additions and removals."""
    kept = rng.random(objective.n) < 0.5
    tracker = objective.tracker(kept)
    unit = 0
    for _ in range(12):
        if rng.random() < 0.6:  # else the same unit again: its flip is taken back
            unit = int(rng.integers(objective.n))
        (tracker.remove if kept[unit] else tracker.add)(unit)
        kept = kept.copy()
        kept[unit] ^= True
        value = objective.value(kept)
        scale = max(1.0, abs(value), abs(objective.value(np.ones(objective.n, dtype=np.bool_))))
        assert np.array_equal(tracker.kept, kept)
        assert math.isclose(tracker.value, value, abs_tol=1e-8 * scale)
        direct = np.array([objective.value(flip(kept, i)) - value for i in range(objective.n)])
        np.testing.assert_allclose(tracker.gains(), direct, rtol=0, atol=1e-8 * scale)
        np.testing.assert_allclose(objective.gains(kept), direct, rtol=0, atol=1e-8 * scale)
        some = rng.permutation(objective.n)[: int(rng.integers(objective.n + 1))]
        own = tracker.gains(some)
        assert own.shape == some.shape
        np.testing.assert_allclose(own, direct[some], rtol=0, atol=1e-8 * scale)
        assert math.isclose(tracker.gain(unit), direct[unit], abs_tol=1e-8 * scale)


def check_declared_facts(objective: Objective, space: HeadSpace, rng: np.random.Generator) -> None:
    """What an objective declares, and the structure it offers, holds at random keep-sets."""
    larger = rng.random(space.n) < 0.6
    smaller = larger & (rng.random(space.n) < 0.5)
    out = np.flatnonzero(~larger)
    at_large, at_small = objective.gains(larger)[out], objective.gains(smaller)[out]
    slack = 1e-8 * max(1.0, abs(objective.value(np.ones(space.n, dtype=np.bool_))))
    if objective.monotone:
        assert np.all(at_large >= -slack) and np.all(at_small >= -slack)
    if objective.submodular:
        assert np.all(at_large <= at_small + slack)
    weights, form, cover = objective.linear(), objective.quadratic(), objective.coverage()
    x, value = larger.astype(float), objective.value(larger)
    if weights is not None:
        assert math.isclose(weights @ x, value, abs_tol=slack)
    if form is not None:
        assert math.isclose(
            form.constant + form.linear @ x + x @ form.pairwise @ x, value, abs_tol=slack
        )
    if cover is not None and larger.any():
        assert math.isclose(
            cover.weights @ cover.similarity[:, larger].max(axis=1), value, abs_tol=slack
        )
    tables = objective.separable(space)
    for b, table in enumerate(tables or ()):
        for k, (best, subset) in enumerate(zip(table.values, table.kept, strict=True)):
            assert subset.sum() == k
            whole = smaller.copy()
            whole[space.slices[b]] = False
            rest = objective.value(whole)
            whole[space.slices[b]] = subset
            assert math.isclose(objective.value(whole) - rest, best, abs_tol=slack)


def flip(kept: np.ndarray, unit: int) -> np.ndarray:
    flipped = kept.copy()
    flipped[unit] ^= True
    return flipped
