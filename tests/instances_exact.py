"""Instances of the size and kind that exact solvers are for (recipe: heavy tails, staircases)."""

from __future__ import annotations

import numpy as np

from cahp_opt import Budget, HeadSpace, Problem
from cahp_opt.objectives import FacilityLocation, Quadratic


def half_latency(rng: np.random.Generator, space: HeadSpace) -> Budget:
    """Integer staircases with a base for the first head and a step every 2 to 4; half of the full."""
    costs = []
    for units in space.units:
        width, base, step = rng.integers(2, 5), rng.integers(3, 9), rng.integers(5, 15)
        k = np.arange(units + 1)
        costs.append(np.where(k > 0, base + step * np.ceil(k / width), 0.0))
    full, floor = float(sum(c[-1] for c in costs)), float(sum(c[1] for c in costs))
    return Budget.table(space, costs, limit=max(full / 2, 1.3 * floor), minimum=1)


def damage_problem(seed: int, blocks: int = 12, units: int = 12) -> Problem:
    """Dense damage: low rank across layers, correlated blocks, a diagonal, heavy-tailed saliences."""
    rng = np.random.default_rng(seed)
    space = HeadSpace.uniform(blocks, units)
    salience = rng.pareto(1.5, space.n) + 0.05
    across = rng.normal(size=(space.n, max(4, space.n // 12)))
    hessian = 0.5 * across @ across.T / across.shape[1]
    for where in space.slices:
        within = rng.normal(size=(units, 3))
        hessian[where, where] += 0.7 * within @ within.T / 3
    root = np.sqrt(salience)
    hessian = root[:, None] * hessian * root + np.diag(0.3 * salience)
    hessian *= space.n / np.trace(hessian)
    return Problem(Quadratic.damage_avoided(hessian), half_latency(rng, space))


def coverage_problem(seed: int, blocks: int = 12, units: int = 12) -> Problem:
    """Facility location over points that cluster by block."""
    rng = np.random.default_rng(seed)
    space = HeadSpace.uniform(blocks, units)
    points = rng.normal(size=(space.n, 8)) + 0.7 * np.repeat(rng.normal(size=(blocks, 8)), units, 0)
    squares = ((points[:, None] - points[None]) ** 2).sum(axis=-1)
    similarity = np.exp(-1.5 * squares / np.median(squares))
    return Problem(
        FacilityLocation(similarity, rng.pareto(1.5, space.n) + 0.1), half_latency(rng, space)
    )


def redundancy_problem(seed: int, blocks: int = 12, units: int = 12) -> Problem:
    """Salience less weak similarity: pair terms of one sign."""
    rng = np.random.default_rng(seed)
    space = HeadSpace.uniform(blocks, units)
    points = rng.normal(size=(space.n, 8))
    squares = ((points[:, None] - points[None]) ** 2).sum(axis=-1)
    similarity = np.exp(-3 * squares / np.median(squares))
    np.fill_diagonal(similarity, 0.0)
    return Problem(
        Quadratic(rng.pareto(1.5, space.n), -0.05 * similarity), half_latency(rng, space)
    )
