"""A keep-set within the budget, and which small changes stay within it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cahp_opt.count_table import CountTable
from cahp_opt.heads import Bools, Floats, Ints
from cahp_opt.problem import Problem

CLOSE = 1e-10
"""Changes of the value below this share of its scale are rounding, not improvement."""

_MOST_ROOMS = 1_000


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
        # By block and count + 1, with a margin on both sides, so that one more or fewer can be looked up.
        widest = int(self.space.units.max()) + 3
        self._fine: Bools = _padded(self.budget.allowed, widest) > 0
        self._costs = [_padded(table.costs, widest) for table in self.tables]
        self._slack: Floats = np.array([_rounding(table) for table in self.tables])
        self._rooms: dict[bytes, Bools] = {}  # by counts: searches return to the same ones

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
        gains = np.array([self.tracker.gain(int(unit)) for unit in units])
        place = int(gains.argmax())
        return int(units[place]), float(gains[place])

    def move_to(self, kept: Bools) -> None:
        """Go to another keep-set within the budget; starts the tracker over."""
        self.tracker = self.problem.objective.tracker(kept)
        self.counts = self.space.counts(kept)

    def room(self) -> Bools:
        """Whether one unit may leave block ``a`` and one enter block ``b``, ``[blocks + 1, blocks + 1]``;
        the last row and column stand for none. Not to be written to."""
        key = self.counts.tobytes()
        if key not in self._rooms:
            if len(self._rooms) >= _MOST_ROOMS:
                self._rooms.clear()
            self._rooms[key] = self._find_room()
        return self._rooms[key]

    def fits(self, counts: Ints) -> bool:
        """Whether counts that every block allows alone are within the limits that tie blocks."""
        return all(table.fits(counts) for table in self.tables)

    def spare(self) -> Floats:
        """What each tying table leaves to spend, ``[tables]``."""
        return np.array([table.limit - table.cost(self.counts) for table in self.tables])

    def slack(self) -> Floats:
        """How far sums of each table's costs may be off, ``[tables]``."""
        return self._slack

    def _find_room(self) -> Bools:
        blocks = len(self.counts)
        places, k = np.arange(blocks), self.counts
        leave, enter = np.ones(blocks + 1, np.bool_), np.ones(blocks + 1, np.bool_)
        leave[:-1], enter[:-1] = self._fine[places, k], self._fine[places, k + 2]
        room: Bools = leave[:, None] & enter[None, :]
        unsure = np.zeros_like(room)
        down, up = np.zeros(blocks + 1), np.zeros(blocks + 1)
        for costs, spare, slack in zip(self._costs, self.spare(), self.slack(), strict=True):
            now = costs[places, k + 1]
            down[:-1], up[:-1] = costs[places, k] - now, costs[places, k + 2] - now
            over = down[:, None] + up[None, :] - spare
            room &= over <= slack
            unsure |= np.abs(over) <= slack
        for a, b in zip(*np.nonzero(room & unsure), strict=True):
            counts = self.counts.copy()
            if a < blocks:
                counts[a] -= 1
            if b < blocks:
                counts[b] += 1
            room[a, b] = self.fits(counts)
        np.fill_diagonal(room, True)
        room[blocks, blocks] = False
        return room


def _padded(rows: Sequence[Bools] | Sequence[Floats], width: int) -> Floats:
    """Rows of different lengths in one array, each starting at place 1, zero elsewhere."""
    result = np.zeros((len(rows), width))
    for b, row in enumerate(rows):
        result[b, 1 : len(row) + 1] = row
    return result


def _rounding(table: CountTable) -> float:
    """How far a plain floating-point sum of a table's costs may lie from the exact one."""
    largest = table.fixed + abs(table.limit) + sum(float(cost.max()) for cost in table.costs)
    return 4 * (len(table.costs) + 2) * float(np.finfo(np.float64).eps) * largest
