"""What is particular to each objective; the laws over all of them are in test_laws.py."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cahp_opt import Budget, HeadSpace, Objective, Problem, select
from cahp_opt.objectives import (
    Concave,
    Curvature,
    FacilityLocation,
    FeatureBased,
    GraphCut,
    LogDet,
    Modular,
    Quadratic,
    SaturatedCoverage,
    SparseFacilityLocation,
)
from cahp_opt.objectives.similarities import is_symmetric
from cahp_opt.solvers import Greedy, LazyGreedy
from cahp_opt.space import Block, Unit
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.stats.moments import Moments
from cahp_opt.stats.totals import Total

SMALL = np.array([[4.0, 2.0, 0.0], [2.0, 3.0, 1.0], [0.0, 1.0, 2.0]])


def keep(*units: int, n: int = 3) -> np.ndarray:
    kept = np.zeros(n, dtype=np.bool_)
    kept[list(units)] = True
    return kept


def clusters(n: int, d: int = 4, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(8, d))[rng.integers(8, size=n)] + 0.3 * rng.normal(size=(n, d))


def similarity(n: int, seed: int = 0) -> np.ndarray:
    points = clusters(n, seed=seed)
    return np.asarray(np.exp(-np.sum((points[:, None] - points[None]) ** 2, axis=2)))


@pytest.mark.parametrize(
    ("objective", "kept", "value"),
    [
        (FacilityLocation(SMALL), keep(1), 2 + 3 + 1),
        (FacilityLocation(SMALL, [1, 0, 2]), keep(0, 2), 4 + 0 + 2 * 2),
        (SaturatedCoverage(SMALL, 0.5), keep(0), 3 + 2 + 0),
        (SaturatedCoverage(SMALL, 0.5), keep(0, 1), 3 + 3 + 1),
        (GraphCut(SMALL, 1.0), keep(0, 1), (6 + 6) - (4 + 2 + 2 + 3)),
        (GraphCut(SMALL, 0.5), keep(2), 3 - 0.5 * 2),
        (FeatureBased(SMALL), keep(0, 1), math.sqrt(6) + math.sqrt(5) + 1),
        (FeatureBased(SMALL, Concave.LOG1P), keep(2), math.log(2) + math.log(3)),
        (FeatureBased(SMALL, Concave.RATIO), keep(2), 1 / 2 + 2 / 3),
        (FeatureBased(SMALL, Concave.EXPONENTIAL), keep(2), 2 - math.exp(-1) - math.exp(-2)),
        (LogDet(SMALL, 0.5), keep(0, 1), math.log((1 + 8) * (1 + 6) - 4 * 4)),
        (LogDet.determinantal(SMALL, 1.0), keep(0, 1), math.log(5 * 4 - 2 * 2)),
        (Quadratic.redundancy([5, 4, 3], SMALL, 0.5), keep(0, 1), 5 + 4 - 0.5 * 2 * 2),
        (SparseFacilityLocation([0, 2, 2, 3], [0, 2, 1], [5, 7, 1], 3), keep(0, 1), 5 + 0 + 1),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, Objective) else "",
)
def test_values_by_hand(objective: Objective, kept: np.ndarray, value: float) -> None:
    assert objective.value(kept) == pytest.approx(value, rel=1e-12)
    assert objective.tracker(kept).value == pytest.approx(value, rel=1e-12)
    assert objective.value(keep()) == 0


def test_monotone_only_where_it_holds() -> None:
    assert GraphCut(SMALL, 0.5).monotone and not GraphCut(SMALL, 1.0).monotone
    assert LogDet(SMALL, 1e-3).monotone and LogDet.determinantal(SMALL, 1.0).monotone
    assert not LogDet.determinantal(SMALL / 10, 1e-3).monotone


def test_graph_cut_without_redundancy_is_a_sum() -> None:
    weights = GraphCut(SMALL, 0).linear()
    assert weights is not None
    np.testing.assert_allclose(weights, SMALL.sum(axis=1))
    assert GraphCut(SMALL, 0.5).linear() is None


def test_sparse_with_every_neighbour_is_dense() -> None:
    matrix = similarity(40)
    dense, sparse = FacilityLocation(matrix), SparseFacilityLocation.strongest(matrix, 40)
    problem = [Problem(f, Budget.heads(HeadSpace.uniform(10, 4), 9)) for f in (dense, sparse)]
    a, b = (select(p, LazyGreedy()) for p in problem)
    assert np.array_equal(a.kept, b.kept)
    assert a.value == pytest.approx(b.value, rel=1e-12)
    assert a.bound == pytest.approx(b.bound, rel=1e-9)
    near = SparseFacilityLocation.nearest(clusters(40), 40, width=1.0)
    kept = a.kept
    assert near.value(kept) == pytest.approx(dense.value(kept), rel=1e-5)


def test_the_strongest_similarities_are_kept() -> None:
    matrix = similarity(30)
    sparse = SparseFacilityLocation.strongest(matrix, 5)
    form = sparse.coverage()
    assert form is not None
    rank = np.argsort(np.argsort(-matrix, axis=1), axis=1)
    np.testing.assert_array_equal(form.similarity, np.where(rank < 5, matrix, 0))


@pytest.mark.parametrize(
    "make", [FacilityLocation, SaturatedCoverage, GraphCut, FeatureBased], ids=lambda c: c.__name__
)
def test_single_precision_agrees_and_is_not_copied(make: type) -> None:
    matrix = similarity(60).astype(np.float32)
    matrix = np.maximum(matrix, matrix.T)
    single, double = make(matrix), make(matrix.astype(np.float64))
    held = single.features if make is FeatureBased else single.similarity
    assert np.shares_memory(held, matrix) and not held.flags.writeable
    assert matrix.flags.writeable, "the caller's array stays its own"
    rng = np.random.default_rng(0)
    kept = rng.random(60) < 0.3
    assert single.value(kept) == pytest.approx(double.value(kept), rel=1e-5)
    np.testing.assert_allclose(single.gains(kept), double.gains(kept), rtol=1e-5, atol=1e-6)
    budget = Budget.heads(HeadSpace.uniform(15, 4), 20)
    a, b = (select(Problem(f, budget), LazyGreedy()) for f in (single, double))
    assert a.value == pytest.approx(b.value, rel=1e-5)


def test_a_symmetric_matrix_needs_no_transposed_copy() -> None:
    matrix = similarity(600).astype(np.float32)
    matrix = np.maximum(matrix, matrix.T)
    assert is_symmetric(matrix)
    assert np.shares_memory(FacilityLocation(matrix).columns, matrix)
    matrix = matrix.copy()
    matrix[599, 3] += 1
    assert not is_symmetric(matrix)
    assert np.array_equal(FacilityLocation(matrix).columns, matrix.T)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_lazy_equals_plain_greedy_at_a_size_where_lists_shorten(dtype: type) -> None:
    """Large enough that the tracker lists rows and the solver redraws its list."""
    matrix: np.ndarray = similarity(400).astype(dtype)
    for weights in (None, np.random.default_rng(1).random(400)):
        problem = Problem(
            FacilityLocation(matrix, weights), Budget.heads(HeadSpace.uniform(50, 8), 120)
        )
        plain, lazy = select(problem, Greedy()), select(problem, LazyGreedy())
        assert np.array_equal(plain.kept, lazy.kept)
        assert lazy.stats["evaluations"] < 0.2 * plain.stats["evaluations"]  # type: ignore[operator]


def test_removals_after_many_additions() -> None:
    """The second best is found at the first removal, and lists of rows start anew."""
    objective = FacilityLocation(similarity(200))
    tracker = objective.tracker(np.zeros(200, dtype=np.bool_))
    rng = np.random.default_rng(2)
    for unit in rng.permutation(200)[:60]:
        tracker.gains()
        tracker.add(int(unit))
    for unit in np.flatnonzero(tracker.kept)[::3]:
        tracker.remove(int(unit))
        assert tracker.value == pytest.approx(objective.value(tracker.kept), rel=1e-12)
    for unit in np.flatnonzero(~tracker.kept)[::5]:
        tracker.add(int(unit))
    np.testing.assert_allclose(tracker.gains(), objective.gains(tracker.kept), atol=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_gains_from_listed_rows_are_those_of_whole_columns(weighted: bool) -> None:
    """Rows so many that lists are long, and are shortened as units enter."""
    rng = np.random.default_rng(0)
    matrix = np.float32(rng.random((2_000, 60)) ** 12)
    objective = FacilityLocation(matrix, rng.random(2_000) if weighted else None)
    tracker = objective.tracker(np.zeros(60, dtype=np.bool_))
    for unit in rng.permutation(60)[:50]:
        tracker.add(int(unit))
        out = np.flatnonzero(~tracker.kept)
        fresh = objective.gains(tracker.kept)  # a new tracker has no lists
        np.testing.assert_allclose(tracker.gains(out), fresh[out], rtol=1e-12)


@pytest.mark.parametrize("solver", [Greedy(), LazyGreedy()])
def test_equal_units_under_a_limit_that_rounds(solver: Greedy | LazyGreedy) -> None:
    """0.1 is no binary fraction: whether the last unit fits is for exact sums to say."""
    space = HeadSpace.uniform(3, 4)
    costs = [0.1 * np.arange(5)] * 3
    objective = FacilityLocation(similarity(12))
    for units in range(13):
        selection = select(Problem(objective, Budget.table(space, costs, 0.1 * units)), solver)
        assert units - 1 <= selection.kept.sum() <= units


BAD = np.array([[1.0, np.nan], [0.0, 1.0]])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FacilityLocation(BAD), "`similarity` holds 1 values that are NaN"),
        (lambda: FacilityLocation(-SMALL), "`similarity` must be at least 0"),
        (lambda: FacilityLocation([1.0]), r"must have shape \[m, n\]"),
        (lambda: FacilityLocation(SMALL, [1, 2]), r"`weights` must have shape \[3\]"),
        (lambda: FacilityLocation(BAD.astype(np.float32)), "NaN"),
        (lambda: SaturatedCoverage(SMALL, 0), "`fill` must be above 0"),
        (lambda: SaturatedCoverage(-SMALL), "at least 0"),
        (lambda: GraphCut(SMALL[:2]), r"must have shape \[n, n\]"),
        (lambda: GraphCut(np.triu(SMALL)), "must be symmetric"),
        (lambda: GraphCut(SMALL, -1), "`redundancy` must be finite and at least 0"),
        (lambda: FeatureBased(BAD), "`features` holds 1"),
        (lambda: LogDet(SMALL[:2]), r"`kernel` must have shape \[n, n\]"),
        (lambda: LogDet(np.triu(SMALL)), "`kernel` must be symmetric"),
        (lambda: LogDet([[0.0, 1.0], [1.0, 0.0]]), "`kernel` must be positive semidefinite"),
        (lambda: LogDet(SMALL, 0), "`ridge` must be finite and above 0"),
        (lambda: Quadratic.redundancy([1, 1, 1], -SMALL), "at least 0"),
        (lambda: Quadratic.redundancy([1, 1, 1], SMALL, -1), "`weight`"),
        (lambda: SparseFacilityLocation([0, 2], [0, 0], [1, 1], 2), "lists a unit twice"),
        (lambda: SparseFacilityLocation([0, 1], [2], [1], 2), r"numbers in 0..n-1"),
        (lambda: SparseFacilityLocation([0, 3], [0, 1], [1, 1], 2), "`starts` must rise"),
        (lambda: SparseFacilityLocation([0, 1], [0], [1, 2], 2), "lists of the same length"),
        (lambda: SparseFacilityLocation([0, 1], [0], [np.inf], 2), "NaN or infinite"),
        (lambda: SparseFacilityLocation.nearest(SMALL, 4), "`neighbours` must be a whole number"),
        (lambda: SparseFacilityLocation.nearest(SMALL, 2, width=0), "`width`"),
        (lambda: SparseFacilityLocation.nearest(BAD, 1), "`points` holds 1"),
    ],
)
def test_bad_arguments_are_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        make()  # type: ignore[operator]
    assert str(refusal.value).endswith(".")


def test_a_concave_function_must_be_a_member() -> None:
    with pytest.raises(TypeError, match="`concave` must be one of"):
        FeatureBased(SMALL, "sqrt")  # type: ignore[arg-type]


SPARSE = """
import sys
import numpy as np
from cahp_opt import Budget, HeadSpace, Problem
from cahp_opt.objectives import SparseFacilityLocation
from cahp_opt.solvers import LazyGreedy
rng = np.random.default_rng(0)
n = 16 * int(sys.argv[1])
points = rng.normal(size=(200, 16))[rng.integers(200, size=n)] + rng.normal(size=(n, 16))
objective = SparseFacilityLocation.nearest(points, 32)
problem = Problem(objective, Budget.heads(HeadSpace.uniform(n // 16, 16), n // 5))
answer = LazyGreedy().solve(problem, deadline=float("inf"), rng=rng)
assert answer.kept.sum() == n // 5
# The peak of this program alone: `ru_maxrss` begins with that of the process it was started from.
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(1024 * int(status["VmHWM"].split()[0]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read as Linux counts it")
@pytest.mark.parametrize(
    ("blocks", "most"),
    [
        pytest.param(450, 2**28, id="7 200 units in 256 MB"),  # a dense matrix of them takes 415
        pytest.param(1250, 2**30, id="20 000 units in a gigabyte", marks=pytest.mark.slow),
    ],
)
def test_sparse_solves_thousands_of_units_in_little_memory(blocks: int, most: int) -> None:
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", SPARSE, str(blocks)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert int(done.stdout) < most


def curved_stats() -> HeadStats:
    """Two blocks of 2 and 1 units; moments in which every number can be followed by hand."""
    rng = np.random.default_rng(0)
    space = HeadSpace((Block("a", 2), Block("b", 1)))
    z = [rng.normal(size=(30, 4)), rng.normal(size=(30, 2)) + 5]
    w = [rng.normal(size=(3, 4)), rng.normal(size=(3, 2))]
    about = [x - x.mean(axis=0) for x in z]
    moments = tuple(
        Moments(x.sum(axis=0), a.T @ a, m.T @ m, 30) for x, a, m in zip(z, about, w, strict=True)
    )
    gauss_newton = {rho: Total(10 * rho * SMALL, 10) for rho in (0.25, 0.5, 1.0)}
    fisher = {1.0: Total(5 * SMALL, 10)}
    salience = Total(np.ones(3), 10)
    return HeadStats(space, "", 10, 30, salience, gauss_newton, moments=moments, fisher=fisher)


def test_a_density_between_two_that_were_measured_is_interpolated() -> None:
    stats = curved_stats()
    for density, scale in ((None, 0.25), (0.25, 0.25), (0.3, 0.3), (0.8, 0.8), (1, 1)):
        np.testing.assert_allclose(Curvature.GAUSS_NEWTON.of(stats, density), scale * SMALL)
        quadratic = Quadratic.from_stats(stats, density, shrinkage=0)
        np.testing.assert_allclose(quadratic.pairwise, -0.5 * scale * SMALL)
        weights = Modular.from_curvature(stats, density).weights
        np.testing.assert_allclose(weights, [2 * scale, 1.5 * scale, scale])
    fisher = Quadratic.from_stats(stats, matrix=Curvature.FISHER, shrinkage=0)
    assert fisher.value(keep(0, 1, 2)) == pytest.approx(0.25 * SMALL.sum())
    np.testing.assert_allclose(
        Modular.from_curvature(stats, 1.0, Curvature.FISHER).weights, [1, 0.75, 0.5]
    )


def test_products_of_different_gates_are_shrunk() -> None:
    stats = curved_stats()
    for given, left in (({}, 0.5), ({"shrinkage": 0.2}, 0.8), ({"shrinkage": 1}, 0)):
        pairwise = Quadratic.from_stats(stats, 1.0, **given).pairwise
        np.testing.assert_allclose(np.diagonal(pairwise), -0.5 * np.diagonal(SMALL))
        np.testing.assert_allclose(pairwise[0, 1], -0.5 * left * SMALL[0, 1])
    with pytest.raises(ValueError, match=r"`shrinkage` must be a number from 0 to 1, got -1"):
        Quadratic.from_stats(stats, shrinkage=-1)


def test_beside_neurons_the_usual_density_is_the_largest() -> None:
    stats = curved_stats()
    blocks = stats.space.blocks
    mixed = replace(
        stats.without("moments"),
        space=HeadSpace((blocks[0], blocks[1]._replace(unit=Unit.NEURON_GROUP))),
    )
    np.testing.assert_allclose(Curvature.GAUSS_NEWTON.of(mixed), SMALL)


def test_a_density_out_of_reach_is_refused() -> None:
    stats = curved_stats()
    with pytest.raises(ValueError, match=r"`density` 0\.2 was not measured.*\[0\.25, 0\.5, 1\.0\]"):
        Quadratic.from_stats(stats, 0.2)
    with pytest.raises(ValueError, match=r"`density` 0\.5 was not measured.*\[1\.0\]"):
        Modular.from_curvature(stats, 0.5, Curvature.FISHER)
    bare = HeadStats(stats.space, "", 0, 0, stats.salience)
    with pytest.raises(ValueError, match="no Fisher matrix; calibrate with `fisher=True`"):
        Quadratic.from_stats(bare, matrix=Curvature.FISHER)
    with pytest.raises(ValueError, match="no Gauss-Newton matrix; calibrate with `densities`"):
        Modular.from_curvature(bare)
    with pytest.raises(ValueError, match="no moments.*cahp calibrate"):
        Modular.from_energy(bare)


def test_energy_is_the_variance_of_what_a_unit_writes() -> None:
    rng = np.random.default_rng(0)
    z = [rng.normal(size=(30, 4)), rng.normal(size=(30, 2)) + 5]
    w = [rng.normal(size=(3, 4)), rng.normal(size=(3, 2))]
    written = [z[0][:, :2] @ w[0][:, :2].T, z[0][:, 2:] @ w[0][:, 2:].T, z[1] @ w[1].T]
    expected = [float(x.var(axis=0).sum()) for x in written]
    np.testing.assert_allclose(Modular.from_energy(curved_stats()).weights, expected, rtol=1e-9)
