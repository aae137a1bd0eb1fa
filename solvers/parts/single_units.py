"""Greedy one unit at a time, where every unit costs the same: the classical case, made fast."""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from cahp_opt.arrays import Bools, Ints
from cahp_opt.costs.budget import Budget
from cahp_opt.objective import Tracker
from cahp_opt.problem import Problem
from cahp_opt.solver import Proposal, Status
from cahp_opt.solvers.parts.filling import filled_up
from cahp_opt.solvers.parts.ledger import Ledger

_TIE = 1e-10  # two sums of the same numbers in another order are the same gain
_BATCH = 8  # old gains looked at anew together at first; more and more while none stands
_LOWEST = -float(np.finfo(np.float64).max)  # what is open gains more, what is closed minus infinity
_SHARE = 64  # the list of the most promising holds one unit in this many


def costs_alike(budget: Budget) -> bool:
    """Whether every next unit of every block costs the same, in every table that ties blocks.

    Then no step of several units can beat the best single unit of a submodular objective.
    """
    if not budget.coupling:
        return False
    for allowed, least in zip(budget.allowed, budget.cheapest, strict=True):
        open_counts = np.flatnonzero(allowed)
        if least != open_counts[0] or len(open_counts) != open_counts[-1] - least + 1:
            return False
    dear = False
    for table in budget.coupling:
        prices = np.concatenate([np.diff(costs) for costs in table.costs])
        if np.ptp(prices) > 1e-12 * abs(prices[0]) or prices[0] < 0:
            return False
        dear |= bool(prices[0] > 0)
    return dear


def climb_units(problem: Problem, *, lazy: bool, deadline: float) -> Proposal:
    """Add the unit of the largest gain until none fits or gains; the first among equals.

    Args:
        problem: a submodular objective within a budget for which :func:`costs_alike` holds.
        lazy: look again only at units whose old gain can still be the largest.
        deadline: the ``time.monotonic()`` at which to stop.
    """
    space = problem.space
    tracker = problem.objective.tracker(np.zeros(space.n, dtype=np.bool_))
    gains = _LazyGains(tracker) if lazy else _AllGains(tracker)
    ledger = Ledger(problem.budget, np.zeros(len(space.blocks), dtype=np.int64))
    most = np.array([int(np.flatnonzero(fine)[-1]) for fine in problem.budget.allowed])

    def proposal(kept: Bools, status: Status = Status.FEASIBLE) -> Proposal:
        return Proposal(kept.copy(), status=status, stats={"evaluations": gains.evaluations})

    missing = problem.budget.cheapest.copy()
    while missing.any():  # the counts without which the budget is not met, best units first
        unit, _ = gains.best(missing[space.block_of] > 0)
        gains.add(unit)
        block = int(space.block_of[unit])
        ledger.move(block, int(ledger.counts[block]) + 1)
        missing[block] -= 1
    for b in _full(ledger, most, range(len(most))):
        gains.close(space.slices[b])
    while True:
        if time.monotonic() > deadline:
            return proposal(filled_up(problem, tracker.kept, tracker.gains()), Status.TIME_LIMIT)
        unit, gain = gains.best(None)
        if not gain > 0:  # also where every block is closed
            return proposal(tracker.kept)
        gains.add(unit)
        block = int(space.block_of[unit])
        ledger.move(block, int(ledger.counts[block]) + 1)
        # While no limit is near, only this block can have filled up.
        for b in _full(ledger, most, [block] if ledger.has_room() else range(len(most))):
            gains.close(space.slices[b])


def _full(ledger: Ledger, most: Ints, blocks: Iterable[int]) -> list[int]:
    """Those of the blocks that may take no unit more."""
    return [
        b
        for b in blocks
        if ledger.counts[b] >= most[b] or not ledger.fits((b, int(ledger.counts[b]) + 1))
    ]


class _AllGains:
    """Every gain anew after every addition."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._closed: Bools = np.zeros(len(tracker.kept), dtype=np.bool_)
        self.evaluations = 0

    def best(self, only: Bools | None) -> tuple[int, float]:
        """The unit of the largest gain among open ones (and ``only`` those), and its gain."""
        self.evaluations += len(self._closed)
        shut = self._closed if only is None else self._closed | ~only
        gains = np.where(shut, -np.inf, self._tracker.gains())
        top = float(gains.max())
        unit = int(np.argmax(gains >= top - _TIE * abs(top))) if np.isfinite(top) else 0
        return unit, float(gains[unit])

    def add(self, unit: int) -> None:
        self._tracker.add(unit)
        self._closed[unit] = True

    def close(self, where: slice) -> None:
        """Units that may no longer enter."""
        self._closed[where] = True


class _LazyGains:
    """Old gains bound new ones: look again only at those that may still be the largest (Minoux 1978).

    A short list of the most promising units is searched in each step; it is drawn up again when all
    in it have fallen behind the others.
    """

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        n = len(tracker.kept)
        self._gains = np.array(tracker.gains(), dtype=np.float64)  # minus infinity once closed
        self._seen = np.zeros(n, dtype=np.int64)  # the step in which a gain was last evaluated
        self._step = 0
        self._standing = _LOWEST  # the largest gain that was evaluated in this step
        self._length = max(64, n // _SHARE)
        self._list: npt.NDArray[np.intp]
        self._others: float  # no unit outside the list has a larger old gain
        self._draw_up(self._length)
        self.evaluations = n

    def best(self, only: Bools | None) -> tuple[int, float]:
        """The unit of the largest gain among open ones (and ``only`` those), and its gain."""
        if only is not None:
            return self._best_of(only)
        size, length = _BATCH, self._length
        while True:
            old = self._gains.take(self._list)
            top = float(old[old.argmax()])
            if top == -np.inf and self._others == -np.inf:
                return 0, -np.inf
            least = top - _TIE * abs(top) if top > -np.inf else top
            if self._others >= least:
                self._draw_up(length)
                length *= 2  # equals may fill any list
                continue
            near = (old >= least).nonzero()[0]
            unit = int(self._list[near[0]])
            if self._seen[unit] == self._step:
                return unit, float(self._gains[unit])
            if len(near) == 1:  # of equals, the first that stands is taken
                near = old.argpartition(-size)[-size:] if size < len(old) else np.arange(len(old))
            units = self._list[near]
            stale = self._seen[units] != self._step
            hopeful = self._gains[units] >= min(self._standing, least)
            self._look(units[stale & hopeful][:size])
            size *= 2

    def add(self, unit: int) -> None:
        self._tracker.add(unit)
        self._gains[unit] = -np.inf
        self._standing = _LOWEST
        self._step += 1

    def close(self, where: slice) -> None:
        """Units that may no longer enter."""
        self._gains[where] = -np.inf

    def _best_of(self, only: Bools) -> tuple[int, float]:
        open_units = np.flatnonzero(only & np.isfinite(self._gains))
        self._look(open_units)
        own = self._gains[open_units]
        top = float(own.max())
        unit = int(open_units[np.argmax(own >= top - _TIE * abs(top))])
        return unit, float(self._gains[unit])

    def _draw_up(self, length: int) -> None:
        """The units of the largest old gains, in order of their number."""
        n = len(self._gains)
        if length >= n:
            self._list, self._others = np.arange(n), -np.inf
            return
        order = np.argpartition(-self._gains, length)
        self._list, self._others = np.sort(order[:length]), float(self._gains[order[length]])

    def _look(self, units: npt.NDArray[np.intp]) -> None:
        """Evaluate these gains anew."""
        self.evaluations += len(units)
        self._gains[units] = gains = self._tracker.gains(units)
        self._seen[units] = self._step
        self._standing = max(self._standing, float(gains[gains.argmax()]))
