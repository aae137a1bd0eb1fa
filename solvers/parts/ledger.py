"""What the counts of all blocks cost, and which changes of them the limits that tie blocks allow."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from cahp_opt.arrays import Bools, Floats, Ints
from cahp_opt.costs.budget import Budget
from cahp_opt.costs.count_table import CountTable
from cahp_opt.rounding import sum_rounding

_ANEW = 256  # moves after which running sums are taken anew
_MOST_ROOMS = 1_000


class Ledger:
    """Counts of all blocks, what they cost in every table that ties blocks, and what may change.

    Every answer is exact. Sums that are kept up to date decide only where they lie farther from a limit
    than they can be off; nearer to it the correctly rounded sum does, see :meth:`CountTable.fits`. What
    a block allows by itself, ``Budget.allowed``, is not asked here.

    Args:
        budget: the limits.
        counts: where to start, ``[blocks]``; they are copied.
    """

    def __init__(self, budget: Budget, counts: Ints) -> None:
        self.tables = budget.coupling
        self.counts: Ints = counts.copy()
        """Units kept in each block, ``[blocks]``; changed by :meth:`move` and :meth:`go_to` alone."""
        self._budget = budget
        self._spent: list[float] | None = None  # up to date, once it was asked for
        self._moves = 0
        # Whole costs have exact sums: with their limit rounded down to one too, nothing is ever near.
        exact = [_is_whole(table) for table in self.tables]
        self._limits = [
            float(np.floor(t.limit)) if e else t.limit
            for t, e in zip(self.tables, exact, strict=True)
        ]
        self.slack: Floats = np.array(
            [0.0 if e else _slack(t) for t, e in zip(self.tables, exact, strict=True)]
        )
        """How far sums of each table's costs may be off, ``[tables]``."""
        self._near: list[float] = self.slack.tolist()
        self._rooms: dict[bytes, Bools] = {}

    def fits(self, *changes: tuple[int, int]) -> bool:
        """Whether every table holds once blocks have other counts.

        Args:
            changes: pairs of a block and the units it would keep; none to ask about the counts as they are.
        """
        for t, spent in enumerate(self._sums()):
            table = self.tables[t]
            over = spent - self._limits[t]
            for block, target in changes:
                costs = table.costs[block]
                over += float(costs[target]) - float(costs[self.counts[block]])
            near = self._near[t]
            if over > near:
                return False
            if near and over >= -near:  # so near the limit that only the exact sum decides
                counts = self.counts.copy()
                for block, target in changes:
                    counts[block] = target
                if not table.fits(counts):
                    return False
        return True

    def move(self, block: int, target: int) -> None:
        """Keep ``target`` units of this block from now on."""
        now = int(self.counts[block])
        self.counts[block] = target
        if self._spent is None:
            return
        self._moves += 1
        if self._moves % _ANEW == 0:
            self._spent = None
            return
        for t, table in enumerate(self.tables):
            costs = table.costs[block]
            self._spent[t] += float(costs[target]) - float(costs[now])

    def go_to(self, counts: Ints) -> None:
        """Have these counts from now on, ``[blocks]``."""
        self.counts[:] = counts
        self._spent = None

    def spare(self) -> Floats:
        """The room left in each table, ``[tables]``; below 0 if it is over its limit."""
        return np.array([table.limit - table.cost(self.counts) for table in self.tables])

    def has_room(self) -> bool:
        """Whether one unit more is sure to fit, in whichever block; if not, a limit is near."""
        return all(
            spent + dearest + near <= limit
            for spent, dearest, near, limit in zip(
                self._sums(), self._dearest, self._near, self._limits, strict=True
            )
        )

    def room(self) -> Bools:
        """Whether one unit may leave block ``a`` and one enter block ``b``, ``[blocks + 1, blocks + 1]``;
        the last row and column stand for none. Not to be written to; it is remembered, since searches
        return to the same counts."""
        key = self.counts.tobytes()
        if key not in self._rooms:
            if len(self._rooms) >= _MOST_ROOMS:
                self._rooms.clear()
            self._rooms[key] = self._find_room()
        return self._rooms[key]

    # -- inside ------------------------------------------------------------------------------------

    def _sums(self) -> list[float]:
        """The cost of the counts in every table, up to ``slack``."""
        if self._spent is None:
            self._spent = [table.cost(self.counts) for table in self.tables]
        return self._spent

    @cached_property
    def _dearest(self) -> list[float]:
        """The most that one unit more can cost, in every table."""
        return [max(float(np.diff(costs).max()) for costs in t.costs) for t in self.tables]

    @cached_property
    def _padded(self) -> tuple[Bools, list[Floats]]:
        """Which counts each block allows, and every table's costs, by block and count + 1: with a margin
        on both sides, so that one more or fewer can be looked up."""
        width = int(self._budget.space.units.max()) + 3
        fine: Bools = _in_rows(self._budget.allowed, width) > 0
        return fine, [_in_rows(table.costs, width) for table in self.tables]

    def _find_room(self) -> Bools:
        blocks, k = len(self.counts), self.counts
        places = np.arange(blocks)
        fine, padded = self._padded
        leave, enter = np.ones(blocks + 1, np.bool_), np.ones(blocks + 1, np.bool_)
        leave[:-1], enter[:-1] = fine[places, k], fine[places, k + 2]
        room: Bools = leave[:, None] & enter[None, :]
        unsure = np.zeros_like(room)
        down, up = np.zeros(blocks + 1), np.zeros(blocks + 1)
        for t, (table, costs) in enumerate(zip(self.tables, padded, strict=True)):
            now = costs[places, k + 1]
            down[:-1], up[:-1] = costs[places, k] - now, costs[places, k + 2] - now
            over = down[:, None] + up[None, :] - (self._limits[t] - table.cost(k))
            room &= over <= self._near[t]
            if self._near[t]:
                unsure |= np.abs(over) <= self._near[t]
        for a, b in zip(*np.nonzero(room & unsure), strict=True):
            counts = k.copy()
            if a < blocks:
                counts[a] -= 1
            if b < blocks:
                counts[b] += 1
            room[a, b] = all(table.fits(counts) for table in self.tables)
        np.fill_diagonal(room, True)
        room[blocks, blocks] = False
        return room


def _in_rows(rows: Sequence[Bools] | Sequence[Floats], width: int) -> Floats:
    """Rows of different lengths in one array, each starting at place 1, zero elsewhere."""
    result = np.zeros((len(rows), width))
    for b, row in enumerate(rows):
        result[b, 1 : len(row) + 1] = row
    return result


def _is_whole(table: CountTable) -> bool:
    """Whether all costs are whole numbers whose sums are exact in double precision."""
    costs = np.array([table.fixed, *np.concatenate(table.costs)])
    return bool(np.all(costs == np.rint(costs)) and np.abs(costs).sum() < 2**53)


def _slack(table: CountTable) -> float:
    """How far a sum of these costs may be off that was exact at most ``_ANEW`` moves ago."""
    largest = table.fixed + abs(table.limit) + sum(float(costs.max()) for costs in table.costs)
    return sum_rounding(largest, 2 * _ANEW)
