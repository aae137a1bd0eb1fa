"""The matrix that the laws run over: every solver, every objective, every kind of budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from cahp_opt import (
    Budget,
    HeadSpace,
    LatencyTable,
    Objective,
    Problem,
    Selection,
    Solver,
    Status,
    select,
)
from cahp_opt.arrays import Floats
from cahp_opt.objectives import (
    Complementarity,
    Concave,
    ExplainedVariance,
    FacilityLocation,
    FeatureBased,
    GraphCut,
    LogDet,
    Modular,
    Quadratic,
    SaturatedCoverage,
    SparseFacilityLocation,
    WeightedSum,
)
from cahp_opt.solvers import (
    CAHP,
    MIQP,
    Auto,
    BackwardGreedy,
    BestOf,
    BranchAndBound,
    BruteForce,
    DynamicProgram,
    Greedy,
    LazyGreedy,
    LocalSearch,
    RandomSubset,
    Relaxation,
    Spectral,
    StochasticGreedy,
    Tabu,
    TopK,
)
from cahp_opt.solvers.cahp import Reduction
from cahp_opt.solvers.spectral import Grouping

# Two lines to add a solver: import it above, list it here.
SOLVERS: tuple[Solver, ...] = (
    Auto(),
    BackwardGreedy(),
    BestOf((TopK(), BackwardGreedy(lookahead=1))),
    MIQP(),
    BranchAndBound(),
    BruteForce(),
    CAHP(),
    CAHP(degree=2, reduction=Reduction.NONE),
    CAHP(reduction=Reduction.NONE, clusters=5),
    DynamicProgram(),
    Greedy(),
    Greedy(lookahead=1),
    LazyGreedy(),
    LocalSearch(),
    LocalSearch(start=TopK(), reach=1),
    RandomSubset(),
    Spectral(),
    Spectral(grouping=Grouping.EMBEDDING),
    Spectral(grouping=Grouping.GREEDY_MODULARITY),
    StochasticGreedy(),
    Tabu(iterations=20, patience=5),
    Relaxation(),
    TopK(),
)

DEAR = (BranchAndBound, CAHP, MIQP, Relaxation, Spectral, Tabu)
"""Solvers that think longer about one problem than the others: a law tries fewer on them."""


def examples(solver: Solver) -> settings:
    """How many random instances a law tries on a solver: all of them in the thorough profile."""
    usual = settings().max_examples
    thorough = usual >= settings.get_profile("thorough").max_examples
    return settings(max_examples=usual if thorough or not isinstance(solver, DEAR) else usual // 3)


Rng = np.random.Generator


def _modular(rng: Rng, space: HeadSpace) -> Objective:
    return Modular(rng.pareto(1.5, space.n))


def _modular_with_ties(rng: Rng, space: HeadSpace) -> Objective:
    return Modular(rng.integers(-1, 3, space.n).astype(np.float64))


def _damage(rng: Rng, space: HeadSpace) -> Objective:
    factor = rng.normal(size=(space.n, space.n + 2))
    return Quadratic.damage_avoided(factor @ factor.T / space.n)


def _quadratic(rng: Rng, space: HeadSpace) -> Objective:
    pairs = rng.normal(size=(space.n, space.n))
    return Quadratic(rng.normal(size=space.n), pairs + pairs.T)


def _redundancy(rng: Rng, space: HeadSpace) -> Objective:
    pairs = rng.random((space.n, space.n))
    return Quadratic.redundancy(rng.pareto(2, space.n), pairs + pairs.T, 0.1)


def _inside_blocks(rng: Rng, space: HeadSpace) -> Objective:
    pairs = rng.normal(size=(space.n, space.n))
    same = space.block_of[:, None] == space.block_of[None, :]
    return Quadratic(rng.normal(size=space.n), np.where(same, pairs + pairs.T, 0))


def _complementarity(rng: Rng, space: HeadSpace) -> Objective:
    return Complementarity(rng.normal(size=(space.n, 3)), rng.pareto(2, space.n))


def _complementarity_with_ties(rng: Rng, space: HeadSpace) -> Objective:
    return Complementarity(rng.integers(0, 2, (space.n, 2)), rng.integers(0, 2, space.n))


def _facility_location(rng: Rng, space: HeadSpace) -> Objective:
    return FacilityLocation(rng.random((space.n + 1, space.n)), rng.random(space.n + 1))


def _facility_location_with_ties(rng: Rng, space: HeadSpace) -> Objective:
    return FacilityLocation(rng.integers(0, 3, (space.n, space.n)))


def _explained_variance(rng: Rng, space: HeadSpace) -> Objective:
    covariance: list[Floats] = []
    readout: list[Floats] = []
    for block in space.blocks:
        d = 2 * block.units
        mixed = rng.normal(size=(3 * d, d)) @ rng.normal(size=(d, d))
        covariance.append(mixed.T @ mixed / (3 * d))
        weight = rng.normal(size=(d + 1, d))
        readout.append(weight.T @ weight)
    return ExplainedVariance(covariance, readout, [block.units for block in space.blocks])


def _scaled(rng: Rng, space: HeadSpace) -> Objective:
    return 2 * _explained_variance(rng, space)


def _mixture(rng: Rng, space: HeadSpace) -> Objective:
    return 0.7 * _facility_location(rng, space) + 0.3 * _modular(rng, space)


def _sparse_facility_location(rng: Rng, space: HeadSpace) -> Objective:
    starts = np.concatenate([[0], np.cumsum(rng.integers(0, space.n + 1, space.n + 1))])
    units = [rng.permutation(space.n)[:count] for count in np.diff(starts)]
    numbers = rng.random(starts[-1])
    weights = rng.random(space.n + 1)
    return SparseFacilityLocation(starts, np.concatenate(units), numbers, space.n, weights)


def _saturated_coverage(rng: Rng, space: HeadSpace) -> Objective:
    similarity = rng.random((space.n + 1, space.n))
    return SaturatedCoverage(similarity, float(rng.uniform(0.05, 1)), rng.random(space.n + 1))


def _graph_cut(rng: Rng, space: HeadSpace) -> Objective:
    half = rng.random((space.n, space.n))
    return GraphCut(half + half.T, float(rng.choice([0, 0.3, 1, 2])))


def _feature_based(rng: Rng, space: HeadSpace) -> Objective:
    features = rng.random((space.n, 5)) * (rng.random((space.n, 5)) < 0.6)
    return FeatureBased(features, list(Concave)[rng.integers(4)], rng.random(5))


def _log_det(rng: Rng, space: HeadSpace) -> Objective:
    factor = rng.normal(size=(space.n, space.n // 2 + 1))
    kernel, ridge = factor @ factor.T, float(rng.choice([0.1, 1.5]))
    return LogDet(kernel, ridge) if rng.random() < 0.5 else LogDet.determinantal(kernel, ridge)


# Two lines to add an objective: its maker above, its name here.
OBJECTIVES: Mapping[str, Callable[[Rng, HeadSpace], Objective]] = {
    "modular": _modular,
    "modular with ties": _modular_with_ties,
    "damage": _damage,
    "quadratic": _quadratic,
    "redundancy": _redundancy,
    "quadratic inside blocks": _inside_blocks,
    "complementarity": _complementarity,
    "complementarity with ties": _complementarity_with_ties,
    "facility location": _facility_location,
    "facility location with ties": _facility_location_with_ties,
    "explained variance": _explained_variance,
    "mixture": _mixture,
    "scaled": _scaled,
    "sparse facility location": _sparse_facility_location,
    "saturated coverage": _saturated_coverage,
    "graph cut": _graph_cut,
    "feature based": _feature_based,
    "log det": _log_det,
}
OBJECTIVE_CLASSES = (
    Complementarity,
    ExplainedVariance,
    FacilityLocation,
    FeatureBased,
    GraphCut,
    LogDet,
    Modular,
    Quadratic,
    SaturatedCoverage,
    SparseFacilityLocation,
    WeightedSum,
)


def _table(space: HeadSpace, cost: Callable[[int], Floats], rng: Rng) -> LatencyTable:
    return LatencyTable(space, float(rng.random()), tuple(cost(int(u)) for u in space.units))


def _linear_latency(rng: Rng, space: HeadSpace) -> Budget:
    table = _table(space, lambda u: rng.random() * np.arange(u + 1.0) + rng.random(), rng)
    return _within(table, rng)


def _staircase(rng: Rng, space: HeadSpace) -> Budget:
    width = int(rng.integers(2, 4))

    def stairs(units: int) -> Floats:
        steps = np.ceil(np.arange(units + 1) / width)
        return np.where(steps > 0, 1 + rng.random() * steps, 0.0)

    return _within(_table(space, stairs, rng), rng)


def _not_monotone(rng: Rng, space: HeadSpace) -> Budget:
    return _within(_table(space, lambda u: rng.random(u + 1), rng), rng)


def _two_tables(rng: Rng, space: HeadSpace) -> Budget:
    first, second = _staircase(rng, space), _linear_latency(rng, space)
    return first & second


def _within(table: LatencyTable, rng: Rng) -> Budget:
    low, high = table.floor, max(table.dense, table.floor)
    return Budget.latency(table, seconds=low + rng.random() * (high - low) + 1e-9)


def _per_block(rng: Rng, space: HeadSpace) -> Budget:
    per_block = Budget.heads_per_block(space, rng.integers(1, space.units + 1), minimum=1)
    return per_block & Budget.heads(space, int(rng.integers(len(space.blocks), space.n + 1)))


def _latency_per_block(rng: Rng, space: HeadSpace) -> Budget:
    table = _table(space, lambda u: np.sort(rng.random(u + 1)), rng)
    return Budget.latency_per_block(table, float(rng.uniform(1, 1.2))) & _linear_latency(rng, space)


def _multiples(rng: Rng, space: HeadSpace) -> Budget:
    multiple_of = rng.integers(1, 4, len(space.blocks))
    return _linear_latency(rng, space) & Budget(space, multiple_of=multiple_of)


def _launch_bound(rng: Rng, space: HeadSpace) -> Budget:
    table = _table(space, lambda u: np.sort(rng.random(u + 1)), rng)
    least = table.floor + 0.7 * float(rng.random()) * (table.dense - table.floor)
    return _within(replace(table, least=least), rng)


BUDGETS: Mapping[str, Callable[[Rng, HeadSpace], Budget]] = {
    "heads": lambda rng, space: Budget.heads(space, int(rng.integers(0, space.n + 1))),
    "nothing fits": lambda rng, space: Budget.heads(space, 0),
    "everything fits": lambda rng, space: Budget.heads(space, space.n),
    "heads per block": _per_block,
    "linear latency": _linear_latency,
    "staircase": _staircase,
    "not monotone": _not_monotone,
    "two tables": _two_tables,
    "latency per block": _latency_per_block,
    "multiples": _multiples,
    "launch bound": _launch_bound,
}

SPACES: tuple[HeadSpace, ...] = (
    HeadSpace((("only", 1),)),  # type: ignore[arg-type]
    HeadSpace((("only", 6),)),  # type: ignore[arg-type]
    HeadSpace.uniform(2, 4),
    HeadSpace.uniform(4, 2),
    HeadSpace((("a", 1), ("b", 4), ("c", 3))),  # type: ignore[arg-type]
)


@cache  # every solver gets the same random problems
def make_problem(objective: str, budget: str, space: HeadSpace, seed: int) -> Problem:
    """The random instance of this objective and budget."""
    rng = np.random.default_rng(seed)
    return Problem(OBJECTIVES[objective](rng, space), BUDGETS[budget](rng, space))


@cache
def optimum(problem: Problem) -> Selection:
    """The best of all keep-sets, found once for all solvers that are compared with it."""
    best = select(problem, BruteForce())
    assert best.status is Status.OPTIMAL
    return best


def problems() -> st.SearchStrategy[Problem]:
    """Random small problems of every kind."""
    return st.builds(
        make_problem,
        st.sampled_from(sorted(OBJECTIVES)),
        st.sampled_from(sorted(BUDGETS)),
        st.sampled_from(SPACES),
        st.integers(0, 2**32 - 1),
    )
