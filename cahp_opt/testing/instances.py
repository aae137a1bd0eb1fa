"""Random small problems of every kind: makers of objectives and budgets, and units to make them over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from cahp_opt.arrays import Floats
from cahp_opt.costs.budget import Budget
from cahp_opt.costs.latency_table import LatencyTable
from cahp_opt.objective import Objective
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
)
from cahp_opt.problem import Problem
from cahp_opt.space import Block, HeadSpace, Unit
from cahp_opt.stats.column_form import ColumnForm

ObjectiveMaker: TypeAlias = Callable[[np.random.Generator, HeadSpace], Objective]
"""Makes a random objective over these units."""
BudgetMaker: TypeAlias = Callable[[np.random.Generator, HeadSpace], Budget]
"""Makes a random budget over these units."""

Rng = np.random.Generator

SPACES: tuple[HeadSpace, ...] = (
    HeadSpace((Block("only", 1),)),
    HeadSpace((Block("only", 6),)),
    HeadSpace.uniform(2, 4),
    HeadSpace.uniform(4, 2),
    HeadSpace((Block("a", 1), Block("b", 4, Unit.NEURON_GROUP, tuple(range(8))), Block("c", 3))),
)
"""At most eight units, so that every keep-set can be tried; blocks of one unit and unequal ones, and a
feed-forward block among attention."""


def make_problem(
    objective: ObjectiveMaker, budget: BudgetMaker, space: HeadSpace, seed: int
) -> Problem:
    """The random problem of this seed.

    Args:
        objective: makes the objective; one of :data:`OBJECTIVES`, or your own.
        budget: makes the budget; one of :data:`BUDGETS`, or your own.
        space: the units that both are over.
        seed: the only source of randomness.
    """
    rng = np.random.default_rng(seed)
    return Problem(objective(rng, space), budget(rng, space))


# --- objectives -----------------------------------------------------------------------------------


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


def _facility_location(rng: Rng, space: HeadSpace) -> Objective:
    return FacilityLocation(rng.random((space.n + 1, space.n)), rng.random(space.n + 1))


def _sparse_facility_location(rng: Rng, space: HeadSpace) -> Objective:
    starts = np.concatenate([[0], np.cumsum(rng.integers(0, space.n + 1, space.n + 1))])
    units = [rng.permutation(space.n)[:count] for count in np.diff(starts)]
    numbers: Floats = rng.random(int(starts[-1]))
    weights = rng.random(space.n + 1)
    return SparseFacilityLocation(starts, np.concatenate(units), numbers, space.n, weights)


def _explained_variance(rng: Rng, space: HeadSpace) -> Objective:
    covariance: list[Floats] = []
    readout: list[ColumnForm] = []
    for block in space.blocks:
        d = 2 * block.units
        mixed = rng.normal(size=(3 * d, d)) @ rng.normal(size=(d, d))
        covariance.append(mixed.T @ mixed / (3 * d))
        rows = d + 1 if block.unit.of_attention else block.units
        readout.append(ColumnForm.small(rng.normal(size=(rows, d))))
    return ExplainedVariance(covariance, readout, [block.units for block in space.blocks])


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


# To add an objective, import it above and add a line with its maker here.
OBJECTIVES: Mapping[str, ObjectiveMaker] = {
    "modular": lambda rng, space: Modular(rng.pareto(1.5, space.n)),
    "modular with ties": lambda rng, space: Modular(
        rng.integers(-1, 3, space.n).astype(np.float64)
    ),
    "damage": _damage,
    "quadratic": _quadratic,
    "redundancy": _redundancy,
    "quadratic inside blocks": _inside_blocks,
    "complementarity": lambda rng, space: Complementarity(
        rng.normal(size=(space.n, 3)), rng.pareto(2, space.n)
    ),
    "complementarity with ties": lambda rng, space: Complementarity(
        rng.integers(0, 2, (space.n, 2)), rng.integers(0, 2, space.n)
    ),
    "facility location": _facility_location,
    "facility location with ties": lambda rng, space: FacilityLocation(
        rng.integers(0, 3, (space.n, space.n))
    ),
    "explained variance": _explained_variance,
    "mixture": lambda rng, space: (
        0.7 * _facility_location(rng, space) + 0.3 * Modular(rng.pareto(1.5, space.n))
    ),
    "scaled": lambda rng, space: 2 * _explained_variance(rng, space),
    "sparse facility location": _sparse_facility_location,
    "saturated coverage": _saturated_coverage,
    "graph cut": _graph_cut,
    "feature based": _feature_based,
    "log det": _log_det,
}
"""Makers of every objective of the library, some of them with ties or with structure, by name."""

# --- budgets --------------------------------------------------------------------------------------


def _table(space: HeadSpace, cost: Callable[[int], Floats], rng: Rng) -> LatencyTable:
    return LatencyTable(space, float(rng.random()), tuple(cost(int(u)) for u in space.units))


def _within(table: LatencyTable, rng: Rng) -> Budget:
    low, high = table.floor, max(table.dense, table.floor)
    return Budget.latency(table, seconds=low + rng.random() * (high - low) + 1e-9)


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


def _heads(space: HeadSpace, limit: int) -> Budget:
    """At most so many heads; all units, where all are neurons."""
    return Budget.heads(space, limit) if space.of_attention.any() else _units(space, limit)


def _per_block(rng: Rng, space: HeadSpace) -> Budget:
    per_block = Budget.heads_per_block(space, rng.integers(1, space.units + 1), minimum=1)
    return per_block & _heads(space, int(rng.integers(len(space.blocks), space.n + 1)))


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


def _units(space: HeadSpace, limit: int) -> Budget:
    costs = [range(block.units + 1) for block in space.blocks]
    return Budget.table(space, costs, limit, name="units")


def _both_kinds(rng: Rng, space: HeadSpace) -> Budget:
    heads = _heads(space, int(rng.integers(0, space.n + 1)))
    share = float(rng.uniform(0.05, 1))
    return heads if space.of_attention.all() else heads & Budget.neurons(space, share)


def _even(rng: Rng, space: HeadSpace) -> Budget:
    return Budget(space, even=True) & _heads(space, int(rng.integers(0, space.n + 1)))


BUDGETS: Mapping[str, BudgetMaker] = {
    "heads": lambda rng, space: _heads(space, int(rng.integers(0, space.n + 1))),
    "heads and neurons": _both_kinds,
    "nothing fits": lambda rng, space: _units(space, 0),
    "everything fits": lambda rng, space: _units(space, space.n),
    "heads per block": _per_block,
    "linear latency": _linear_latency,
    "staircase": _staircase,
    "not monotone": _not_monotone,
    "two tables": lambda rng, space: _staircase(rng, space) & _linear_latency(rng, space),
    "latency per block": _latency_per_block,
    "multiples": _multiples,
    "launch bound": _launch_bound,
    "even": _even,
}
"""Makers of every kind of budget, by name."""
