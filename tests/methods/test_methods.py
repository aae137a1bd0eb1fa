"""What single methods promise beyond the laws."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import combinations

import numpy as np
import pytest

from cahp_opt import Block, Budget, HeadSpace, Prune, Unit, select
from cahp_opt.methods import Cahp, Even, Fisher, GaussNewton, MostExplained, Osscar, ZipLevels
from cahp_opt.methods.zip_levels import removed_in_turn
from cahp_opt.objectives import Curvature, ExplainedVariance
from cahp_opt.problem import Problem
from cahp_opt.runs.method import Task
from cahp_opt.solvers import BruteForce
from cahp_opt.solvers.cahp import Reduction
from cahp_opt.testing import random_stats

HEADS = HeadSpace((Block("a", 4), Block("b", 4)))
BOTH = HeadSpace((Block("a", 4), Block("b", 5, Unit.NEURON_GROUP, tuple(range(10)))))


def explained(gram: np.ndarray, factor: np.ndarray, columns: np.ndarray) -> float:
    """What some columns explain of a least-squares fit, from its normal equations."""
    own, target = gram[np.ix_(columns, columns)], factor[:, columns]
    return float(np.trace(target @ np.linalg.inv(own) @ target.T))


@pytest.mark.parametrize("width", [1, 3])
def test_units_go_one_at_a_time_each_the_one_that_is_missed_least(width: int) -> None:
    rng, units = np.random.default_rng(0), 5
    samples = rng.normal(size=(40, units * width)) @ rng.normal(size=(units * width,) * 2)
    gram, factor = samples.T @ samples, rng.normal(size=(4, units * width))
    found = removed_in_turn(gram, factor, units)
    assert found.kept[units].all() and not found.kept[0].any() and found.values[0] == 0
    for count in range(units, 0, -1):
        columns = np.flatnonzero(np.repeat(found.kept[count], width))
        assert found.values[count] == pytest.approx(explained(gram, factor, columns))
        tried = [
            explained(
                gram, factor, np.flatnonzero(np.repeat(found.kept[count] & (every != u), width))
            )
            for every in [np.arange(units)]
            for u in np.flatnonzero(found.kept[count])
        ]
        assert found.values[count - 1] == pytest.approx(max(tried))


def test_levels_are_allocated_by_their_relative_errors() -> None:
    """The best of all counts, with the units of every block that are left at that level."""
    stats = random_stats(BOTH, names=["moments"])
    budget = Budget.table(BOTH, [np.arange(5.0), 2 * np.arange(6.0)], 7)
    task = Task(budget)
    found = ZipLevels().chooser(stats, task)(budget)
    objective = ExplainedVariance.from_stats(stats, relative=True)
    assert found.value == pytest.approx(objective.value(found.kept))
    levels = []
    for other in range(2):  # with the other block whole, each count of this one
        most = BOTH.units.copy()
        for count in range(int(BOTH.units[1 - other]) + 1):
            most[1 - other] = count
            pinned = Budget(BOTH, (), most, most)
            levels.append((1 - other, count, ZipLevels().chooser(stats, task)(pinned)))
    whole = objective.value(np.ones(BOTH.n, dtype=np.bool_))
    of = {(block, count): s.value - whole for block, count, s in levels}
    best = max(
        of[0, a] + of[1, b] for a in range(5) for b in range(6) if budget.allows(np.array([a, b]))
    )
    assert found.value == pytest.approx(whole + best)


def test_the_most_explained_is_the_optimum() -> None:
    stats = random_stats(BOTH, names=["moments"])
    budget = Budget.table(BOTH, [np.arange(5.0), 2 * np.arange(6.0)], 7)
    found = MostExplained().chooser(stats, Task(budget))(budget)
    best = select(Problem(ExplainedVariance.from_stats(stats), budget), BruteForce())
    assert found.value == pytest.approx(best.value) and found.gap < 1e-6


@pytest.mark.parametrize("method", [Even(), Osscar()])
def test_shares_are_even(method: Even | Osscar) -> None:
    budget = Budget.table(BOTH, [5 * np.arange(5.0), 4 * np.arange(6.0)], 20)
    task = Task(budget)
    stats = random_stats(BOTH, names=method.needs(task).statistics)
    found = method.chooser(stats, task)(budget)
    assert found.counts.tolist() == task.even.tolist() == [2, 2]
    # No other two of the four, and of the five, explain more.
    objective = (
        ExplainedVariance.from_sensitivity(stats)
        if isinstance(method, Even)
        else ExplainedVariance.from_stats(stats)
    )
    values = []
    for a, b in [(a, b) for a in combinations(range(4), 2) for b in combinations(range(4, 9), 2)]:
        kept = np.zeros(BOTH.n, dtype=np.bool_)
        kept[[*a, *b]] = True
        values.append(objective.value(kept))
    assert found.value == pytest.approx(max(values))


def test_the_diagonal_of_the_fisher_matrix_keeps_the_top_units() -> None:
    budget = Budget.heads(HEADS, 3)
    task = Task(budget, labelled=True)
    needs = Fisher().needs(task)
    stats = random_stats(HEADS, names=needs.statistics, densities=needs.densities)
    diagonal = np.diagonal(Curvature.FISHER.of(stats, 1.0))
    kept = Fisher().chooser(stats, task)(budget).kept
    assert diagonal[kept].min() > diagonal[~kept].max() and kept.sum() == 3


def test_the_seed_method_has_as_many_clusters_as_the_budget_has_room_for() -> None:
    method = Cahp(reduction=Reduction.NONE)
    stats = random_stats(HEADS, names=method.needs(Task(Budget(HEADS))).statistics)
    for limit in (2, 5, 8):
        budget = Budget.heads(HEADS, limit)
        found = method.chooser(stats, Task(budget, labelled=True))(budget)
        assert found.kept.sum() == limit == found.stats["clusters"]


def test_the_seed_method_refuses_what_it_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    labelled = Task(Budget(HEADS), labelled=True)
    Cahp().check(labelled)
    with pytest.raises(ValueError, match="needs labelled texts"):
        Cahp().check(Task(Budget(HEADS)))
    with pytest.raises(ValueError, match="chooses heads only"):
        Cahp().check(Task(Budget(BOTH), labelled=True))
    monkeypatch.setattr("cahp_opt.methods.cahp.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"cahp-opt\[cahp\]"):
        Cahp().check(labelled)
    Cahp(reduction=Reduction.NONE).check(labelled)
    assert Cahp.prunes is Prune.HEADS


def test_the_damage_is_taken_at_the_density_that_is_kept() -> None:
    space = HeadSpace.uniform(2, 7)
    task = Task(Budget.heads(space, 7))
    method = GaussNewton(seconds=0.1)
    assert method.needs(task).densities == (0.5,)
    stats = random_stats(space, names=["gauss_newton"], densities=(0.5,))
    found = method.chooser(stats, task)(task.budget)
    assert (
        found.solver.startswith("MIQP" if find_spec("ortools") else "Auto")
        and found.kept.sum() <= 7
    )
    with pytest.raises(ValueError, match="`seconds` must be above 0"):
        GaussNewton(seconds=0.0)
