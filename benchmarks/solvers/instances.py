"""Instances for comparing solvers: heavy-tailed saliences and matrices, under latency staircases."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from cahp_opt import Budget, HeadSpace, LatencyTable, Objective, Problem
from cahp_opt.arrays import Floats
from cahp_opt.objectives import FacilityLocation, Modular, Quadratic

Rng = np.random.Generator


def staircase(space: HeadSpace, rng: Rng) -> LatencyTable:
    """Integer latencies per block: a base cost for the first head, then a step every 2 to 4 heads."""
    seconds: list[Floats] = []
    for units in space.units:
        width, base, step = (int(rng.integers(*r)) for r in ((2, 5), (5, 16), (10, 31)))
        stairs = np.ceil(np.arange(units + 1) / width)
        seconds.append(np.where(stairs > 0, base + step * stairs, 0.0))
    return LatencyTable(space, 0.0, tuple(seconds))


def half_latency(space: HeadSpace, rng: Rng) -> Budget:
    """Half of the full latency, and at least one head per block."""
    table = staircase(space, rng)
    return Budget.latency(table, 0.5, minimum=1)


def modular(space: HeadSpace, rng: Rng) -> Objective:
    """Heavy-tailed saliences."""
    return Modular(rng.pareto(1.5, space.n))


def facility_location(space: HeadSpace, rng: Rng) -> Objective:
    """Units as points in clusters, similar where they are near; rows count by a heavy-tailed weight."""
    centres = rng.normal(size=(max(4, space.n // 6), 8))
    points = centres[rng.integers(len(centres), size=space.n)] + 0.6 * rng.normal(size=(space.n, 8))
    distance = np.sum((points[:, None] - points[None]) ** 2, axis=2)
    return FacilityLocation(np.exp(-distance / 8), rng.pareto(2, space.n) + 0.1)


def dense_hessian(space: HeadSpace, rng: Rng) -> Floats:
    """A positive semidefinite damage matrix: low rank and block-correlated parts with terms across
    blocks, and a heavy-tailed diagonal, as Fisher matrices have."""
    n = space.n
    scale = np.sqrt(rng.pareto(1.5, n) + 0.05)
    low = rng.normal(size=(n, max(2, n // 12)))
    hessian = 0.5 * low @ low.T / low.shape[1]
    for where in space.slices:
        inside = rng.normal(size=(where.stop - where.start, 3))
        hessian[where, where] += 0.5 * inside @ inside.T / 3
    hessian += np.diag(0.3 * (rng.pareto(2, n) + 0.05))
    scaled: Floats = scale[:, None] * hessian * scale[None, :]
    return scaled


def dense(space: HeadSpace, rng: Rng) -> Objective:
    """Damage avoided under a dense positive semidefinite matrix."""
    return Quadratic.damage_avoided(dense_hessian(space, rng))


def redundancy(space: HeadSpace, rng: Rng) -> Objective:
    """Salience minus a weak penalty for keeping similar units."""
    points = rng.normal(size=(space.n, 6))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    similarity = np.maximum(points @ points.T, 0.0)
    np.fill_diagonal(similarity, 0.0)
    return Quadratic(rng.pareto(1.5, space.n), -0.05 * similarity)


FAMILIES: Mapping[str, Callable[[HeadSpace, Rng], Objective]] = {
    "modular": modular,
    "facility location": facility_location,
    "dense": dense,
    "redundancy": redundancy,
}


def instance(family: str, units: int, seed: int, per_block: int = 12) -> Problem:
    """One random instance.

    Args:
        family: a key of :data:`FAMILIES`.
        units: units in all, a multiple of ``per_block``.
        seed: the only source of randomness.
        per_block: units per block.
    """
    rng = np.random.default_rng(seed)
    space = HeadSpace.uniform(units // per_block, per_block)
    return Problem(FAMILIES[family](space, rng), half_latency(space, rng))


def large_instance(family: str, units: int, seed: int, per_block: int) -> Problem:
    """One random instance of thousands of units that cost the same each; a quarter may stay.

    Args:
        family: ``"modular"``, or ``"facility location"`` on a float32 similarity.
        units: units in all, a multiple of ``per_block``.
        seed: the only source of randomness.
        per_block: units per block.
    """
    rng = np.random.default_rng(seed)
    space = HeadSpace.uniform(units // per_block, per_block)
    budget = Budget.heads(space, units // 4)
    if family == "modular":
        return Problem(modular(space, rng), budget)
    centres = rng.normal(size=(units // 100, 32))
    points = centres[rng.integers(len(centres), size=units)] + 0.5 * rng.normal(size=(units, 32))
    squares = np.sum(points**2, axis=1)
    similarity = np.empty((units, units), dtype=np.float32)
    for start in range(0, units, 512):  # by rows, so that one matrix is all the memory it takes
        some = slice(start, start + 512)
        distance = squares[some, None] + squares - 2 * points[some] @ points.T
        similarity[some] = np.exp(-np.maximum(distance, 0) / 32)
    return Problem(FacilityLocation(similarity), budget)
