"""Moving a plateau of latency from one block to another.

Under a staircase, swaps of single units hardly move latency between blocks: the first unit of a stair
pays for all of it. An exchange takes one block down to one of its previous plateau ends and spends what
that saves on filling another block up to one of its next plateau ends.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np

from cahp_opt.arrays import Floats
from cahp_opt.solvers.parts.neighbourhood import Neighbourhood
from cahp_opt.solvers.parts.plateaus import plateau_ends


class Exchange(NamedTuple):
    """Block ``down`` goes to ``low`` units and block ``up`` to ``high``; what that should gain."""

    down: int
    low: int
    up: int
    high: int
    hope: float


class Exchanges:
    """The exchanges between blocks around a keep-set.

    Args:
        here: the keep-set.
        reach: how many plateau ends down and up an exchange may go.
    """

    def __init__(self, here: Neighbourhood, reach: int = 2) -> None:
        self._here, self._reach = here, reach
        self._ends = plateau_ends(here.budget)

    def hopeful(self, least: float, deadline: float) -> list[Exchange]:
        """The exchanges that fit and whose single gains add up to more than ``least``, best first.

        Losses are those of removing the least useful units one by one; gains are taken beside what
        is left, without the interplay of the entering units.
        """
        here = self._here
        found: list[Exchange] = []
        targets = [self._higher(b) for b in range(len(here.counts))]
        ups = [(b, k) for b, highs in enumerate(targets) for k in highs]
        if not ups:
            return found
        where = np.array(ups, dtype=np.int64)
        tables = here.ledger.tables
        extra: Floats = np.array(
            [[float(t.costs[b][k] - t.costs[b][here.counts[b]]) for t in tables] for b, k in ups]
        ).reshape(len(ups), len(tables))
        most = here.ledger.spare() + here.ledger.slack
        for down in range(len(here.counts)):
            if time.monotonic() > deadline:
                return []
            start = int(here.counts[down])
            removed: list[int] = []
            loss = 0.0
            for low in self._lower(down):
                while start - len(removed) > low:
                    unit, change = here.best_flip(down, kept=True)
                    loss += change
                    here.tracker.remove(unit)
                    removed.append(unit)
                freed = np.array([t.costs[down][start] - t.costs[down][low] for t in tables])
                fits = np.all(extra <= most + freed, axis=1) & (where[:, 0] != down)
                if not fits.any():
                    continue
                best = self._best_sums(here.tracker.gains())
                for place in np.flatnonzero(fits):
                    b, k = ups[place]
                    hope = loss + float(best[b][k - here.counts[b] - 1])
                    if hope > least:
                        found.append(Exchange(down, low, b, k, hope))
            for unit in reversed(removed):
                here.tracker.add(unit)
        return sorted(found, key=lambda exchange: -exchange.hope)

    def units(self, exchange: Exchange) -> tuple[list[int], float] | None:
        """The units to flip for an exchange and what that gains exactly; None if it does not fit."""
        here = self._here
        if not here.ledger.fits((exchange.down, exchange.low), (exchange.up, exchange.high)):
            return None
        flipped: list[int] = []
        gain = 0.0
        for _ in range(int(here.counts[exchange.down]) - exchange.low):
            unit, change = here.best_flip(exchange.down, kept=True)
            gain += change
            here.tracker.remove(unit)
            flipped.append(unit)
        for _ in range(exchange.high - int(here.counts[exchange.up])):
            unit, change = here.best_flip(exchange.up, kept=False)
            gain += change
            here.tracker.add(unit)
            flipped.append(unit)
        for unit in reversed(flipped):
            (here.tracker.remove if here.tracker.kept[unit] else here.tracker.add)(unit)
        return flipped, gain

    def make_one(self, deadline: float) -> bool:
        """Make the first exchange, in the order of hope, that gains; whether there was one."""
        tolerance = self._here.tolerance(self._here.tracker.gains())
        for exchange in self.hopeful(tolerance, deadline):
            if time.monotonic() > deadline:
                return False
            known = self.units(exchange)
            if known is not None and known[1] > tolerance:
                for unit in known[0]:
                    self._here.flip(unit)
                return True
        return False

    # -- inside ------------------------------------------------------------------------------------

    def _lower(self, block: int) -> list[int]:
        return self._next(block, range(int(self._here.counts[block]) - 1, -1, -1))

    def _higher(self, block: int) -> list[int]:
        last = len(self._ends[block])
        return self._next(block, range(int(self._here.counts[block]) + 1, last))

    def _next(self, block: int, counts: range) -> list[int]:
        fine = self._here.budget.allowed[block] & self._ends[block]
        return [k for k in counts if fine[k]][: self._reach]

    def _best_sums(self, gains: Floats) -> list[Floats]:
        """For every block the sums of its largest gains from outside units."""
        kept = self._here.tracker.kept
        return [
            np.cumsum(np.sort(gains[where][~kept[where]])[::-1])
            for where in self._here.space.slices
        ]
