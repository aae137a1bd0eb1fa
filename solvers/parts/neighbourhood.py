"""A keep-set within the budget, and which small changes stay within it."""

from __future__ import annotations

import numpy as np

from cahp_opt.arrays import Bools, Floats, Ints
from cahp_opt.problem import Problem
from cahp_opt.solvers.parts.rooms import Rooms

CLOSE = 1e-10
"""Changes of the value below this share of its scale are rounding, not improvement."""


class Neighbourhood:
    """A keep-set that moves inside the budget.

    Args:
        problem: what to maximise, within what.
        kept: the start, within the budget, bool ``[n]``.
    """

    def __init__(self, problem: Problem, kept: Bools) -> None:
        self.problem, self.space, self.budget = problem, problem.space, problem.budget
        self.tracker = problem.objective.tracker(kept)
        self.counts: Ints = self.space.counts(kept)
        self.tables = self.budget.coupling
        self._rooms = Rooms(problem.budget)

    @property
    def kept(self) -> Bools:
        """The current keep-set, bool ``[n]``; a copy."""
        return self.tracker.kept.copy()

    def tolerance(self, gains: Floats) -> float:
        """What a move must gain to count, given the current gains ``[n]``."""
        return CLOSE * max(abs(self.tracker.value), float(np.abs(gains).max()))

    def flip(self, unit: int) -> None:
        """Add a unit that is out, or remove one that is kept."""
        block = self.space.block_of[unit]
        if self.tracker.kept[unit]:
            self.tracker.remove(unit)
            self.counts[block] -= 1
        else:
            self.tracker.add(unit)
            self.counts[block] += 1

    def swap(self, leaving: int, entering: int) -> None:
        """Flip two units, of which ``n`` stands for none."""
        for unit in (leaving, entering):
            if unit < self.space.n:
                self.flip(unit)

    def best_flip(self, block: int, *, kept: bool) -> tuple[int, float]:
        """The unit of a block whose flip gains most, among those kept or those outside; and its gain."""
        where = self.space.slices[block]
        units = where.start + np.flatnonzero(self.tracker.kept[where] == kept)
        gains = self.tracker.gains(units)
        place = int(gains.argmax())
        return int(units[place]), float(gains[place])

    def move_to(self, kept: Bools) -> None:
        """Go to another keep-set within the budget; starts the tracker over."""
        self.tracker = self.problem.objective.tracker(kept)
        self.counts = self.space.counts(kept)

    def room(self) -> Bools:
        """Whether one unit may leave block ``a`` and one enter block ``b``, ``[blocks + 1, blocks + 1]``;
        the last row and column stand for none. Not to be written to."""
        return self._rooms.at(self.counts)

    def fits(self, counts: Ints) -> bool:
        """Whether counts that every block allows alone are within the limits that tie blocks."""
        return all(table.fits(counts) for table in self.tables)

    def spare(self) -> Floats:
        """What each tying table leaves to spend, ``[tables]``."""
        return self._rooms.spare(self.counts)

    def slack(self) -> Floats:
        """How far sums of each table's costs may be off, ``[tables]``."""
        return self._rooms.slack
