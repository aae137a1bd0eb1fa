"""Saturated coverage: every row is covered by all kept units together, up to its fill."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from cahp_opt.arrays import Bools, Floats, Ints
from cahp_opt.objective import Objective
from cahp_opt.objectives.similarities import (
    Matrix,
    checked_matrix,
    columns_of,
    row_weights,
    sum_rows,
)

_CHUNK = 2**16


@dataclass(frozen=True, eq=False)
class SaturatedCoverage(Objective):
    """``sum_i weights[i] * min(C_i(kept), fill * C_i(all))`` with ``C_i(S)`` the sum of
    ``similarity[i, j]`` over ``j`` in ``S`` (Lin and Bilmes 2011, "A class of submodular functions
    for document summarization").

    Args:
        similarity: shape ``[m, n]``, at least 0; a float32 array is held as it is, without a copy.
        fill: the share of a row's total similarity at which it is covered, above 0 and at most 1.
        weights: how much each row counts, shape ``[m]``, at least 0; None for 1 each.

    Raises:
        ValueError: for NaN, infinity, negative numbers, a wrong shape or a share out of range.
    """

    similarity: Matrix
    fill: float
    weights: Floats

    def __init__(
        self, similarity: npt.ArrayLike, fill: float = 0.25, weights: npt.ArrayLike | None = None
    ) -> None:
        matrix = checked_matrix(similarity, "similarity")
        if not 0 < fill <= 1:
            raise ValueError(f"`fill` must be above 0 and at most 1, got {fill}.")
        object.__setattr__(self, "similarity", matrix)
        object.__setattr__(self, "fill", float(fill))
        object.__setattr__(self, "weights", row_weights(weights, len(matrix)))

    @property
    def n(self) -> int:
        return int(self.similarity.shape[1])

    @property
    def monotone(self) -> bool:
        return True

    @property
    def submodular(self) -> bool:
        return True

    @cached_property
    def columns(self) -> Matrix:
        """The similarity of each unit to every row, ``[n, m]``, contiguous per unit."""
        return columns_of(self.similarity)

    @cached_property
    def full(self) -> Floats:
        """The coverage at which each row is full, ``[m]``."""
        return np.asarray(self.fill * self.similarity.sum(axis=1, dtype=np.float64))

    def value(self, kept: Bools) -> float:
        return float(self.weights @ np.minimum(sum_rows(self.columns, kept), self.full))

    def tracker(self, kept: Bools) -> SaturatedCoverageTracker:
        return SaturatedCoverageTracker(self, kept)


class SaturatedCoverageTracker:
    """Follows saturated coverage by the sum of kept similarity of every row."""

    def __init__(self, objective: SaturatedCoverage, kept: Bools) -> None:
        self._columns, self._full = objective.columns, objective.full
        self._weights = objective.weights
        self.kept: Bools = np.array(kept, dtype=np.bool_)
        self._sums = sum_rows(self._columns, self.kept)

    @property
    def value(self) -> float:
        return float(self._weights @ np.minimum(self._sums, self._full))

    def gain(self, unit: int) -> float:
        column = self._columns[unit].astype(np.float64)
        flipped = self._sums - column if self.kept[unit] else self._sums + column
        change = np.minimum(flipped, self._full) - np.minimum(self._sums, self._full)
        return float(self._weights @ change)

    def gains(self, units: Ints | None = None) -> Floats:
        if units is None:
            units = np.arange(len(self.kept))
        result = np.empty(len(units))
        now = np.minimum(self._sums, self._full)
        at_once = max(1, _CHUNK // len(now))
        for start in range(0, len(units), at_once):
            some = units[start : start + at_once]
            sign = np.where(self.kept[some], -1.0, 1.0)
            flipped = self._sums + sign[:, None] * self._columns[some]
            np.minimum(flipped, self._full, out=flipped)
            flipped -= now
            result[start : start + at_once] = flipped @ self._weights
        return result

    def add(self, unit: int) -> None:
        self.kept[unit] = True
        self._sums += self._columns[unit]

    def remove(self, unit: int) -> None:
        self.kept[unit] = False
        self._sums -= self._columns[unit]
