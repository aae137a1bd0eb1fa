"""A quadratic form with a split of it and the oracle of the exact part: every point proves a bound.

With ``f(x) = q(x) - x' R x``, ``q`` exact in the oracle and ``R`` positive semidefinite, every point
``y`` proves ``max f <= y' R y + max over the budget of q(x) - 2 (R y) @ x``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from cahp_opt.arrays import Floats
from cahp_opt.bounds.convex_split import ConvexSplit
from cahp_opt.bounds.oracle import MOST_TABULATED, Oracle, Vertex
from cahp_opt.costs.budget import Budget
from cahp_opt.objective import QuadraticForm
from cahp_opt.rounding import sum_rounding
from cahp_opt.space import HeadSpace
from cahp_opt.subsets import subset_values


@dataclass(frozen=True, eq=False)
class SplitForm:
    """``form`` as ``q(x) - x' R x``: ``oracle`` maximises ``q`` plus weights, ``split.rest`` is ``R``."""

    form: QuadraticForm
    split: ConvexSplit
    oracle: Oracle

    @staticmethod
    def of(
        budget: Budget,
        form: QuadraticForm,
        split: ConvexSplit,
        deadline: float = math.inf,
        *,
        every: bool = False,
    ) -> SplitForm:
        """The form with a new oracle.

        Args:
            budget: the limits.
            form: the objective.
            split: any split of it.
            deadline: that of the oracle.
            every: tabulate every block that is small enough, not only those with pairs inside.
        """
        values, base = _exact_part(budget.space, form, split, every)
        return SplitForm(form, split, Oracle(budget, values, base, deadline))

    def bound_at(self, point: Floats) -> tuple[float, Vertex]:
        """The bound that a point of the unit cube proves, ``[n]``, and the keep-set that attains it."""
        pull, constant = self._tangent(point)
        vertex = self.oracle.best(-2 * pull)
        return constant + vertex.bound + self.split.excess + self._rounding, vertex

    def hopeful(self, point: Floats, floor: float) -> SplitForm:
        """The same without the subsets of blocks that no keep-set worth at least ``floor`` can hold, by
        the bound that a point proves, ``[n]``."""
        pull, constant = self._tangent(point)
        worth = floor - (constant + self.split.excess)
        return replace(self, oracle=self.oracle.hopeful(-2 * pull, worth))

    def fixing(self, unit: int, kept: bool) -> SplitForm:
        """The same with one unit kept, or left out, for good."""
        return replace(self, oracle=self.oracle.fixing(unit, kept))

    def resplit(self, space: HeadSpace, split: ConvexSplit) -> SplitForm:
        """The same choices under another split, with every block tabulated that is small enough."""
        values, base = _exact_part(space, self.form, split, every=True)
        return SplitForm(self.form, split, self.oracle.revalued(values, base))

    def _tangent(self, point: Floats) -> tuple[Floats, float]:
        """The rest at a point, ``R y``, ``[n]``, and the constant of the form linearised there."""
        pull: Floats = self.split.rest @ point
        return pull, self.form.constant + float(point @ pull)

    @cached_property
    def _rounding(self) -> float:
        """A bound on the rounding error of sums of these terms."""
        form, split = self.form, self.split
        size = float(
            np.abs(form.linear).sum() + np.abs(split.inside).sum() + 3 * np.abs(split.rest).sum()
        )
        return sum_rounding(size + abs(form.constant))


def _exact_part(
    space: HeadSpace, form: QuadraticForm, split: ConvexSplit, every: bool
) -> tuple[list[Floats | None], Floats]:
    """Tables of blocks by subset code, ``[2^units]`` or None, and weights of the other units, ``[n]``."""
    inside = split.inside
    off = inside - np.diag(np.diagonal(inside))
    values: list[Floats | None] = []
    weights = form.linear + np.diagonal(inside)
    for where in space.slices:
        units = where.stop - where.start
        if units <= MOST_TABULATED and (every or np.any(off[where, where])):
            values.append(subset_values(form.linear[where], inside[where, where]))
            weights[where] = 0.0
        else:
            values.append(None)
    return values, weights
