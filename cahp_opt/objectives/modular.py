"""A sum of weights, one per unit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cahp_opt.arrays import Bools, Floats, Ints, finite
from cahp_opt.objective import Objective, QuadraticForm
from cahp_opt.objectives.curvature import Curvature
from cahp_opt.space import HeadSpace
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.stats.needs import needs


@dataclass(frozen=True, eq=False)
class Modular(Objective):
    """``weights @ kept``.

    Args:
        weights: one per unit, shape ``[n]``; may be negative.

    Raises:
        ValueError: for NaN, infinity or another shape.
    """

    weights: Floats

    def __post_init__(self) -> None:
        weights = finite(self.weights, "weights")
        if weights.ndim != 1 or not len(weights):
            raise ValueError(f"`weights` must have shape [n], got {list(weights.shape)}.")
        object.__setattr__(self, "weights", weights)

    @staticmethod
    @needs("salience")
    def from_stats(stats: HeadStats) -> Modular:
        """Salience of Michel et al. (2019), "Are sixteen heads really better than one?": the mean
        over examples of ``|d loss / d gate|`` at the unpruned model."""
        return Modular(stats.salience.mean)

    @staticmethod
    def from_curvature(
        stats: HeadStats,
        density: float | None = None,
        matrix: Curvature = Curvature.GAUSS_NEWTON,
    ) -> Modular:
        """The damage of dropping each unit alone: half the diagonal of the matrix that
        :meth:`Quadratic.from_stats` takes whole.

        With ``Curvature.FISHER`` at density 1 it is the first step of Kwon et al. (2022), "A fast
        post-training pruning framework for transformers".

        Args:
            stats, density, matrix: as for :meth:`Quadratic.from_stats`.

        Raises:
            ValueError: if the matrix or the density was not measured.
        """
        return Modular(0.5 * np.diagonal(matrix.of(stats, density)))

    @staticmethod
    @needs("moments")
    def from_energy(stats: HeadStats) -> Modular:
        """The variance that each unit alone writes to the residual stream: that of ``W_u z_u`` over
        real tokens, ``tr(C_uu W_u'W_u)``, with ``C`` the covariance of the block's head outputs. A
        unit's mean does not count, because a bias can replace it.

        Raises:
            ValueError: if the moments of head outputs were not measured.
        """
        energies: list[float] = []
        for block, moments in zip(stats.space.blocks, stats.needed_moments, strict=True):
            owner = np.repeat(np.arange(block.units), len(moments.sum) // block.units)
            own = [moments.of(owner == unit) for unit in range(block.units)]
            energies += [part.form.trace(part.covariance) for part in own]
        return Modular(np.array(energies))

    @staticmethod
    def example(space: HeadSpace) -> Modular:
        """Units that all count the same; for trying a solver before anything is measured."""
        return Modular(np.ones(space.n))

    @property
    def n(self) -> int:
        return len(self.weights)

    @property
    def monotone(self) -> bool:
        return bool(np.all(self.weights >= 0))

    @property
    def submodular(self) -> bool:
        return True

    def value(self, kept: Bools) -> float:
        return float(self.weights[kept].sum())

    def tracker(self, kept: Bools) -> ModularTracker:
        return ModularTracker(self, kept)

    def linear(self) -> Floats:
        return self.weights

    def quadratic(self) -> QuadraticForm:
        return QuadraticForm(self.weights, np.zeros((self.n, self.n)))


class ModularTracker:
    """Follows a sum of weights."""

    def __init__(self, objective: Modular, kept: Bools) -> None:
        self._weights = objective.weights
        self.kept: Bools = np.array(kept, dtype=np.bool_)
        self.value = objective.value(self.kept)

    def gain(self, unit: int) -> float:
        return float(-self._weights[unit] if self.kept[unit] else self._weights[unit])

    def gains(self, units: Ints | None = None) -> Floats:
        some = slice(None) if units is None else units
        return np.where(self.kept[some], -self._weights[some], self._weights[some])

    def add(self, unit: int) -> None:
        self.kept[unit] = True
        self.value += float(self._weights[unit])

    def remove(self, unit: int) -> None:
        self.kept[unit] = False
        self.value -= float(self._weights[unit])
