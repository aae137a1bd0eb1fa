"""Graph cut: similar to everything, and not to one another."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from cahp_opt.arrays import Bools, Floats, Ints
from cahp_opt.objective import Objective, QuadraticForm
from cahp_opt.objectives.similarities import Matrix, checked_matrix, sum_rows, symmetric


@dataclass(frozen=True, eq=False)
class GraphCut(Objective):
    """``sum over all i, kept j of similarity[i, j] - redundancy * sum over kept i, j of
    similarity[i, j]`` (Lin and Bilmes 2010, "Multi-document summarization via budgeted maximization of
    submodular functions"). With ``redundancy`` 1 it is the cut between the kept units and the
    others.

    The second sum counts every pair in both orders, and every unit with itself. submodlib's
    ``GraphCutFunction`` is the same function with ``lambdaVal`` for ``redundancy``; apricot's
    ``GraphCutSelection`` is ``alpha`` times this with ``redundancy = 1 / alpha`` (its default
    ``alpha`` is 1, the cut; the default here is an ``alpha`` of 2).

    Args:
        similarity: symmetric, at least 0, shape ``[n, n]``; a float32 array that is symmetric to the
            bit is held as it is, without a copy.
        redundancy: weight of the similarity among kept units, at least 0.

    Raises:
        ValueError: for NaN, infinity, negative numbers, a wrong shape or an asymmetric matrix.
    """

    similarity: Matrix
    redundancy: float

    def __init__(self, similarity: npt.ArrayLike, redundancy: float = 0.5) -> None:
        matrix = symmetric(checked_matrix(similarity, "similarity", "[n, n]"), "similarity")
        if not (np.isfinite(redundancy) and redundancy >= 0):
            raise ValueError(f"`redundancy` must be finite and at least 0, got {redundancy}.")
        object.__setattr__(self, "similarity", matrix)
        object.__setattr__(self, "redundancy", float(redundancy))

    @cached_property
    def sums(self) -> Floats:
        """The similarity of each unit to all, ``[n]``."""
        return np.asarray(self.similarity.sum(axis=1, dtype=np.float64))

    @cached_property
    def own(self) -> Floats:
        """The similarity of each unit to itself, ``[n]``."""
        return np.diagonal(self.similarity).astype(np.float64)

    @property
    def n(self) -> int:
        return len(self.similarity)

    @property
    def monotone(self) -> bool:
        """True if every unit still gains beside all others."""
        return bool(np.all(self.sums - self.redundancy * (2 * self.sums - self.own) >= 0))

    @property
    def submodular(self) -> bool:
        return True

    def value(self, kept: Bools) -> float:
        inside = float(sum_rows(self.similarity, kept)[kept].sum())
        return float(self.sums[kept].sum()) - self.redundancy * inside

    def tracker(self, kept: Bools) -> GraphCutTracker:
        return GraphCutTracker(self, kept)

    def linear(self) -> Floats | None:
        off_diagonal = np.count_nonzero(self.similarity) > np.count_nonzero(self.own)
        if self.redundancy and off_diagonal:
            return None
        return self.sums - self.redundancy * self.own

    def quadratic(self) -> QuadraticForm:
        return QuadraticForm(self.sums, -self.redundancy * self.similarity.astype(np.float64))


class GraphCutTracker:
    """Follows graph cut by the similarity of every unit to the kept."""

    def __init__(self, objective: GraphCut, kept: Bools) -> None:
        self._similarity, self._own = objective.similarity, objective.own
        self._alone = objective.sums - objective.redundancy * objective.own
        self._twice = 2 * objective.redundancy
        self.kept: Bools = np.array(kept, dtype=np.bool_)
        self._inside = sum_rows(self._similarity, self.kept)
        self.value = objective.value(self.kept)

    def gain(self, unit: int) -> float:
        if self.kept[unit]:
            others = self._inside[unit] - self._own[unit]
            return -float(self._alone[unit] - self._twice * others)
        return float(self._alone[unit] - self._twice * self._inside[unit])

    def gains(self, units: Ints | None = None) -> Floats:
        some = slice(None) if units is None else units
        kept = self.kept[some]
        others = self._inside[some] - np.where(kept, self._own[some], 0)
        worth = self._alone[some] - self._twice * others
        return np.where(kept, -worth, worth)

    def add(self, unit: int) -> None:
        self.value += self.gain(unit)
        self.kept[unit] = True
        self._inside += self._similarity[unit]

    def remove(self, unit: int) -> None:
        self.value += self.gain(unit)
        self.kept[unit] = False
        self._inside -= self._similarity[unit]
