"""Going down to the budget: giving up what is worth least per cost saved."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from cahp_opt.arrays import Floats, Ints
from cahp_opt.solvers.parts.neighbourhood import Neighbourhood
from cahp_opt.solvers.parts.plateaus import plateau_ends


class _Drop(NamedTuple):
    """Dropping ``units`` of one block; ``losses[i]`` is what the first ``i + 1`` of them lose."""

    units: list[int]
    losses: Floats


class Descent:
    """The way of a keep-set down to the budget.

    Args:
        here: the keep-set, changed in place; every block's count is one allowed for it alone.
        lookahead: how many previous plateau ends of a block are considered.
    """

    def __init__(self, here: Neighbourhood, lookahead: int) -> None:
        self.here, self._budget = here, here.budget
        self._lookahead = lookahead
        self._ends = plateau_ends(here.budget)
        self._lazy = here.problem.objective.submodular
        self._steps: list[_Drop | None] = [None] * len(here.counts)

    def to_budget(self, deadline: float, closed: Collection[int] = ()) -> bool:
        """Step down until the budget is met; whether that came before the deadline.

        Args:
            deadline: the ``time.monotonic()`` after which the counts go to the cheapest at once.
            closed: blocks that give up nothing as long as others can.
        """
        self._steps = [None] * len(self.here.counts)
        over = np.maximum(-self.here.ledger.spare(), 0.0)
        while not self.here.ledger.fits():
            in_time = time.monotonic() <= deadline
            units = self._cheapest_step(over, closed) if in_time else None
            if units is None and closed and in_time:
                closed = ()
                continue
            if units is None:
                self.go_to(self._budget.cheapest)
                return in_time
            for unit in units:
                self.here.flip(unit)
            over = np.maximum(-self.here.ledger.spare(), 0.0)
        return True

    def _cheapest_step(self, over: Floats, closed: Collection[int]) -> list[int] | None:
        """The units whose loss per saved cost is least; None if nothing saves.

        For a submodular objective losses only grow on the way down, so that old ones are at least
        as hopeful as new ones, and only the most hopeful block is evaluated anew.
        """
        fresh = [False] * len(self._steps)
        if not self._lazy:
            self._steps = [None] * len(self._steps)
        rates: list[tuple[float, int] | None] = [None] * len(self._steps)
        while True:
            for b, step in enumerate(self._steps):
                if b in closed:
                    continue
                if step is None:
                    self._steps[b], fresh[b] = self._evaluate(b), True
                    rates[b] = None
                if rates[b] is None:
                    rates[b] = self._rate(b, over)
            saving = [(rate[0], b, rate[1]) for b, rate in enumerate(rates) if rate and rate[1]]
            if not saving:
                return None
            _, block, length = min(saving)
            chosen = self._steps[block]
            if fresh[block] and chosen is not None:
                self._steps[block] = None
                return chosen.units[:length]
            self._steps[block] = None

    def _evaluate(self, block: int) -> _Drop:
        """The least useful units of a block one by one, down to the last plateau end considered."""
        targets = self._targets(block)
        here, units = self.here, list[int]()
        losses: list[float] = []
        total = 0.0
        for _ in range(int(here.counts[block]) - min(targets, default=int(here.counts[block]))):
            unit, gain = here.best_flip(block, kept=True)
            total -= gain
            here.tracker.remove(unit)
            units.append(unit)
            losses.append(total)
        for unit in reversed(units):
            here.tracker.add(unit)
        return _Drop(units, np.array(losses))

    def _rate(self, block: int, over: Floats) -> tuple[float, int]:
        """The least loss per saved cost over the targets of a block, and how many units it drops
        (0 if nothing saves). Savings are shares of what each table is over its limit by."""
        step = self._steps[block]
        count = int(self.here.counts[block])
        best = (np.inf, 0)
        for target in self._targets(block):
            saved = 0.0
            for table, excess in zip(self.here.ledger.tables, over, strict=True):
                if excess > 0:
                    cost = table.costs[block]
                    saved += min(1.0, float(cost[count] - cost[target]) / float(excess))
            if saved > 0 and step is not None:
                loss = float(step.losses[count - target - 1])
                # A loss below 0 is a gain: then more of it is better, whatever it saves.
                rate = loss / saved if loss > 0 else loss
                best = min(best, (rate, count - target))
        return best

    def _targets(self, block: int) -> list[int]:
        fine = self._budget.allowed[block] & self._ends[block]
        below = range(int(self.here.counts[block]) - 1, -1, -1)
        found = [k for k in below if fine[k]]
        cheaper = [k for k in found if self._saves(block, k)]
        return cheaper[: self._lookahead]

    def _saves(self, block: int, target: int) -> bool:
        now = int(self.here.counts[block])
        return any(t.costs[block][target] < t.costs[block][now] for t in self.here.ledger.tables)

    def go_to(self, counts: Ints) -> None:
        """Reach these counts, ``[blocks]``, by dropping the least useful units and adding the most
        useful ones."""
        for b, target in enumerate(counts):
            while self.here.counts[b] != target:
                self.here.flip(self.here.best_flip(b, kept=bool(self.here.counts[b] > target))[0])
