"""The steps a greedy solver can take: to the next plateau ends of each block, and what they gain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cahp_opt.arrays import Bools, Floats
from cahp_opt.problem import Problem
from cahp_opt.solvers.parts.ledger import Ledger
from cahp_opt.solvers.parts.plateaus import plateau_ends

_TIE = 1e-10  # two sums of the same numbers in another order are the same gain


@dataclass(frozen=True)
class Step:
    """Adding ``units`` to one block: what it gains, per what it costs (infinite if it is free)."""

    block: int
    units: tuple[int, ...]
    gain: float
    rate: float


def best_step(steps: Sequence[Step]) -> Step | None:
    """The step of the best rate; among equals the larger gain, then the first block, then the shortest.

    Equal means up to rounding, so that the choice does not depend on how gains were computed.
    """
    if not steps:
        return None
    top = max(step.rate for step in steps)
    tied = [step for step in steps if step.rate >= top - _TIE * abs(top) or step.rate == top]
    gain = max(step.gain for step in tied)
    tied = [step for step in tied if step.gain >= gain - _TIE * abs(gain)]
    return min(tied, key=lambda step: (step.block, len(step.units)))


class Climb:
    """A keep-set on its way up, within the budget at every moment.

    Args:
        problem: the objective and the budget.
        lookahead: how many plateau ends ahead a step may reach.
        lazy: evaluate only units whose old gain can still be the largest; right only for submodular
            objectives.
    """

    def __init__(self, problem: Problem, lookahead: int, lazy: bool) -> None:
        self._budget, self._space = problem.budget, problem.space
        self._monotone, self._lazy = problem.objective.monotone, lazy
        self._lookahead = lookahead
        self.evaluations = 0
        nothing = np.zeros(self._space.n, dtype=np.bool_)
        self.tracker = problem.objective.tracker(nothing)
        self._ledger = Ledger(problem.budget, np.zeros(len(self._space.blocks), dtype=np.int64))
        self.counts = self._ledger.counts
        self._gains = self._all_gains()
        self._start()

    @property
    def kept(self) -> Bools:
        """The current keep-set, bool ``[n]``; a copy."""
        return self.tracker.kept.copy()

    def steps(self, block: int) -> list[Step]:
        """The worthwhile steps of one block."""
        targets = self._targets(block)
        if not targets:
            return []
        found: list[Step] = []
        added: list[int] = []
        gain = 0.0
        gains = self._gains
        for target in targets:
            while self.counts[block] + len(added) < target:
                unit, own = self._best_unit(block, gains, fresh=not added and not self._lazy)
                if not added and self._lazy:
                    # What is found beside a tried unit holds for this call only.
                    gains = gains.copy()
                gain += own
                added.append(unit)
                if self.counts[block] + len(added) < targets[-1]:
                    self.tracker.add(unit)
            price = self._price(block, target)
            if gain > 0 or (gain == 0 and price == 0 and self._monotone):
                rate = np.inf if price == 0 else gain / price
                found.append(Step(block, tuple(added), gain, float(rate)))
        for unit in reversed(added[:-1]):
            self.tracker.remove(unit)
        return found

    def hope(self, block: int) -> float:
        """A bound on the rate of every step of a block, from old gains (submodular objectives)."""
        where = self._space.slices[block]
        old = np.sort(self._gains[where][~self.tracker.kept[where]])[::-1]
        best = -np.inf
        for target in self._targets(block):
            most = float(old[: target - self.counts[block]].sum())
            price = self._price(block, target)
            best = max(best, np.inf if price == 0 else most / price)
        return best + _TIE * abs(best) if np.isfinite(best) else best

    def take(self, step: Step) -> None:
        """Keep the units of a step for good."""
        for unit in step.units:
            self.tracker.add(unit)
        self._ledger.move(step.block, int(self.counts[step.block]) + len(step.units))
        if not self._lazy:
            self._gains = self._all_gains()

    # -- inside ------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Fill the counts that the budget needs to be met at all, best units first."""
        missing = self._budget.cheapest.copy()
        while missing.any():
            open_units = ~self.tracker.kept & (missing[self._space.block_of] > 0)
            gains = np.where(open_units, self._gains, -np.inf)
            unit = _first_best(gains)
            self.take(Step(int(self._space.block_of[unit]), (unit,), 0.0, 0.0))
            missing[self._space.block_of[unit]] -= 1
            if self._lazy:
                self._gains = self._all_gains()

    def _best_unit(self, block: int, gains: Floats, *, fresh: bool) -> tuple[int, float]:
        """The unit of a block with the largest gain beside the tracker's keep-set, and its gain."""
        where = self._space.slices[block]
        out = where.start + np.flatnonzero(~self.tracker.kept[where])
        if fresh:
            unit = int(out[_first_best(gains[out])])
            return unit, float(gains[unit])
        if not self._lazy:
            self.evaluations += len(out)
            own = self.tracker.gains(out)
            place = _first_best(own)
            return int(out[place]), float(own[place])
        best = -np.inf
        for unit in out[np.argsort(-gains[out], kind="stable")]:
            if gains[unit] < best - _TIE * abs(best):
                break
            gains[unit] = self._gain(int(unit))
            best = max(best, float(gains[unit]))
        unit = int(out[_first_best(gains[out])])
        return unit, float(gains[unit])

    def _gain(self, unit: int) -> float:
        self.evaluations += 1
        return self.tracker.gain(unit)

    def _all_gains(self) -> Floats:
        self.evaluations += self._space.n
        return np.array(self.tracker.gains(), dtype=np.float64)

    def _targets(self, block: int) -> list[int]:
        """The next plateau ends that the budget allows."""
        found: list[int] = []
        allowed = self._budget.allowed[block]
        for target in range(int(self.counts[block]) + 1, len(allowed)):
            if not allowed[target] or not self._ends_plateau[block][target]:
                continue
            if self._ledger.fits((block, target)):
                found.append(target)
                if len(found) == self._lookahead:
                    break
        return found

    @cached_property
    def _ends_plateau(self) -> list[Bools]:
        """For every block and count: whether one more unit is forbidden or costs more."""
        return plateau_ends(self._budget)

    @cached_property
    def _spare_at_start(self) -> list[float]:
        """What each table leaves to spend above the starting counts."""
        spare: list[float] = Ledger(self._budget, self._budget.cheapest).spare().tolist()
        return spare

    def _price(self, block: int, target: int) -> float:
        """The cost of going to ``target`` units, as shares of what each table leaves to spend."""
        price = 0.0
        for table, spare in zip(self._budget.coupling, self._spare_at_start, strict=True):
            extra = float(table.costs[block][target] - table.costs[block][self.counts[block]])
            if extra > 0:
                price += extra / spare if spare > 0 else np.inf
        return price


def _first_best(gains: Floats) -> int:
    """The place of the largest number; the first among equals up to rounding."""
    best = float(gains.max())
    return int(np.argmax(gains >= best - _TIE * abs(best)))
