"""Tabu search: the strong heuristic for dense quadratics."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from cahp_opt.heads import Bools, Floats, Ints
from cahp_opt.problem import Problem
from cahp_opt.selection import Proposal, Solver, Status
from cahp_opt.solvers.exchanges import Exchanges
from cahp_opt.solvers.local_search import LocalSearch
from cahp_opt.solvers.neighbourhood import Neighbourhood
from cahp_opt.solvers.swaps import Interaction, Swap, all_swaps, interaction, swaps_of

_TRIED = 6  # units that may leave, where pairs are followed one by one


@dataclass(frozen=True)
class Tabu(Solver):
    """Walk through keep-sets within the budget by the best swap that is not tabu, downhill if need be.

    A unit that moved may not move back for a while, unless that makes a new best (Glover 1989, "Tabu
    search, part I"; for binary quadratics Palubeckis 2004, "Multistart tabu search strategies"). When
    a stretch of swaps brings nothing, latency moves between two blocks, so that the walk goes on among
    other counts; after several such moves in vain it returns to the best keep-set known.

    Args:
        start: the solver that makes the first keep-set; its refusals pass through.
        iterations: stop after this many moves without a new best.
        tenure: for how many moves a unit stays tabu at least; up to twice as long at random.
        patience: moves without a better keep-set before latency moves to another block.
        returns: exchanges in vain before the walk returns to the best keep-set.
        reach: how many plateau ends down and up an exchange between blocks may go.
    """

    start: Solver = field(default_factory=LocalSearch)
    iterations: int = 5_000
    tenure: int = 8
    patience: int = 40
    returns: int = 8
    reach: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.start, Solver):
            raise TypeError(
                f"`start` must be a Solver value such as `LocalSearch()`, got {self.start!r}."
            )
        for name in ("iterations", "tenure", "patience", "returns", "reach"):
            given = getattr(self, name)
            if given < 1:
                raise ValueError(f"`{name}` must be at least 1, got {given}.")

    def solve(self, problem: Problem, *, deadline: float, rng: np.random.Generator) -> Proposal:
        first = self.start.solve(problem, deadline=deadline, rng=rng)
        if first.status is Status.OPTIMAL or not problem.budget.allows(
            problem.space.counts(first.kept)
        ):
            return first  # nothing to improve, or nothing to trust: `select` will tell
        search = _Search(self, problem, first.kept, rng)
        finished = search.run(deadline)
        better = problem.objective.value(search.best) >= problem.objective.value(first.kept)
        return Proposal(
            search.best if better else first.kept,
            first.bound,
            first.status if finished else Status.TIME_LIMIT,
            first.certificate,
            {**first.stats, "iterations": search.moves},
        )


class _Search:
    """The state of one tabu search."""

    def __init__(
        self, options: Tabu, problem: Problem, kept: Bools, rng: np.random.Generator
    ) -> None:
        self._options, self._rng = options, rng
        self._here = Neighbourhood(problem, kept)
        self._between = interaction(problem.objective)
        self._exchanges = Exchanges(self._here, options.reach)
        self.best: Bools = kept.copy()
        self._best_value = self._here.tracker.value
        self.moves = 0
        self._free_at: Ints = np.zeros(problem.space.n + 1, dtype=np.int64)  # end of a unit's tabu
        self._block_free_at: Ints = np.zeros(len(problem.space.blocks), dtype=np.int64)

    def run(self, deadline: float) -> bool:
        """Search until too many moves bring nothing; whether that came before the deadline."""
        found_at, in_vain, exchanged = 0, 0, 0
        local = self._here.tracker.value
        while self.moves - found_at < self._options.iterations:
            if time.monotonic() > deadline:
                return False
            swap = self._next_swap()
            if swap is not None:
                self._make(swap)
            self.moves += 1
            value = self._here.tracker.value
            if self._is_new_best(value):
                self._best_value, self.best = value, self._here.kept
                found_at, exchanged = self.moves, 0
            if value > local:
                local, in_vain = value, 0
            else:
                in_vain += 1
            if in_vain >= self._options.patience or swap is None:
                if exchanged >= self._options.returns:
                    self._here.move_to(self.best)
                    exchanged = 0
                self._exchange(deadline)
                exchanged += 1
                local, in_vain = self._here.tracker.value, 0
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
            entering[~free & ~(new_best > self._best_value + 1e-10 * abs(self._best_value))] = -np.inf
            other = int(entering.argmax())
            gain = loss + float(entering[other])
            if np.isfinite(gain) and (best is None or gain > best.gain):
                best = Swap(unit, other, gain)
            if unit < n and loss > 0 and here.room()[here.space.block_of[unit], -1]:
                best = Swap(unit, n, loss) if best is None or loss > best.gain else best
        return best

    def _exchange(self, deadline: float) -> None:
        """Move a plateau of latency between two blocks that are not tabu, or else shake units."""
        found = [
            exchange
            for exchange in self._exchanges.hopeful(-np.inf, deadline)
            if self._block_free_at[exchange.down] <= self.moves
            and self._block_free_at[exchange.up] <= self.moves
        ]
        options = self._options
        chosen = found[: 1 + int(self._rng.integers(3))]
        for exchange in reversed(chosen):
            known = self._exchanges.units(exchange)
            if known is None:
                continue
            for unit in known[0]:
                self._here.flip(unit)
                self._free_at[unit] = self.moves + options.tenure
            until = self.moves + options.patience * (2 + int(self._rng.integers(4)))
            self._block_free_at[[exchange.down, exchange.up]] = until
            return
