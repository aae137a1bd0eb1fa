"""Facility location: every row is served by the kept unit most similar to it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from cahp_opt.arrays import Bools, Floats, Ints
from cahp_opt.objective import CoverageForm, Objective
from cahp_opt.objectives.similarities import Matrix, checked_matrix, columns_of, row_weights
from cahp_opt.space import HeadSpace
from cahp_opt.stats.class_distances import closeness, signature_features
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.stats.needs import needs

_CHUNK = 2**17  # numbers handled at once: a double-precision buffer that fits a second-level cache
_TOGETHER = 128  # units whose lists are read together: long ones still fit that cache
_FEW = 16  # a unit's rows are listed once they are fewer than one in this many
_SHORT = 32  # rows up to which a list is not worth shortening
_NO_ROWS = np.empty(0, dtype=np.intp)


@dataclass(frozen=True, eq=False)
class FacilityLocation(Objective):
    """``sum_i weights[i] * max over kept j of similarity[i, j]`` (Cornuejols, Fisher and Nemhauser
    1977, "Location of bank accounts to optimize float").

    Args:
        similarity: shape ``[m, n]``, at least 0; usually ``[n, n]``, of units with one another. A
            float32 array is held as it is, without a copy (do not write to it afterwards); sums are
            in double precision all the same. Where it is symmetric to the bit, or in Fortran order,
            solving needs no second copy either.
        weights: weight of each row, shape ``[m]``, at least 0; None for 1 each.

    Raises:
        ValueError: for NaN, infinity, negative numbers or a wrong shape.
    """

    similarity: Matrix
    weights: Floats

    def __init__(self, similarity: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> None:
        matrix = checked_matrix(similarity, "similarity")
        object.__setattr__(self, "similarity", matrix)
        object.__setattr__(self, "weights", row_weights(weights, len(matrix)))

    @staticmethod
    @needs("divergence", "salience")
    def from_stats(stats: HeadStats) -> FacilityLocation:
        """Units are similar if their attention maps are (``ln 2`` minus the Jensen-Shannon
        divergence, over ``ln 2``), and count by their salience.

        Raises:
            ValueError: if the divergence was not measured, or feed-forward parts are among the blocks.
        """
        stats.check_attention_alone()
        if stats.divergence is None:
            raise ValueError(
                "`stats` has no divergence of attention maps; calibrate with "
                "`divergence_examples` above 0."
            )
        similarity = np.clip(1 - stats.divergence.mean / np.log(2), 0, 1)
        return FacilityLocation(similarity, stats.salience.mean)

    @staticmethod
    @needs("signatures", "salience")
    def from_signatures(stats: HeadStats) -> FacilityLocation:
        """Units are similar if their attention separates the same classes in the same cells (one
        minus the distance of their Jeffries-Matusita features, over the largest distance), and count by
        their salience. :class:`Complementarity` is the same with every unit counting 1.

        Raises:
            ValueError: if signatures or salience were not measured, or of one class only, or feed-forward parts
                are among the blocks.
        """
        return FacilityLocation(closeness(signature_features(stats)), stats.salience.mean)

    @staticmethod
    def example(space: HeadSpace) -> FacilityLocation:
        """Units that are all alike; for trying a solver before anything is measured."""
        return FacilityLocation(np.ones((space.n, space.n)), np.ones(space.n))

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

    def value(self, kept: Bools) -> float:
        return float(self.weights @ best_of(self.columns, np.flatnonzero(kept)))

    def tracker(self, kept: Bools) -> FacilityLocationTracker:
        return FacilityLocationTracker(self, kept)

    def coverage(self) -> CoverageForm:
        return CoverageForm(self.similarity.astype(np.float64, copy=False), self.weights)


def best_of(columns: Matrix, units: npt.NDArray[np.intp]) -> npt.NDArray[Any]:
    """The largest similarity of every row to these units, ``[m]``; 0 for no unit."""
    best = np.zeros(columns.shape[1], dtype=columns.dtype)
    for unit in units:
        np.maximum(best, columns[unit], out=best)
    return best


class FacilityLocationTracker:
    """Follows facility location by the best kept similarity of every row.

    While units are only added, a row that a unit cannot serve better will never be served better by
    it. So each unit's list of rows it still improves is kept once units improve few, and looking at
    the unit again reads that list alone. The second best, which removals need, is found when the first
    removal (or the loss of a kept unit) is asked for.
    """

    def __init__(self, objective: FacilityLocation, kept: Bools) -> None:
        self._columns = objective.columns  # one row per unit: contiguous
        self._weights = objective.weights
        self._alike = bool(np.all(self._weights == 1))
        self.kept: Bools = np.array(kept, dtype=np.bool_)
        n, self._m = self._columns.shape
        self._best = best_of(self._columns, np.flatnonzero(self.kept))
        self._second: npt.NDArray[Any] | None = None
        self._owner: Ints = np.empty(0, dtype=np.int64)
        self._left = np.full(n, -1, dtype=np.int64)  # how many rows are listed; below 0: no list
        self._rows: list[npt.NDArray[np.intp]] = [_NO_ROWS] * n
        self._reach: list[npt.NDArray[Any]] = [_NO_ROWS] * n  # the similarity to those rows
        self._started = bool(self.kept.any())
        self._listing = self._started  # whether rows are listed: the last to enter improved few
        self._better: Bools = np.empty(self._m, dtype=np.bool_)
        at_once = max(1, min(_CHUNK // self._m, n))
        self._narrow = np.empty((at_once, self._m), dtype=self._best.dtype)
        self._wide = np.empty((at_once, self._m))

    @property
    def value(self) -> float:
        return float(self._weights @ self._best)

    def gain(self, unit: int) -> float:
        if self.kept[unit]:
            second = self._runner_up()
            mine = self._owner == unit
            return -float(
                self._weights[mine] @ np.subtract(self._best[mine], second[mine], dtype=np.float64)
            )
        return float(self._gains_of_others(np.array([unit]))[0])

    def gains(self, units: Ints | None = None) -> Floats:
        if units is None:
            units = np.arange(len(self.kept))
        kept = self.kept[units]
        if not np.count_nonzero(kept):
            return self._gains_of_others(units)
        result = np.empty(len(units))
        result[~kept] = self._gains_of_others(units[~kept])
        result[kept] = -self._losses()[units[kept]]
        return result

    def add(self, unit: int) -> None:
        self.kept[unit] = self._started = True
        column = self._columns[unit]
        if self._second is None:
            better = np.greater(column, self._best, out=self._better)
            self._listing = np.count_nonzero(better) * _FEW <= self._m
            np.maximum(self._best, column, out=self._best)
            return
        better = (column > self._best) | (self._owner < 0)
        self._second = np.where(better, self._best, np.maximum(self._second, column))
        self._best = np.where(better, column, self._best)
        self._owner[better] = unit

    def remove(self, unit: int) -> None:
        second = self._runner_up()
        self.kept[unit] = False
        self._serve(np.flatnonzero((self._owner == unit) | (self._columns[unit] >= second)))
        self._listing = False
        self._left[:] = -1

    # -- inside ------------------------------------------------------------------------------------

    def _losses(self) -> Floats:
        """The loss from removing each kept unit, ``[n]``; 0 for the others."""
        served = self._weights * np.subtract(self._best, self._runner_up(), dtype=np.float64)
        mine = np.maximum(self._owner, 0)
        losses = np.bincount(mine, np.where(self._owner < 0, 0, served), len(self.kept))
        return losses.astype(np.float64, copy=False)

    def _gains_of_others(self, units: npt.NDArray[np.intp]) -> Floats:
        """The gains of units that are out, ``[len(units)]``."""
        gains = np.empty(len(units))
        for start in range(0, len(units), _TOGETHER):
            some = units[start : start + _TOGETHER]
            if self._listing:
                self._list_rows(some)
            left = self._left[some]
            listed = left >= 0
            if np.count_nonzero(listed) == len(some):
                own = self._listed_gains(some.tolist(), left)
            else:
                own = np.empty(len(some))
                own[~listed] = self._whole_gains(some[~listed])
                if listed.any():
                    own[listed] = self._listed_gains(some[listed].tolist(), left[listed])
            gains[start : start + _TOGETHER] = own
        return gains

    def _whole_gains(self, units: npt.NDArray[np.intp]) -> Floats:
        """Gains from whole columns."""
        gains = np.empty(len(units))
        best = self._best.astype(np.float64)
        for start in range(0, len(units), len(self._wide)):
            some = units[start : start + len(self._wide)]
            own, wide = self._narrow[: len(some)], self._wide[: len(some)]
            self._columns.take(some, axis=0, out=own, mode="clip")  # other modes copy once more
            if not self._started:
                wide[:] = own
            else:
                np.maximum(own, self._best, out=own)
                wide[:] = own
                wide -= best
            gains[start : start + len(some)] = wide @ self._weights
        return gains

    def _list_rows(self, units: npt.NDArray[np.intp]) -> None:
        """List the rows of units that improve few."""
        for unit in units[self._left[units] < 0].tolist():
            column = self._columns[unit]
            better = np.greater(column, self._best, out=self._better)
            if np.count_nonzero(better) * _FEW <= self._m:
                self._rows[unit] = rows = better.nonzero()[0]
                self._reach[unit] = column.take(rows)
                self._left[unit] = len(rows)

    def _listed_gains(self, units: list[int], lengths: Ints) -> Floats:
        """Gains from the listed rows alone; long lists lose the rows that are improved no more."""
        rows = np.concatenate([self._rows[unit] for unit in units])
        reach = np.concatenate([self._reach[unit] for unit in units])
        above = np.subtract(reach, self._best.take(rows), dtype=np.float64)
        ends = lengths.cumsum()
        if lengths[lengths.argmax()] > _SHORT:
            better = (above > 0).nonzero()[0]
            rows, reach, above = rows.take(better), reach.take(better), above.take(better)
            ends = better.searchsorted(ends)
            start = 0
            for unit, end in zip(units, ends.tolist(), strict=True):
                self._rows[unit], self._reach[unit] = rows[start:end], reach[start:end]
                start = end
            self._left[units] = lengths = np.diff(ends, prepend=0)
        else:
            np.maximum(above, 0, out=above)
        if not self._alike:
            above *= self._weights.take(rows)
        starts, some = ends - lengths, lengths > 0
        if np.count_nonzero(some) == len(units):
            return np.add.reduceat(above, starts)
        gains = np.zeros(len(units))
        gains[some] = np.add.reduceat(above, starts[some])
        return gains

    def _runner_up(self) -> npt.NDArray[Any]:
        """The second best kept similarity of every row; found from scratch the first time."""
        if self._second is None:
            self._second = np.zeros_like(self._best)
            self._owner = np.full(self._m, -1, dtype=np.int64)
            self._serve(np.arange(self._m, dtype=np.intp))
        return self._second

    def _serve(self, rows: npt.NDArray[np.intp]) -> None:
        """Find the best and second best of these rows from scratch."""
        assert self._second is not None
        kept = np.flatnonzero(self.kept)
        if not kept.size:
            self._best[rows], self._second[rows], self._owner[rows] = 0, 0, -1
            return
        at_once = max(1, 4 * _CHUNK // kept.size)
        for start in range(0, len(rows), at_once):
            some = rows[start : start + at_once]
            table = self._columns[np.ix_(kept, some)]
            first = table.argmax(axis=0)
            places = np.arange(len(some))
            self._owner[some], self._best[some] = kept[first], table[first, places]
            table[first, places] = 0
            self._second[some] = table.max(axis=0)
