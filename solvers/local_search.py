"""Improve any solver's answer by swaps and by exchanges of latency between blocks."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from cahp_opt.problem import Problem
from cahp_opt.solver import Proposal, Solver, Status
from cahp_opt.solvers.lazy_greedy import LazyGreedy
from cahp_opt.solvers.parts.exchanges import Exchanges
from cahp_opt.solvers.parts.neighbourhood import Neighbourhood
from cahp_opt.solvers.parts.swaps import best_swap, interaction, swap_in_turn


@dataclass(frozen=True)
class LocalSearch(Solver):
    """Start from another solver's answer and improve it until no small change helps.

    The changes: adding, removing or swapping single units, inside a block and across blocks
    (interchange, Nemhauser, Wolsey and Fisher 1978, section 4), and taking one block down a plateau
    of the costs to fill a plateau of another. Never worse than its start, whose bound it keeps.

    Args:
        start: the solver that makes the first keep-set; its refusals pass through.
        reach: how many plateau ends down and up an exchange between blocks may go; at least 1.
    """

    start: Solver = field(default_factory=LazyGreedy)
    reach: int = 2

    def __post_init__(self) -> None:
        if not isinstance(self.start, Solver):
            raise TypeError(
                f"`start` must be a Solver value such as `LazyGreedy()`, got {self.start!r}."
            )
        if self.reach < 1:
            raise ValueError(f"`reach` must be at least 1, got {self.reach}.")

    def solve(self, problem: Problem, *, deadline: float, rng: np.random.Generator) -> Proposal:
        first = self.start.solve(problem, deadline=deadline, rng=rng)
        if first.status is Status.OPTIMAL or not problem.budget.allows(
            problem.space.counts(first.kept)
        ):
            return first  # nothing to improve, or nothing to trust: `select` will tell
        here = Neighbourhood(problem, first.kept)
        moves, finished = improve(here, self.reach, deadline)
        better = problem.objective.value(here.kept) >= problem.objective.value(first.kept)
        return Proposal(
            here.kept if better else first.kept,
            first.bound,
            first.status if finished else Status.TIME_LIMIT,
            first.certificate,
            {**first.stats, "moves": moves},
        )


def improve(here: Neighbourhood, reach: int, deadline: float) -> tuple[int, bool]:
    """Move to a local optimum of swaps and exchanges.

    Returns:
        How many moves were made, and whether the search ended before the deadline.
    """
    between = interaction(here.problem.objective)
    exchanges = Exchanges(here, reach)
    moves = 0
    while time.monotonic() <= deadline:
        if between is not None:
            swap = best_swap(here, between)
            if swap is not None:
                here.swap(swap.leaving, swap.entering)
                moves += 1
                continue
        elif swap_in_turn(here, deadline):
            moves += 1
            continue
        if time.monotonic() <= deadline and not exchanges.improve(deadline):
            return moves, time.monotonic() <= deadline
        moves += 1
    return moves, False
