"""The objectives that are judged beside those of the library: a name, what it reads, and how it is made of statistics.

To judge another one, add a line to :data:`FURTHER`: the study makes and judges only what is new.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from cahp_opt import HeadStats, Needs, Objective, Task
from cahp_opt.arrays import Floats
from cahp_opt.objectives import (
    Curvature,
    ExplainedVariance,
    FacilityLocation,
    LogDet,
    Modular,
    Quadratic,
)
from cahp_opt.runs.maximising import Maximising
from cahp_opt.runs.names import ObjectiveName
from cahp_opt.runs.studied_objectives import Studied


class Entry(NamedTuple):
    """How an objective is made.

    Args:
        needs: the statistics that it is made of.
        build: from the statistics and the share of units to keep.
        density: of the masks of its matrix; None for the share of units to keep.
    """

    needs: frozenset[str]
    build: Callable[[HeadStats, float], Objective]
    density: float | None = None


def reconstruction(stats: HeadStats, _: float) -> Objective:
    """Variance of the attention output that stays without any refit: all of it, less that of what the
    removed units wrote, ``tr(C_RR W_R'W_R)``, block by block."""
    n = stats.space.n
    pairs = np.zeros((n, n))
    for block, where, moments in zip(
        stats.space.blocks, stats.space.slices, stats.moments, strict=True
    ):
        shape = (block.units, len(moments.sum) // block.units) * 2
        written = (moments.covariance * moments.readout).reshape(shape)
        pairs[where, where] = written.sum(axis=(1, 3))
    return Quadratic.damage_avoided(pairs)


def divergences(stats: HeadStats) -> Floats:
    """Mean Jensen-Shannon divergence of the attention maps of every two units, ``[n, n]``."""
    assert stats.divergence is not None  # declared as needed
    return stats.divergence.mean


def mean_divergence(stats: HeadStats, share: float) -> Objective:
    """Mean divergence of two kept units."""
    n = stats.space.n
    kept = round(share * n)
    return Quadratic(np.zeros(n), divergences(stats) / max(kept * (kept - 1), 1))


def log_determinant(stats: HeadStats, _: float) -> Objective:
    """Of the kernel ``exp(-d / mean of d)``, which is positive semidefinite for this divergence."""
    d = divergences(stats)
    return LogDet(np.exp(-d / d.mean()))


GAUSS_NEWTON, FISHER = frozenset({"gauss_newton"}), frozenset({"fisher"})
MOMENTS, DIVERGENCE = frozenset({"moments"}), frozenset({"divergence"})
FURTHER: Mapping[str, Entry] = {
    "explained variance, relative": Entry(
        MOMENTS, lambda s, _: ExplainedVariance.from_stats(s, relative=True)
    ),
    "reconstruction, no refit": Entry(MOMENTS, reconstruction),
    "Gauss-Newton, density matched": Entry(
        GAUSS_NEWTON, lambda s, share: Quadratic.from_stats(s, share, shrinkage=0)
    ),
    "Gauss-Newton, density 1": Entry(
        GAUSS_NEWTON, lambda s, _: Quadratic.from_stats(s, 1.0, shrinkage=0), 1.0
    ),
    "Gauss-Newton, density matched, diagonal": Entry(GAUSS_NEWTON, Modular.from_curvature),
    "Fisher, density matched": Entry(
        FISHER, lambda s, share: Quadratic.from_stats(s, share, Curvature.FISHER, shrinkage=0)
    ),
    "Fisher, density 1": Entry(
        FISHER, lambda s, _: Quadratic.from_stats(s, 1.0, Curvature.FISHER, shrinkage=0), 1.0
    ),
    "Fisher, density 1, diagonal": Entry(
        FISHER, lambda s, _: Modular.from_curvature(s, 1.0, Curvature.FISHER), 1.0
    ),
    "head energy": Entry(MOMENTS, lambda s, _: Modular.from_energy(s)),
    "facility location, Jeffries-Matusita x salience": Entry(
        frozenset({"signatures", "salience"}), lambda s, _: FacilityLocation.from_signatures(s)
    ),
    "log-determinant, Jensen-Shannon": Entry(DIVERGENCE, log_determinant),
    "mean Jensen-Shannon divergence": Entry(DIVERGENCE, mean_divergence),
}


@dataclass(frozen=True)
class Listed(Maximising):
    """An objective of :data:`FURTHER`.

    Args:
        title: its name there.
    """

    title: str

    source: ClassVar[str] = "benchmarks/objectives/catalogue.py"

    def needs(self, task: Task) -> Needs:
        """Those of the entry, its matrix at its density."""
        entry = FURTHER[self.title]
        matrices = entry.needs & (GAUSS_NEWTON | FISHER)
        return Needs(entry.needs, (entry.density or task.density,) if matrices else ())

    def maximised(self, stats: HeadStats, task: Task) -> Objective:
        """As the entry makes it."""
        return FURTHER[self.title].build(stats, task.density)


OBJECTIVES: Mapping[str, Studied] = {
    "explained output": ObjectiveName.EXPLAINED_OUTPUT,
    "explained variance": ObjectiveName.EXPLAINED_VARIANCE,
    "Gauss-Newton, density 0.5": ObjectiveName.GAUSS_NEWTON,
    "salience (Michel)": ObjectiveName.SALIENCE,
    "facility location, Jensen-Shannon x salience": ObjectiveName.FACILITY_LOCATION,
    "complementarity (Jeffries-Matusita)": ObjectiveName.COMPLEMENTARITY,
    **{title: Listed(title) for title in FURTHER},
}
"""By the name in tables, every objective."""
