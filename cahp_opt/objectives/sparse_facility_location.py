"""Facility location over a sparse similarity: each row is served by a few units only."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from cahp_opt.arrays import Bools, Floats, Ints, finite
from cahp_opt.objective import CoverageForm, Objective
from cahp_opt.objectives.similarities import check_range, checked_matrix, row_weights

_BLOCK = 2**22  # numbers of a distance block held at once
_DENSE = 2**22  # the dense form is offered up to this many numbers


@dataclass(frozen=True, eq=False)
class SparseFacilityLocation(Objective):
    """``sum_i weights[i] * max over kept j of similarity[i, j]`` with similarities not listed 0: the
    sparse facility location of Lindgren, Wu and Dimakis (2016, "Leveraging sparsity for efficient
    submodular data summarization"). Never holds a matrix of ``m x n``.

    The similarity comes in compressed sparse rows: row ``i`` lists the units
    ``units[starts[i]:starts[i + 1]]`` with the numbers of ``similarity`` at the same places.

    Args:
        starts: shape ``[m + 1]``, from 0 to the number of entries, never falling.
        units: the unit of every entry, ``[entries]``; no unit twice in a row.
        similarity: the number of every entry, ``[entries]``, at least 0; float32 stays float32.
        n: the number of units.
        weights: how much each row counts, shape ``[m]``, at least 0; None for 1 each.

    Raises:
        ValueError: for NaN, infinity, negative numbers, or arrays that do not fit each other.
    """

    starts: Ints
    units: Ints
    similarity: npt.NDArray[Any]
    size: int
    weights: Floats

    def __init__(
        self,
        starts: npt.ArrayLike,
        units: npt.ArrayLike,
        similarity: npt.ArrayLike,
        n: int,
        weights: npt.ArrayLike | None = None,
    ) -> None:
        first = np.array(starts, dtype=np.int64)
        entries = np.array(units, dtype=np.int64)
        given = np.asarray(similarity)
        numbers = np.array(given, dtype=np.float32 if given.dtype == np.float32 else np.float64)
        check_range(numbers, "similarity")
        if entries.ndim != 1 or numbers.shape != entries.shape:
            raise ValueError(
                "`units` and `similarity` must be lists of the same length, got shapes "
                f"{list(entries.shape)} and {list(numbers.shape)}."
            )
        if (
            first.ndim != 1
            or len(first) < 2
            or first[0] != 0
            or first[-1] != len(entries)
            or np.any(np.diff(first) < 0)
        ):
            raise ValueError(
                f"`starts` must rise from 0 to the {len(entries)} entries, one more than rows, got "
                f"{first!r}."
            )
        if n < 1 or (entries.size and not (entries.min() >= 0 and entries.max() < n)):
            raise ValueError(f"`units` must be numbers in 0..n-1 with `n` at least 1, got n = {n}.")
        rows = np.repeat(np.arange(len(first) - 1), np.diff(first))
        order = np.lexsort((entries, rows))
        if np.any((np.diff(rows) == 0) & (np.diff(entries[order]) == 0)):
            raise ValueError(
                "`units` lists a unit twice in one row; merge the entries or drop one."
            )
        object.__setattr__(self, "starts", first)
        object.__setattr__(self, "units", entries)
        object.__setattr__(self, "similarity", numbers)
        object.__setattr__(self, "size", int(n))
        object.__setattr__(self, "weights", row_weights(weights, len(first) - 1))

    @staticmethod
    def strongest(
        similarity: npt.ArrayLike, neighbours: int, weights: npt.ArrayLike | None = None
    ) -> SparseFacilityLocation:
        """The ``neighbours`` largest similarities of every row of a dense matrix ``[m, n]``."""
        matrix = checked_matrix(similarity, "similarity")
        m, n = len(matrix), int(matrix.shape[1])
        k = _neighbours(neighbours, n)
        units, numbers = np.empty((m, k), dtype=np.int64), np.empty((m, k), dtype=matrix.dtype)
        at_once = max(1, _BLOCK // n)
        for start in range(0, m, at_once):
            block = matrix[start : start + at_once]
            best = np.argpartition(block, n - k, axis=1)[:, n - k :]
            units[start : start + at_once] = best
            numbers[start : start + at_once] = np.take_along_axis(block, best, axis=1)
        starts = np.arange(0, m * k + 1, k)
        return SparseFacilityLocation(starts, units.ravel(), numbers.ravel(), n, weights)

    @staticmethod
    def nearest(
        points: npt.ArrayLike,
        neighbours: int,
        *,
        width: float | None = None,
        weights: npt.ArrayLike | None = None,
    ) -> SparseFacilityLocation:
        """Similarity ``exp(-|x_i - x_j|^2 / width^2)`` of every point to its nearest ones, itself
        among them, in single precision; distances are computed a few rows at a time.

        Args:
            points: one per unit, shape ``[n, d]``.
            neighbours: the number per point, at least 1 and at most ``n``.
            width: the distance at which similarity has fallen to ``1 / e``; None for the root mean
                square distance to the neighbours.
            weights: how much each point counts, shape ``[n]``; None for 1 each.

        Raises:
            ValueError: for NaN, infinity, a wrong shape, or a number out of range.
        """
        x = finite(points, "points")
        if x.ndim != 2 or not x.size:
            raise ValueError(f"`points` must have shape [n, d], got {list(x.shape)}.")
        if width is not None and not (np.isfinite(width) and width > 0):
            raise ValueError(f"`width` must be finite and above 0, got {width}.")
        n = len(x)
        k = _neighbours(neighbours, n)
        x = (x - x.mean(axis=0)).astype(np.float32)  # centred: less is lost in the products
        squares = np.einsum("nd,nd->n", x, x)
        units, distance = np.empty((n, k), dtype=np.int64), np.empty((n, k), dtype=np.float32)
        at_once = max(1, _BLOCK // n)
        for start in range(0, n, at_once):
            some = slice(start, min(start + at_once, n))
            block = squares - 2 * (x[some] @ x.T)
            block += squares[some, None]
            np.maximum(block, 0, out=block)
            block[np.arange(len(block)), np.arange(some.start, some.stop)] = 0  # itself, exactly
            best = np.argpartition(block, k - 1, axis=1)[:, :k]
            units[some], distance[some] = best, np.take_along_axis(block, best, axis=1)
        scale = float(distance.mean(dtype=np.float64)) if width is None else float(width) ** 2
        numbers = np.exp(-distance / np.float32(scale if scale > 0 else 1))
        starts = np.arange(0, n * k + 1, k)
        return SparseFacilityLocation(starts, units.ravel(), numbers.ravel(), n, weights)

    @property
    def n(self) -> int:
        return self.size

    @property
    def monotone(self) -> bool:
        return True

    @property
    def submodular(self) -> bool:
        return True

    @cached_property
    def rows(self) -> Ints:
        """The row of every entry, ``[entries]``."""
        return np.repeat(np.arange(len(self.weights)), np.diff(self.starts))

    @cached_property
    def by_unit(self) -> tuple[Ints, Ints, npt.NDArray[Any]]:
        """The same entries unit by unit: starts ``[n + 1]``, rows and similarities ``[entries]``."""
        order = np.argsort(self.units, kind="stable")
        counts = np.bincount(self.units, minlength=self.n)
        return np.concatenate([[0], np.cumsum(counts)]), self.rows[order], self.similarity[order]

    def value(self, kept: Bools) -> float:
        return float(self.weights @ self.best(kept))

    def best(self, kept: Bools) -> npt.NDArray[Any]:
        """The largest kept similarity of every row, ``[m]``; 0 where none is listed."""
        best = np.zeros(len(self.weights), dtype=self.similarity.dtype)
        served = np.flatnonzero(np.diff(self.starts) > 0)
        if served.size:
            numbers = np.where(kept[self.units], self.similarity, 0)
            best[served] = np.maximum.reduceat(numbers, self.starts[served])
        return best

    def tracker(self, kept: Bools) -> SparseFacilityLocationTracker:
        return SparseFacilityLocationTracker(self, kept)

    def coverage(self) -> CoverageForm | None:
        """The dense form, up to four million numbers."""
        if len(self.weights) * self.n > _DENSE:
            return None
        dense = np.zeros((len(self.weights), self.n))
        dense[self.rows, self.units] = self.similarity
        return CoverageForm(dense, self.weights)


class SparseFacilityLocationTracker:
    """Follows sparse facility location by the best kept similarity of every row; the second best is
    found when the first removal, or the loss of a kept unit, is asked for."""

    def __init__(self, objective: SparseFacilityLocation, kept: Bools) -> None:
        self._objective, self._weights = objective, objective.weights
        self._starts, self._rows, self._reach = objective.by_unit
        self.kept: Bools = np.array(kept, dtype=np.bool_)
        self._best = objective.best(self.kept)
        self._second: npt.NDArray[Any] | None = None
        self._owner: Ints = np.empty(0, dtype=np.int64)

    @property
    def value(self) -> float:
        return float(self._weights @ self._best)

    def gain(self, unit: int) -> float:
        where = slice(self._starts[unit], self._starts[unit + 1])
        rows = self._rows[where]
        if self.kept[unit]:
            second = self._runner_up()
            rows = rows[self._owner[rows] == unit]
            lost = np.subtract(self._best[rows], second[rows], dtype=np.float64)
            return -float(self._weights[rows] @ lost)
        above = np.subtract(self._reach[where], self._best[rows], dtype=np.float64)
        return float(self._weights[rows] @ np.maximum(above, 0))

    def gains(self, units: Ints | None = None) -> Floats:
        if units is None:
            kept, rows, reach, lengths = self.kept, self._rows, self._reach, np.diff(self._starts)
        else:
            kept, lengths = self.kept[units], self._starts[units + 1] - self._starts[units]
            places = _ranges(self._starts[units], lengths)
            rows, reach = self._rows[places], self._reach[places]
        result = self._sums(rows, reach, lengths)
        if kept.any():
            result[kept] = -self._losses()[kept if units is None else units[kept]]
        return result

    def add(self, unit: int) -> None:
        self.kept[unit] = True
        where = slice(self._starts[unit], self._starts[unit + 1])
        rows, reach = self._rows[where], self._reach[where]
        best = self._best[rows]
        if self._second is not None:
            better = (reach > best) | (self._owner[rows] < 0)
            self._second[rows] = np.where(better, best, np.maximum(self._second[rows], reach))
            self._owner[rows[better]] = unit
        self._best[rows] = np.maximum(best, reach)

    def remove(self, unit: int) -> None:
        second = self._runner_up()
        self.kept[unit] = False
        where = slice(self._starts[unit], self._starts[unit + 1])
        rows = self._rows[where]
        self._serve(rows[(self._owner[rows] == unit) | (self._reach[where] >= second[rows])])

    # -- inside ------------------------------------------------------------------------------------

    def _losses(self) -> Floats:
        """The loss from removing each kept unit, ``[n]``; 0 for the others."""
        lost = self._weights * np.subtract(self._best, self._runner_up(), dtype=np.float64)
        served = self._owner >= 0
        losses = np.bincount(self._owner[served], lost[served], len(self.kept))
        return losses.astype(np.float64, copy=False)

    def _sums(self, rows: Ints, reach: npt.NDArray[Any], lengths: Ints) -> Floats:
        """The gains of units with these rows and similarities, ``lengths`` of each."""
        above = np.subtract(reach, self._best[rows], dtype=np.float64)
        np.maximum(above, 0, out=above)
        above *= self._weights[rows]
        result = np.zeros(len(lengths))
        some = np.flatnonzero(lengths > 0)
        if some.size:
            result[some] = np.add.reduceat(above, (np.cumsum(lengths) - lengths)[some])
        return result

    def _runner_up(self) -> npt.NDArray[Any]:
        """The second best kept similarity of every row; found from scratch the first time."""
        if self._second is None:
            self._second = np.zeros_like(self._best)
            self._owner = np.full(len(self._best), -1, dtype=np.int64)
            self._serve(np.arange(len(self._best)))
        return self._second

    def _serve(self, rows: Ints) -> None:
        """Find the best and second best of these rows from scratch."""
        assert self._second is not None
        self._best[rows], self._second[rows], self._owner[rows] = 0, 0, -1
        starts = self._objective.starts
        entries = _ranges(starts[rows], starts[rows + 1] - starts[rows])
        entries = entries[self.kept[self._objective.units[entries]]]
        row, numbers = self._objective.rows[entries], self._objective.similarity[entries]
        order = np.lexsort((-numbers, row))
        row, entries = row[order], entries[order]
        first = np.flatnonzero(np.diff(row, prepend=-1))
        self._best[row[first]] = self._objective.similarity[entries[first]]
        self._owner[row[first]] = self._objective.units[entries[first]]
        then = first + 1
        then = then[then < len(row)]
        then = then[row[then] == row[then - 1]]
        self._second[row[then]] = self._objective.similarity[entries[then]]


def _neighbours(neighbours: int, n: int) -> int:
    if isinstance(neighbours, bool) or int(neighbours) != neighbours or not 1 <= neighbours <= n:
        raise ValueError(
            f"`neighbours` must be a whole number from 1 to the {n} units, got {neighbours}."
        )
    return int(neighbours)


def _ranges(starts: Ints, lengths: Ints) -> Ints:
    """``starts[0], starts[0] + 1, ...`` of each length, one after another."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.asarray(np.arange(total) + np.repeat(starts - (ends - lengths), lengths))
