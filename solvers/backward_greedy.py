"""Greedy from above: start from everything, and give up what is worth least per cost."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cahp_opt.heads import Floats, Ints
from cahp_opt.problem import Problem
from cahp_opt.selection import Proposal, Solver, Status
from cahp_opt.solvers.flipping import flip_while_better
from cahp_opt.solvers.neighbourhood import Neighbourhood
from cahp_opt.solvers.plateaus import plateau_ends


@dataclass(frozen=True)
class BackwardGreedy(Solver):
    """Remove units, down to a previous plateau end of one block, with the least loss per cost saved,
    until the budget is met; then fill what is free (backward elimination, the stingy algorithm of
    Nemhauser, Wolsey and Fisher 1978).

    Where no removal brings the costs nearer to their limits, as with tables that fall with a larger
    count, the counts go to ones within the budget, and are filled from there.

    Args:
        lookahead: how many previous plateau ends of a block are considered; at least 1.
    """

    lookahead: int = 2

    def __post_init__(self) -> None:
        if self.lookahead < 1:
            raise ValueError(f"`lookahead` must be at least 1, got {self.lookahead}.")

    def solve(self, problem: Problem, *, deadline: float, rng: np.random.Generator) -> Proposal:
        descent = _Descent(problem, self.lookahead)
        in_time = descent.to_budget(deadline)
        in_time = flip_while_better(descent.here, deadline) and in_time
        return Proposal(
            descent.here.kept, status=Status.FEASIBLE if in_time else Status.TIME_LIMIT
        )


class _Step(NamedTuple):
    """Dropping ``units`` of one block; ``losses[i]`` is what the first ``i + 1`` of them lose."""

    units: list[int]
    losses: Floats


class _Descent:
    """A keep-set on its way down to the budget."""

    def __init__(self, problem: Problem, lookahead: int) -> None:
        self._problem, self._budget = problem, problem.budget
        self._lookahead = lookahead
        self._ends = plateau_ends(problem.budget)
        everything = np.ones(problem.space.n, dtype=np.bool_)
        self.here = Neighbourhood(problem, everything)
        self._steps: list[_Step | None] = [None] * len(self.here.counts)
        highest = [int(np.flatnonzero(fine)[-1]) for fine in self._budget.allowed]
        self._go_to(np.array(highest, dtype=np.int64))

    def to_budget(self, deadline: float) -> bool:
        """Step down until the budget is met; whether that came before the deadline."""
        over = np.maximum(-self.here.spare(), 0.0)
        while not self.here.fits(self.here.counts):
            in_time = time.monotonic() <= deadline
            units = self._cheapest_step(over) if in_time else None
            if units is None:
                self._go_to(self._budget.cheapest)
                return in_time
            for unit in units:
                self.here.flip(unit)
            over = np.maximum(-self.here.spare(), 0.0)
        return True

    def _cheapest_step(self, over: Floats) -> list[int] | None:
        """The units whose loss per saved cost is least; None if nothing saves.

        For a submodular objective losses only grow on the way down, so that old ones are at least
        as hopeful as new ones, and only the most hopeful block is evaluated anew.
        """
        lazy = self._problem.objective.submodular
        fresh = [False] * len(self._steps)
        if not lazy:
            self._steps = [None] * len(self._steps)
        rates: list[tuple[float, int] | None] = [None] * len(self._steps)
        while True:
            for b, step in enumerate(self._steps):
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

    def _evaluate(self, block: int) -> _Step:
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
        return _Step(units, np.array(losses))

    def _rate(self, block: int, over: Floats) -> tuple[float, int]:
        """The least loss per saved cost over the targets of a block, and how many units it drops
        (0 if nothing saves). Savings are shares of what each table is over its limit by."""
        step = self._steps[block]
        count = int(self.here.counts[block])
        best = (np.inf, 0)
        for target in self._targets(block):
            saved = 0.0
            for table, excess in zip(self.here.tables, over, strict=True):
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
        return any(t.costs[block][target] < t.costs[block][now] for t in self.here.tables)

    def _go_to(self, counts: Ints) -> None:
        """Reach these counts by dropping the least useful units and adding the most useful ones."""
        for b, target in enumerate(counts):
            while self.here.counts[b] != target:
                self.here.flip(self.here.best_flip(b, kept=bool(self.here.counts[b] > target))[0])
