"""Tabu search: the strong heuristic for dense quadratics."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from cahp_opt.arrays import Bools, Floats, Ints
from cahp_opt.problem import Problem
from cahp_opt.solver import Proposal, Solver, Status
from cahp_opt.solvers.backward_greedy import BackwardGreedy
from cahp_opt.solvers.local_search import LocalSearch
from cahp_opt.solvers.parts.descending import Descent
from cahp_opt.solvers.parts.incumbent import Incumbent
from cahp_opt.solvers.parts.neighbourhood import Neighbourhood
from cahp_opt.solvers.parts.plateaus import plateau_ends
from cahp_opt.solvers.parts.rebuilding import drop_plateau, fill, raise_plateau
from cahp_opt.solvers.parts.swaps import Swap, all_swaps, interaction, swaps_of

_TRIED = 6  # units that may leave, where pairs are followed one by one
_DOWN = 0.5  # share of rebuildings that start by giving up plateaus


@dataclass(frozen=True)
class Tabu(Solver):
    """Walk through keep-sets within the budget by the best swap that is not tabu, downhill if need be.

    A unit that moved may not move back for a while, unless that makes a new best (Glover 1989, "Tabu
    search, part I"). When a stretch of swaps brings nothing, the counts change: a few random blocks
    give up a plateau and the budget is filled anew without them, or they rise beyond the budget and the
    others give up what is worth least (ruin and recreate, Schrimpf et al. 2000; strategic oscillation,
    Glover 1989). The walk continues from there, or from where the stretch set out if that was much
    better.

    Cost: O(n^2) per move with a form of the objective, else O(n) gains; heuristic; any objective.

    Args:
        start: the solver that makes the first keep-set; its refusals pass through.
        iterations: stop after this many moves without a new best.
        tenure: for how many moves a unit stays tabu at least; up to twice as long at random.
        patience: moves without a better keep-set before the counts change.
        ruin: at most how many blocks change their counts first.
        reach: how many plateau ends up or down the other blocks may answer.
        warmth: how much worse a stretch may end and still be followed, in mean losses of stretches.
    """

    start: Solver = field(default_factory=lambda: LocalSearch(BackwardGreedy()))
    iterations: int = 5_000
    tenure: int = 8
    patience: int = 15
    ruin: int = 3
    reach: int = 2
    warmth: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.start, Solver):
            raise TypeError(
                f"`start` must be a Solver value such as `LocalSearch()`, got {self.start!r}."
            )
        for name in ("iterations", "tenure", "patience", "ruin", "reach"):
            given = getattr(self, name)
            if given < 1:
                raise ValueError(f"`{name}` must be at least 1, got {given}.")
        if not 0 <= self.warmth < np.inf:
            raise ValueError(f"`warmth` must be at least 0, got {self.warmth}.")

    def solve(self, problem: Problem, *, deadline: float, rng: np.random.Generator) -> Proposal:
        first = self.start.solve(problem, deadline=deadline, rng=rng)
        if first.status is Status.OPTIMAL or not problem.budget.allows(
            problem.space.counts(first.kept)
        ):
            return first  # nothing to improve, or nothing to trust: `select` will report it
        search = _Walk(self, problem, first.kept, rng)
        finished = search.run(deadline)
        best = Incumbent.following(problem, first)
        best.offer(search.best)
        best.stats["iterations"] = search.moves
        best.cut_short |= not finished
        return best.proposal()


class _Walk:
    """The state of one tabu search."""

    def __init__(
        self, options: Tabu, problem: Problem, kept: Bools, rng: np.random.Generator
    ) -> None:
        self._options, self._rng = options, rng
        self._here = Neighbourhood(problem, kept)
        self._between = interaction(problem.objective)
        self._ends = plateau_ends(problem.budget)
        self._descent = Descent(self._here, options.reach)
        self.best: Bools = kept.copy()
        self._best_value = self._here.tracker.value
        self.moves = 0
        self._free_at: Ints = np.zeros(problem.space.n + 1, dtype=np.int64)  # end of a unit's tabu
        self._warmth = 0.0

    def run(self, deadline: float) -> bool:
        """Search until too many moves bring nothing; whether that came before the deadline."""
        found_at, in_vain = 0, 0
        base, base_value = self.best, -np.inf  # where the current stretch set out
        top, top_value = self.best, self._best_value  # the best of the current stretch
        while self.moves - found_at < self._options.iterations:
            if time.monotonic() > deadline:
                return False
            swap = self._next_swap()
            if swap is not None:
                self._make(swap)
            self.moves += 1
            in_vain += 1
            value = self._here.tracker.value
            if value > top_value:
                top, top_value, in_vain = self._here.kept, value, 0
            if self._is_new_best(value):
                self._best_value, self.best = value, self._here.kept
                found_at = self.moves
            if in_vain >= self._options.patience or swap is None:
                change = base_value - top_value
                if change <= self._warmth * self._rng.exponential():
                    base, base_value = top, top_value
                if np.isfinite(change):
                    self._warmth += 0.05 * (self._options.warmth * max(change, 0.0) - self._warmth)
                self._here.move_to(base)
                self._rebuild(deadline)
                in_vain = 0
                top, top_value = self._here.kept, self._here.tracker.value
        return True

    def _is_new_best(self, value: float) -> bool:
        return value > self._best_value + 1e-10 * abs(self._best_value)

    def _make(self, swap: Swap) -> None:
        self._here.swap(swap.leaving, swap.entering)
        tenure = self._options.tenure
        for unit in (swap.leaving, swap.entering):
            self._free_at[unit] = self.moves + tenure + int(self._rng.integers(tenure + 1))
        self._free_at[-1] = 0  # none is never tabu

    def _next_swap(self) -> Swap | None:
        """The best swap that is not tabu, or any that makes a new best."""
        gains = self._here.tracker.gains()
        if self._between is None:
            return self._next_swap_in_turn(gains)
        inside, outside, table = all_swaps(self._here, gains, self._between)
        width = table.shape[1]
        place = int(table.argmax())
        gain = float(table.flat[place])
        if not self._is_new_best(self._here.tracker.value + gain):
            table[self._free_at[inside] > self.moves] = -np.inf
            table[:, self._free_at[outside] > self.moves] = -np.inf
            place = int(table.argmax())
            gain = float(table.flat[place])
        if not np.isfinite(gain):
            return None
        return Swap(int(inside[place // width]), int(outside[place % width]), gain)

    def _next_swap_in_turn(self, gains: Floats) -> Swap | None:
        """The same among the few units of least loss, followed one by one."""
        here, n = self._here, self._here.space.n
        free = self._free_at[:-1] <= self.moves
        kept = np.flatnonzero(here.tracker.kept)
        order = kept[np.argsort(-gains[kept], kind="stable")]
        leaving = [n, *(int(unit) for unit in order[free[order]][:_TRIED])]
        best: Swap | None = None
        for unit in leaving:
            loss, entering = swaps_of(here, unit)
            new_best = here.tracker.value + loss + entering
            entering[
                ~free & ~(new_best > self._best_value + 1e-10 * abs(self._best_value))
            ] = -np.inf
            other = int(entering.argmax())
            gain = loss + float(entering[other])
            if np.isfinite(gain) and (best is None or gain > best.gain):
                best = Swap(unit, other, gain)
            if unit < n and loss > 0 and here.ledger.room()[here.space.block_of[unit], -1]:
                best = Swap(unit, n, loss) if best is None or loss > best.gain else best
        return best

    def _rebuild(self, deadline: float) -> None:
        """Give up a plateau of a few random blocks and fill the budget anew without them, or fill a
        few random blocks beyond the budget and give up what is worth least in the others."""
        here, rng = self._here, self._rng
        blocks = rng.permutation(len(here.counts))[: 1 + int(rng.integers(self._options.ruin))]
        before = here.kept
        if rng.random() < _DOWN:
            fallen = [int(b) for b in blocks if drop_plateau(here, self._ends, int(b))]
            fill(here, self._ends, fallen, self._options.reach)
        else:
            risen = [int(b) for b in blocks if raise_plateau(here, self._ends, int(b))]
            self._descent.to_budget(deadline, risen)
        fill(here, self._ends, (), self._options.reach)
        changed = np.flatnonzero(before != here.tracker.kept)
        self._free_at[changed] = self.moves + self._options.tenure
