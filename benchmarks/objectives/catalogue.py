"""The objectives that are judged: a name, and how it is made of calibration statistics.

To judge another one, add a line to :data:`OBJECTIVES`. What is already on disk stays: only the values of the
new objective, and the keep-sets that it chooses, are new work. What a name has chosen stays too; an objective that
means something else now needs another name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from cahp_opt import HeadStats, Objective
from cahp_opt.objectives import (
    Complementarity,
    Curvature,
    ExplainedVariance,
    FacilityLocation,
    LogDet,
    Modular,
    Quadratic,
)

Build = Callable[[HeadStats, int], Objective]
"""From statistics and the number of units to keep. :class:`~cahp_opt.solvers.Auto` maximises it."""


def matched(stats: HeadStats, kept: int) -> float:
    """The share of units kept, as the density of the masks."""
    return kept / stats.space.n


def reconstruction(stats: HeadStats, _: int) -> Objective:
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


def divergences(stats: HeadStats) -> np.ndarray:
    """Mean Jensen-Shannon divergence of the attention maps of every two units, ``[n, n]``."""
    assert stats.divergence is not None, "calibrate with `divergence_examples`"
    return stats.divergence.mean


def mean_divergence(stats: HeadStats, kept: int) -> Objective:
    """Mean divergence of two kept units."""
    n = stats.space.n
    return Quadratic(np.zeros(n), divergences(stats) / max(kept * (kept - 1), 1))


def log_determinant(stats: HeadStats, _: int) -> Objective:
    """Of the kernel ``exp(-d / mean of d)``, which is positive semidefinite for this divergence."""
    d = divergences(stats)
    return LogDet(np.exp(-d / d.mean()))


OBJECTIVES: Mapping[str, Build] = {
    "explained output": lambda s, k: ExplainedVariance.from_sensitivity(s),
    "explained variance": lambda s, k: ExplainedVariance.from_stats(s),
    "explained variance, relative": lambda s, k: ExplainedVariance.from_stats(s, relative=True),
    "reconstruction, no refit": reconstruction,
    "Gauss-Newton, density matched": lambda s, k: Quadratic.from_stats(s, matched(s, k)),
    "Gauss-Newton, density 0.5": lambda s, k: Quadratic.from_stats(s, 0.5),
    "Gauss-Newton, density 1": lambda s, k: Quadratic.from_stats(s, 1.0),
    "Gauss-Newton, density matched, diagonal": lambda s, k: Modular.from_curvature(
        s, matched(s, k)
    ),
    "Fisher, density matched": lambda s, k: Quadratic.from_stats(
        s, matched(s, k), Curvature.FISHER
    ),
    "Fisher, density 1": lambda s, k: Quadratic.from_stats(s, 1.0, Curvature.FISHER),
    "Fisher, density 1, diagonal": lambda s, k: Modular.from_curvature(s, 1.0, Curvature.FISHER),
    "salience (Michel)": lambda s, k: Modular.from_stats(s),
    "head energy": lambda s, k: Modular.from_energy(s),
    "facility location, Jensen-Shannon x salience": lambda s, k: FacilityLocation.from_stats(s),
    "facility location, Jeffries-Matusita x salience": lambda s, k: (
        FacilityLocation.from_signatures(s)
    ),
    "complementarity (Jeffries-Matusita)": lambda s, k: Complementarity.from_stats(s),
    "log-determinant, Jensen-Shannon": log_determinant,
    "mean Jensen-Shannon divergence": mean_divergence,
}
