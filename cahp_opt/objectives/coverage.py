"""Facility location: every row is served by the kept unit most similar to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cahp_opt.heads import Bools, Floats
from cahp_opt.problem import CoverageForm, Objective
from cahp_opt.stats import HeadStats, finite

_BATCH = 2**17  # numbers handled at once, so that they stay in the processor's cache


@dataclass(frozen=True, eq=False)
class FacilityLocation(Objective):
    """``sum_i weights[i] * max over kept j of similarity[i, j]`` (Cornuejols, Fisher and Nemhauser
    1977, "Location of bank accounts to optimize float").

    Args:
        similarity: shape ``[m, n]``, at least 0; usually ``[n, n]``, of units with one another.
        weights: how much each row counts, shape ``[m]``, at least 0; None for 1 each.

    Raises:
        ValueError: for NaN, infinity, negative numbers or a wrong shape.
    """

    similarity: Floats
    weights: Floats

    def __init__(self, similarity: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> None:
        matrix = finite(similarity, "similarity")
        if matrix.ndim != 2 or not matrix.size:
            raise ValueError(f"`similarity` must have shape [m, n], got {list(matrix.shape)}.")
        rows = finite(np.ones(len(matrix)) if weights is None else weights, "weights")
        if rows.shape != (len(matrix),):
            raise ValueError(
                f"`weights` must have shape [{len(matrix)}], one per row of `similarity`, "
                f"got {list(rows.shape)}."
            )
        for name, array in (("similarity", matrix), ("weights", rows)):
            if np.any(array < 0):
                raise ValueError(
                    f"`{name}` must be at least 0, got {array.min():.6g}; shift or clip it first."
                )
        columns = np.asfortranarray(matrix)  # trackers read one unit's column at a time
        columns.flags.writeable = False
        object.__setattr__(self, "similarity", columns)
        object.__setattr__(self, "weights", rows)

    @staticmethod
    def from_stats(stats: HeadStats) -> FacilityLocation:
        """Units are similar where their attention maps are (``ln 2`` minus the Jensen-Shannon
        divergence, over ``ln 2``), and count by their salience.

        Raises:
            ValueError: if the divergence was not measured.
        """
        if stats.divergence is None:
            raise ValueError(
                "`stats` has no divergence of attention maps; calibrate with "
                "`divergence_examples` above 0."
            )
        similarity = np.clip(1 - stats.divergence.mean / np.log(2), 0, 1)
        return FacilityLocation(similarity, stats.salience.mean)

    @property
    def n(self) -> int:
        return int(self.similarity.shape[1])

    @property
    def monotone(self) -> bool:
        return True

    @property
    def submodular(self) -> bool:
        return True

    def value(self, kept: Bools) -> float:
        if not kept.any():
            return 0.0
        return float(self.weights @ self.similarity[:, kept].max(axis=1))

    def tracker(self, kept: Bools) -> FacilityLocationTracker:
        return FacilityLocationTracker(self, kept)

    def coverage(self) -> CoverageForm:
        return CoverageForm(self.similarity, self.weights)


class FacilityLocationTracker:
    """Follows facility location by the best and second best kept similarity of every row."""

    def __init__(self, objective: FacilityLocation, kept: Bools) -> None:
        self._columns = np.ascontiguousarray(objective.similarity.T)  # one row per unit; no copy
        self._weights = objective.weights
        self.kept: Bools = np.array(kept, dtype=np.bool_)
        m = len(self._weights)
        self._best, self._second = np.zeros(m), np.zeros(m)
        self._owner = np.full(m, -1, dtype=np.int64)
        self._serve(np.arange(m))

    @property
    def value(self) -> float:
        return float(self._weights @ self._best)

    def gain(self, unit: int) -> float:
        if self.kept[unit]:
            return -float(
                self._weights @ np.where(self._owner == unit, self._best - self._second, 0)
            )
        return float(self._weights @ np.maximum(self._columns[unit] - self._best, 0))

    def gains(self) -> Floats:
        n = len(self.kept)
        result = np.empty(n)
        out = np.flatnonzero(~self.kept)
        for some in np.array_split(out, max(1, out.size * len(self._best) // _BATCH)):
            above = self._columns[some] - self._best
            np.maximum(above, 0, out=above)
            result[some] = above @ self._weights
        served = self._owner >= 0
        loss = self._weights[served] * (self._best - self._second)[served]
        lost = np.bincount(self._owner[served], loss, minlength=n)
        result[self.kept] = -lost[self.kept]
        return result

    def add(self, unit: int) -> None:
        self.kept[unit] = True
        column = self._columns[unit]
        better = (column > self._best) | (self._owner < 0)
        self._second = np.where(better, self._best, np.maximum(self._second, column))
        self._best = np.where(better, column, self._best)
        self._owner[better] = unit

    def remove(self, unit: int) -> None:
        self.kept[unit] = False
        self._serve(np.flatnonzero((self._owner == unit) | (self._columns[unit] >= self._second)))

    def _serve(self, rows: npt.NDArray[np.intp]) -> None:
        """Find the best and second best of these rows from scratch."""
        kept = np.flatnonzero(self.kept)
        if not kept.size:
            self._best[rows], self._second[rows], self._owner[rows] = 0, 0, -1
            return
        for some in np.array_split(rows, max(1, kept.size * rows.size // _BATCH)):
            table = self._columns[np.ix_(kept, some)]
            first = table.argmax(axis=0)
            places = np.arange(len(some))
            self._owner[some], self._best[some] = kept[first], table[first, places]
            table[first, places] = 0
            self._second[some] = table.max(axis=0)
