"""Which single units may leave and enter which blocks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cahp_opt.arrays import Bools, Floats, Ints
from cahp_opt.costs.budget import Budget
from cahp_opt.costs.count_table import CountTable

_MOST_ROOMS = 1_000


class Rooms:
    """The room around counts within a budget, remembered: searches return to the same ones.

    Args:
        budget: the limits.
    """

    def __init__(self, budget: Budget) -> None:
        self._tables = budget.coupling
        # By block and count + 1, with a margin on both sides, so that one more or fewer can be looked up.
        widest = int(budget.space.units.max()) + 3
        self._fine: Bools = _padded(budget.allowed, widest) > 0
        self._costs = [_padded(table.costs, widest) for table in self._tables]
        self.slack: Floats = np.array([_rounding(table) for table in self._tables])
        """How far sums of each table's costs may be off, ``[tables]``."""
        self._known: dict[bytes, Bools] = {}

    def at(self, counts: Ints) -> Bools:
        """Whether one unit may leave block ``a`` and one enter block ``b``, ``[blocks + 1, blocks + 1]``;
        the last row and column stand for none. Not to be written to."""
        key = counts.tobytes()
        if key not in self._known:
            if len(self._known) >= _MOST_ROOMS:
                self._known.clear()
            self._known[key] = self._find(counts)
        return self._known[key]

    def spare(self, counts: Ints) -> Floats:
        """What each tying table leaves to spend, ``[tables]``."""
        return np.array([table.limit - table.cost(counts) for table in self._tables])

    def _find(self, given: Ints) -> Bools:
        blocks = len(given)
        places, k = np.arange(blocks), given
        leave, enter = np.ones(blocks + 1, np.bool_), np.ones(blocks + 1, np.bool_)
        leave[:-1], enter[:-1] = self._fine[places, k], self._fine[places, k + 2]
        room: Bools = leave[:, None] & enter[None, :]
        unsure = np.zeros_like(room)
        down, up = np.zeros(blocks + 1), np.zeros(blocks + 1)
        for costs, spare, slack in zip(self._costs, self.spare(given), self.slack, strict=True):
            now = costs[places, k + 1]
            down[:-1], up[:-1] = costs[places, k] - now, costs[places, k + 2] - now
            over = down[:, None] + up[None, :] - spare
            room &= over <= slack
            unsure |= np.abs(over) <= slack
        for a, b in zip(*np.nonzero(room & unsure), strict=True):
            counts = given.copy()
            if a < blocks:
                counts[a] -= 1
            if b < blocks:
                counts[b] += 1
            room[a, b] = all(table.fits(counts) for table in self._tables)
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
