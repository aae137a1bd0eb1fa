"""Comparisons, frontiers and knees: one table for any solvers, resumable and spread over workers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import joblib
import numpy as np
import pytest
from helpers import SOLVERS, make_problem
from hypothesis import given
from hypothesis import strategies as st

from cahp_opt import (
    Budget,
    BudgetError,
    Comparison,
    Frontier,
    HeadSpace,
    Problem,
    Proposal,
    RecordError,
    Solver,
    Status,
    compare,
    frontier,
    knee,
)
from cahp_opt.objectives import FacilityLocation, Modular
from cahp_opt.solvers import BruteForce, DynamicProgram, Greedy, LazyGreedy, RandomSubset, TopK
from cahp_opt.studies.plotting import plot_gaps, plot_values

SPACE = HeadSpace.uniform(2, 4)


def small_problem(seed: int = 0) -> Problem:
    similarity = np.random.default_rng(seed).random((8, 8))
    return Problem(FacilityLocation(similarity + similarity.T), Budget.heads(SPACE, 3))


@dataclass(frozen=True)
class Overspends(Solver):
    """Keeps everything, whatever it costs."""

    def solve(self, problem: Problem, *, deadline: float, rng: np.random.Generator) -> Proposal:
        return Proposal(np.ones(problem.space.n, dtype=np.bool_))


@dataclass(frozen=True)
class Counted(Solver):
    """Writes a line per run, to see what is run again."""

    log: str

    def solve(self, problem: Problem, *, deadline: float, rng: np.random.Generator) -> Proposal:
        with open(self.log, "a", encoding="utf-8") as file:
            file.write("run\n")
        return RandomSubset().solve(problem, deadline=deadline, rng=rng)


def test_every_solver_on_the_same_problems() -> None:
    problems = {
        "coverage": small_problem(),
        "damage": make_problem("damage", "staircase", HeadSpace.uniform(2, 3), 1),
    }
    found = compare(problems, SOLVERS, seeds=(0, 1))
    assert len(found.rows) == 2 * len(SOLVERS) * 2
    for name in problems:
        best = next(r for r in found.rows if r.problem == name and "BruteForce" in r.solver)
        for row in found.rows:
            if row.problem == name and not row.refusal:
                assert row.value <= best.value + 1e-9 * abs(best.value)
                assert row.bound >= best.value - 1e-9 * abs(best.value)
                assert found.gap(row) <= row.gap + 1e-12 and sum(row.counts) > 0
    refused = [r for r in found.rows if r.refusal]
    assert {r.solver for r in refused if r.problem == "coverage"} >= {repr(DynamicProgram())}
    assert all(math.isnan(r.value) and r.refusal.endswith(".") for r in refused)


def test_a_solver_that_breaks_the_budget_gets_its_sentence() -> None:
    (row,) = compare(small_problem(), [Overspends()]).rows
    assert "outside the budget" in row.refusal and math.isinf(row.gap)


@dataclass(frozen=True)
class Liar(Solver):
    """Says of the first keep-set at hand that it is the best: `select` alone cannot know better."""

    def solve(self, problem: Problem, *, deadline: float, rng: np.random.Generator) -> Proposal:
        kept = problem.space.join({"block.0": [0]})
        return Proposal(kept, problem.objective.value(kept), Status.OPTIMAL)


def test_a_false_optimum_is_refuted_by_a_better_answer() -> None:
    found = compare(small_problem(), {"liar": Liar(), "exact": BruteForce()})
    liar, exact = found.rows
    assert found.refuted == (liar,) and found.bound("problem") == exact.value
    assert found.gap(liar) > 0 and found.gap(exact) == 0


def test_limits_and_names() -> None:
    found = compare(small_problem(), {"a": Greedy(), "b": TopK()}, limits=(2, 4))
    assert [r.limit for r in found.rows] == [2, 2, 4, 4]
    assert [r.solver for r in found.rows] == ["a", "b", "a", "b"]
    assert found.rows[0].value < found.rows[2].value
    with pytest.raises(ValueError, match="print alike"):
        compare(small_problem(), [Greedy(), Greedy()])
    with pytest.raises(ValueError, match="at least one"):
        compare({}, [Greedy()])
    with pytest.raises(ValueError, match="no table to vary"):
        per_block = Budget.heads_per_block(SPACE, 2)
        compare(Problem(Modular(np.ones(8)), per_block), [Greedy()], limits=(1,))


def test_finished_runs_are_not_run_again(tmp_path: Path) -> None:
    log, runs = tmp_path / "log", tmp_path / "runs.jsonl"
    problem = small_problem()
    solvers = {"counted": Counted(str(log)), "greedy": Greedy()}
    first = compare(problem, solvers, seeds=(0, 1), resume=runs)
    assert log.read_text().count("run") == 2
    again = compare(problem, solvers, seeds=(0, 1, 2), resume=runs)  # after use: caches are filled
    assert log.read_text().count("run") == 3
    assert [r for r in again.rows if r.seed < 2] == list(first.rows)
    assert compare(small_problem(1), solvers, resume=runs).rows[0] != first.rows[0]
    assert log.read_text().count("run") == 4
    runs.write_text(runs.read_text()[:-20])  # interrupted while writing: that run is run again
    compare(small_problem(1), solvers, resume=runs)
    assert log.read_text().count("run") == 4
    runs.write_text("nonsense\n")
    with pytest.raises(RecordError, match="line 1 of"):
        compare(problem, solvers, resume=runs)


def test_workers_give_the_same_rows() -> None:
    def plain(found: Comparison) -> list[tuple[object, ...]]:
        return [(r.solver, r.seed, r.value, r.bound, r.counts) for r in found.rows]

    solvers = [Greedy(), LazyGreedy(), RandomSubset()]
    alone = compare(small_problem(), solvers, seeds=(0, 1))
    assert plain(compare(small_problem(), solvers, seeds=(0, 1), jobs=2)) == plain(alone)


@pytest.mark.filterwarnings("ignore")  # of the cluster, about ports and its own shutdown
def test_a_dask_cluster_gives_the_same_rows() -> None:
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    )
    with cluster, distributed.Client(cluster), joblib.parallel_config(backend="dask"):
        spread = compare(small_problem(), [Greedy(), RandomSubset()], seeds=(0, 1), jobs=-1)
    alone = compare(small_problem(), [Greedy(), RandomSubset()], seeds=(0, 1))
    assert [(r.solver, r.seed, r.value) for r in spread.rows] == [
        (r.solver, r.seed, r.value) for r in alone.rows
    ]


def test_a_comparison_survives_a_round_trip_and_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = compare(small_problem(), [Greedy(), BruteForce(), DynamicProgram()], limits=(2, 3, 4))
    found.save(tmp_path / "comparison.json")
    again = Comparison.load(tmp_path / "comparison.json")
    assert [r.to_json() for r in again.rows] == [r.to_json() for r in found.rows]
    plot_gaps(again, tmp_path / "gaps.png")
    plot_values(again, tmp_path / "values.svg")
    assert (tmp_path / "gaps.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "values.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize("solver", [LazyGreedy(), RandomSubset(), BruteForce()], ids=repr)
def test_a_frontier_rises(solver: Solver, tmp_path: Path) -> None:
    found = frontier(small_problem(), solver, [5, 1, 3, 3])
    assert found.limits.tolist() == [1, 3, 5] and found.table == "units"
    assert np.all(np.diff(found.values) >= 0) and np.all(found.values <= found.bounds)
    assert np.all(found.costs <= found.limits)
    found.save(tmp_path / "frontier.json")
    again = Frontier.load(tmp_path / "frontier.json")
    assert np.array_equal(again.values, found.values) and len(again) == 3
    assert any(found.knee() is selection for selection in found)


def test_an_even_frontier_rises_and_stays_even() -> None:
    """Where the solver's answer to a larger limit is worse, that to the smaller one counts."""
    space = HeadSpace.uniform(3, 4)
    budget = Budget(space, even=True) & Budget.heads(space, 12)
    objective = Modular(np.random.default_rng(1).normal(size=space.n))
    found = frontier(Problem(objective, budget), RandomSubset(), [3, 4, 6, 8, 9])
    values = [selection.value for selection in found.selections]
    assert values == sorted(values) and len(set(values)) > 1
    assert all(len(set(selection.counts.tolist())) == 1 for selection in found.selections)


def test_frontier_refusals() -> None:
    with pytest.raises(ValueError, match="`limits` is empty"):
        frontier(small_problem(), Greedy(), [])
    with pytest.raises(ValueError, match=r"`table` must be one of \['units'\]"):
        frontier(small_problem(), Greedy(), [1], table="latency")
    tight = Problem(Modular(np.ones(8)), Budget.heads(SPACE, 4, minimum=1))
    with pytest.raises(BudgetError, match="smallest reachable is 2"):
        frontier(tight, Greedy(), [1, 3])


def test_knee_of_known_curves() -> None:
    x = np.arange(11)
    assert knee(x, np.minimum(x, 4)) == 4
    assert knee(x, x) == 10  # never above the diagonal
    assert knee(x[::-1], np.minimum(x, 4)[::-1]) == 4
    smooth = 1 - np.exp(-x / 2)
    assert 2 <= knee(x, smooth) <= 4
    assert knee(x, np.minimum(x, 4), degree=2) != knee(x, np.minimum(x, 4), degree=8)


@given(
    slope=st.floats(0.1, 10),
    bend=st.floats(0.05, 0.95),
    start=st.integers(0, 9),
    size=st.integers(4, 60),
)
def test_the_knee_of_a_parabola_is_the_middle(
    slope: float, bend: float, start: int, size: int
) -> None:
    """Whatever the data: a rising concave curve of degree 2 is farthest above its chord there."""
    x = np.arange(start, start + 2 * size + 1)
    across = (x - start) / (2 * size)
    assert knee(x, slope * (across - bend * across**2 / 2), degree=2) == start + size


def test_quality_that_was_measured_decides() -> None:
    found = frontier(small_problem(), LazyGreedy(), [1, 2, 3, 4, 5])
    quality = [0.0, 0.2, 0.9, 0.91, 0.92]
    assert found.knee(quality) is found.selections[2]
    for loss, place in ((0, 4), (0.015, 3), (0.02, 2), (0.5, 2), (0.8, 1), (9, 0)):
        assert found.cheapest_within(loss + 1e-9, quality) is found.selections[place]
    assert found.cheapest_within(0, [0.2, 0.9, 0.3, 0.9, 0.1]) is found.selections[1]
    least = found.cheapest_within(0.5 * found.values.max())
    assert least.value >= 0.5 * found.values.max()
    assert all(s.value < 0.5 * found.values.max() for s in found if s.kept.sum() < least.kept.sum())


@pytest.mark.parametrize("loss", [-0.1, math.nan, math.inf])
def test_losses_and_qualities_that_are_refused(loss: float) -> None:
    found = frontier(small_problem(), LazyGreedy(), [1, 2, 3])
    with pytest.raises(ValueError, match="`loss` must be a finite number"):
        found.cheapest_within(loss)
    with pytest.raises(ValueError, match=r"`measured` must be 3 finite numbers.*shape \[2\]"):
        found.knee([1, 2])
    with pytest.raises(ValueError, match="1 not finite"):
        found.cheapest_within(0.1, [1, loss * math.inf, 2])


@pytest.mark.parametrize(
    ("x", "y", "degree", "words"),
    [
        ([0, 1], [0, 1], None, "at least 3"),
        ([0, 1, 2], [0, 1], None, "same length"),
        ([0, 1, math.nan], [0, 1, 2], None, "finite"),
        ([0, 1, 2], [0, 1, 2], 3, "`degree` must lie in 1..2"),
    ],
)
def test_knee_refusals(x: list[float], y: list[float], degree: int | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        knee(x, y, degree=degree)
