"""Feature-based functions: every feature counts less the more of it is kept."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from cahp_opt.arrays import Bools, Floats, Ints
from cahp_opt.objective import Objective
from cahp_opt.objectives.similarities import Matrix, checked_matrix, row_weights, sum_rows

_CHUNK = 2**16


class Concave(Enum):
    """A concave, increasing function of ``x >= 0`` that is 0 at 0; the value is a formula for people."""

    SQRT = "sqrt(x)"
    LOG1P = "log(1 + x)"
    RATIO = "x / (1 + x)"
    EXPONENTIAL = "1 - exp(-x)"

    def __call__(self, x: Floats) -> Floats:
        """The function of every number of ``x``; rounding below 0 counts as 0."""
        x = np.maximum(x, 0)
        if self is Concave.SQRT:
            return np.sqrt(x)
        if self is Concave.LOG1P:
            return np.log1p(x)
        if self is Concave.RATIO:
            return x / (1 + x)
        return -np.expm1(-x)


@dataclass(frozen=True, eq=False)
class FeatureBased(Objective):
    """``sum_f weights[f] * concave(sum over kept j of features[j, f])`` (Kirchhoff and Bilmes 2014,
    "Submodularity for data selection in machine translation"). Needs no similarity matrix.

    Args:
        features: shape ``[n, features]``, at least 0; a float32 array is held as it is.
        concave: the function of each feature's sum.
        weights: how much each feature counts, shape ``[features]``, at least 0; None for 1 each.

    Raises:
        ValueError: for NaN, infinity, negative numbers or a wrong shape.
        TypeError: if ``concave`` is not a :class:`Concave`.
    """

    features: Matrix
    concave: Concave
    weights: Floats

    def __init__(
        self,
        features: npt.ArrayLike,
        concave: Concave = Concave.SQRT,
        weights: npt.ArrayLike | None = None,
    ) -> None:
        matrix = checked_matrix(features, "features", "[n, features]")
        if not isinstance(concave, Concave):
            raise TypeError(f"`concave` must be one of {list(Concave)}, got {concave!r}.")
        object.__setattr__(self, "features", matrix)
        object.__setattr__(self, "concave", concave)
        object.__setattr__(self, "weights", row_weights(weights, matrix.shape[1]))

    @property
    def n(self) -> int:
        return len(self.features)

    @property
    def monotone(self) -> bool:
        return True

    @property
    def submodular(self) -> bool:
        return True

    def value(self, kept: Bools) -> float:
        return float(self.weights @ self.concave(sum_rows(self.features, kept)))

    def tracker(self, kept: Bools) -> FeatureBasedTracker:
        return FeatureBasedTracker(self, kept)


class FeatureBasedTracker:
    """Follows a feature-based function by the sum of every feature."""

    def __init__(self, objective: FeatureBased, kept: Bools) -> None:
        self._features, self._concave = objective.features, objective.concave
        self._weights = objective.weights
        self.kept: Bools = np.array(kept, dtype=np.bool_)
        self._sums = sum_rows(self._features, self.kept)

    @property
    def value(self) -> float:
        return float(self._weights @ self._concave(self._sums))

    def gain(self, unit: int) -> float:
        return float(self.gains(np.array([unit]))[0])

    def gains(self, units: Ints | None = None) -> Floats:
        if units is None:
            units = np.arange(len(self.kept))
        result = np.empty(len(units))
        now = self._concave(self._sums)
        at_once = max(1, _CHUNK // len(now))
        for start in range(0, len(units), at_once):
            some = units[start : start + at_once]
            sign = np.where(self.kept[some], -1.0, 1.0)
            change = self._concave(self._sums + sign[:, None] * self._features[some]) - now
            result[start : start + at_once] = (change * self._weights).sum(axis=1)
        return result

    def add(self, unit: int) -> None:
        self.kept[unit] = True
        self._sums += self._features[unit]

    def remove(self, unit: int) -> None:
        # Summed anew: what subtraction leaves of a sum that is 0, a square root would magnify.
        self.kept[unit] = False
        self._sums = sum_rows(self._features, self.kept)
