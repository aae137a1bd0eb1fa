"""A keep-set within the budget, and which small changes stay within it."""

from __future__ import annotations

import numpy as np

from cahp_opt.arrays import Bools, Floats, Ints
from cahp_opt.problem import Problem
from cahp_opt.solvers.parts.ledger import Ledger

CLOSE = 1e-10
"""Changes of the value below this share of its scale are rounding, not improvement."""


class Neighbourhood:
    """A keep-set that moves inside the budget.

    Args:
        problem: the objective and the budget.
        kept: the start, within the budget, bool ``[n]``.
    """

    def __init__(self, problem: Problem, kept: Bools) -> None:
        self.problem, self.space, self.budget = problem, problem.space, problem.budget
        self.tracker = problem.objective.tracker(kept)
        self.ledger = Ledger(problem.budget, self.space.counts(kept))

    @property
    def kept(self) -> Bools:
        """The current keep-set, bool ``[n]``; a copy."""
        return self.tracker.kept.copy()

    @property
    def counts(self) -> Ints:
        """The units kept in each block, ``[blocks]``; not to be written to."""
        return self.ledger.counts

    def tolerance(self, gains: Floats) -> float:
        """The smallest gain of a move that counts, given the current gains ``[n]``."""
        return CLOSE * max(abs(self.tracker.value), float(np.abs(gains).max()))

    def flip(self, unit: int) -> None:
        """Add a unit that is out, or remove one that is kept."""
        block = int(self.space.block_of[unit])
        if self.tracker.kept[unit]:
            self.tracker.remove(unit)
            self.ledger.move(block, int(self.counts[block]) - 1)
        else:
            self.tracker.add(unit)
            self.ledger.move(block, int(self.counts[block]) + 1)

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
        """Go to another keep-set within the budget, bool ``[n]``; starts the tracker over."""
        self.tracker = self.problem.objective.tracker(kept)
        self.ledger.go_to(self.space.counts(kept))
