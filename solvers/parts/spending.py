"""What counts cost, kept up to date block by block."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cahp_opt.arrays import Ints
from cahp_opt.costs.budget import Budget

_NEAR = 1e-12  # costs this near to a limit, as a share of it, are summed exactly
_ANEW = 256  # moves after which running sums are taken anew, long before they are off by that share


class Spending:
    """Counts of all blocks that change one block at a time, within the limits that tie blocks.

    Asking and moving take time by the number of tables, not by the number of blocks.

    Args:
        budget: the limits.
        counts: where to start, ``[blocks]``; they are copied.
    """

    def __init__(self, budget: Budget, counts: Ints) -> None:
        self._tables = budget.coupling
        self.counts: Ints = counts.copy()
        self._spent = self._anew()
        self._moves = 0
        # Sums of whole numbers are exact, and never need a second look.
        self._near = [
            -1.0 if whole([t.fixed, *np.concatenate(t.costs)]) else _NEAR * abs(t.limit)
            for t in self._tables
        ]

    def fits(self, block: int, target: int) -> bool:
        """Whether every table still holds with ``target`` units in this block."""
        now = int(self.counts[block])
        for table, spent, near in zip(self._tables, self._spent, self._near, strict=True):
            costs = table.costs[block]
            rough = spent + float(costs[target]) - float(costs[now])
            if abs(rough - table.limit) > near:
                if rough > table.limit:
                    return False
                continue
            counts = self.counts.copy()  # so near the limit that only the exact sum can tell
            counts[block] = target
            if not table.fits(counts):
                return False
        return True

    def move(self, block: int, target: int) -> None:
        """Keep ``target`` units of this block from now on."""
        now = int(self.counts[block])
        self.counts[block] = target
        self._moves += 1
        if self._moves % _ANEW:
            for t, table in enumerate(self._tables):
                costs = table.costs[block]
                self._spent[t] += float(costs[target]) - float(costs[now])
        else:
            self._spent = self._anew()

    def _anew(self) -> list[float]:
        return [table.cost(self.counts) for table in self._tables]


def whole(numbers: npt.ArrayLike) -> bool:
    """Whether all are whole numbers whose sums are exact in double precision."""
    array = np.asarray(numbers, dtype=np.float64)
    return bool(np.all(array == np.rint(array)) and np.abs(array).sum() < 2**53)
