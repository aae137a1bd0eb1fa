"""Salience with interactions between pairs of units, within and across blocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cahp_opt.arrays import Bools, Floats, Ints, finite
from cahp_opt.objective import Objective, QuadraticForm
from cahp_opt.objectives.curvature import Curvature
from cahp_opt.objectives.similarities import checked_matrix, square
from cahp_opt.space import HeadSpace
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.stats.needs import needs
from cahp_opt.subsets import BestSubsets, best_by_count, check_enumerable, subset_values


@dataclass(frozen=True, eq=False)
class Quadratic(Objective):
    """``linear @ x + x @ pairwise @ x`` for the 0/1 vector ``x`` of kept units.

    Args:
        linear: shape ``[n]``.
        pairwise: symmetric, shape ``[n, n]``; its diagonal counts like ``linear``.

    Raises:
        ValueError: for NaN, infinity, a wrong shape, or a matrix that is not symmetric.
    """

    linear_terms: Floats
    pairwise: Floats

    def __init__(self, linear: npt.ArrayLike, pairwise: npt.ArrayLike) -> None:
        weights, pairs = finite(linear, "linear"), finite(pairwise, "pairwise")
        n = len(weights) if weights.ndim == 1 else 0
        if not n or pairs.shape != (n, n):
            raise ValueError(
                f"`linear` must have shape [n] and `pairwise` [n, n], got {list(weights.shape)} and "
                f"{list(pairs.shape)}."
            )
        scale = float(np.abs(pairs).max())
        if not np.allclose(pairs, pairs.T, rtol=0, atol=1e-9 * scale):
            raise ValueError(
                "`pairwise` must be symmetric; pass (P + P.T) / 2 for the same values."
            )
        object.__setattr__(self, "linear_terms", weights)
        object.__setattr__(self, "pairwise", finite((pairs + pairs.T) / 2, "pairwise"))

    @staticmethod
    def damage_avoided(hessian: npt.ArrayLike) -> Quadratic:
        """``1'H1 - (1 - x)'H(1 - x)``: the part of the estimated damage of dropping all units that
        keeping ``x`` avoids; ``hessian`` is ``H``, ``[n, n]``."""
        matrix = finite(hessian, "hessian")
        return Quadratic(2 * matrix.sum(axis=1), -matrix)

    @staticmethod
    def redundancy(
        salience: npt.ArrayLike, similarity: npt.ArrayLike, weight: float = 1.0
    ) -> Quadratic:
        """``sum of salience - weight * sum over pairs i != j of similarity[i, j]`` among the kept:
        relevance minus redundancy (Peng, Long and Ding 2005, "Feature selection based on mutual
        information"), each pair counted in both orders.

        Args:
            salience: shape ``[n]``.
            similarity: symmetric, at least 0, shape ``[n, n]``; its diagonal does not count.
            weight: weight of similarity against salience, at least 0.

        Raises:
            ValueError: for NaN, infinity, negative numbers, a wrong shape or an asymmetric matrix.
        """
        checked = square(checked_matrix(similarity, "similarity", "[n, n]"), "similarity")
        if not (np.isfinite(weight) and weight >= 0):
            raise ValueError(f"`weight` must be finite and at least 0, got {weight}.")
        matrix: Floats = np.array(checked, dtype=np.float64)
        np.fill_diagonal(matrix, 0)
        return Quadratic(salience, -float(weight) * matrix)

    @staticmethod
    @needs("gauss_newton")
    def from_stats(
        stats: HeadStats,
        density: float | None = None,
        matrix: Curvature = Curvature.GAUSS_NEWTON,
        *,
        shrinkage: float = 0.5,
    ) -> Quadratic:
        """Damage avoided with ``H`` half a second-order matrix of the gates, as in a Taylor
        expansion, taken under random masks of this density (which keep the expansion valid far from
        the unpruned model; Kwon et al. 2022 take the Fisher matrix at density 1).

        From a few hundred examples the products of different gates are noisy, and a solver finds those that seem to
        cancel. So they are shrunk towards 0, and the diagonal stays as it is (Ledoit and Wolf 2004, "A
        well-conditioned estimator for large-dimensional covariance matrices", shrink in this way).

        Args:
            stats: calibration statistics with such matrices.
            density: of the masks, such as the share of units to keep; interpolated between those
                measured. None for the usual one of :meth:`Curvature.of`.
            matrix: which one.
            shrinkage: the share of the products of different gates that is taken away, from 0 to 1.

        Raises:
            ValueError: if the matrix or the density was not measured, or ``shrinkage`` is outside of 0 to 1.
        """
        if not 0 <= shrinkage <= 1:
            raise ValueError(f"`shrinkage` must be a number from 0 to 1, got {shrinkage}.")
        whole = matrix.of(stats, density)
        alone = np.diag(np.diagonal(whole))
        return Quadratic.damage_avoided(0.5 * (alone + (1 - shrinkage) * (whole - alone)))

    @staticmethod
    def example(space: HeadSpace) -> Quadratic:
        """Damage to which units of all blocks add together; for trying a solver before anything is
        measured."""
        return Quadratic.damage_avoided(0.5 * (np.eye(space.n) + 1 / space.n))

    @property
    def n(self) -> int:
        return len(self.linear_terms)

    @property
    def monotone(self) -> bool:
        """True if every unit gains at least 0 even beside all its worst partners."""
        diagonal = np.diagonal(self.pairwise)
        others = np.minimum(self.pairwise, 0).sum(axis=1) - np.minimum(diagonal, 0)
        return bool(np.all(self.linear_terms + diagonal + 2 * others >= 0))

    @property
    def submodular(self) -> bool:
        """True if no pair adds value together."""
        off_diagonal = self.pairwise - np.diag(np.diagonal(self.pairwise))
        return bool(np.all(off_diagonal <= 0))

    def value(self, kept: Bools) -> float:
        return float(self.linear_terms[kept].sum() + self.pairwise[np.ix_(kept, kept)].sum())

    def tracker(self, kept: Bools) -> QuadraticTracker:
        return QuadraticTracker(self, kept)

    def linear(self) -> Floats | None:
        diagonal = np.diagonal(self.pairwise)
        if np.any(self.pairwise - np.diag(diagonal)):
            return None
        return self.linear_terms + diagonal

    def quadratic(self) -> QuadraticForm:
        return QuadraticForm(self.linear_terms, self.pairwise)

    def separable(self, space: HeadSpace) -> tuple[BestSubsets, ...] | None:
        modular = super().separable(space)
        if modular is not None:
            return modular
        across = space.block_of[:, None] != space.block_of[None, :]
        if np.any(self.pairwise[across]):
            return None
        for block in space.blocks:
            check_enumerable(block.name, block.units)
        return tuple(
            best_by_count(block.units, subset_values(self.linear_terms[s], self.pairwise[s, s]))
            for block, s in zip(space.blocks, space.slices, strict=True)
        )


class QuadraticTracker:
    """Follows a quadratic form; keeps ``pairwise @ x`` up to date."""

    def __init__(self, objective: Quadratic, kept: Bools) -> None:
        self._pairwise = objective.pairwise
        self._alone = objective.linear_terms + np.diagonal(objective.pairwise)
        self._diagonal = np.diagonal(objective.pairwise)
        self.kept: Bools = np.array(kept, dtype=np.bool_)
        self.value = objective.value(self.kept)
        self._product: Floats = objective.pairwise @ self.kept.astype(np.float64)

    def gain(self, unit: int) -> float:
        with_others = 2 * (self._product[unit] - self._diagonal[unit] * self.kept[unit])
        worth = float(self._alone[unit] + with_others)
        return -worth if self.kept[unit] else worth

    def gains(self, units: Ints | None = None) -> Floats:
        some = slice(None) if units is None else units
        kept = self.kept[some]
        worth = self._alone[some] + 2 * (self._product[some] - self._diagonal[some] * kept)
        return np.where(kept, -worth, worth)

    def add(self, unit: int) -> None:
        self.value += self.gain(unit)
        self.kept[unit] = True
        self._product += self._pairwise[unit]

    def remove(self, unit: int) -> None:
        self.value += self.gain(unit)
        self.kept[unit] = False
        self._product -= self._pairwise[unit]
