"""Greedy from above: start from everything, and give up what is worth least per cost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cahp_opt.problem import Problem
from cahp_opt.solver import Proposal, Solver, Status
from cahp_opt.solvers.parts.descending import Descent
from cahp_opt.solvers.parts.filling import filled_up
from cahp_opt.solvers.parts.neighbourhood import Neighbourhood
from cahp_opt.solvers.parts.swaps import flip_while_better


@dataclass(frozen=True)
class BackwardGreedy(Solver):
    """Remove units, down to a previous plateau end of one block, with the least loss per cost saved,
    until the budget is met; then fill what is free (backward elimination, the stingy algorithm of
    Nemhauser, Wolsey and Fisher 1978).

    Where no removal brings the costs nearer to their limits, as with tables that fall with a larger
    count, the counts go to ones within the budget, and are filled from there.

    Cost: O(n^2) gains, fewer for submodular objectives; heuristic; any objective.

    Args:
        lookahead: how many previous plateau ends of a block are considered; at least 1.
    """

    lookahead: int = 2

    def __post_init__(self) -> None:
        if self.lookahead < 1:
            raise ValueError(f"`lookahead` must be at least 1, got {self.lookahead}.")

    def solve(self, problem: Problem, *, deadline: float, rng: np.random.Generator) -> Proposal:
        here = Neighbourhood(problem, np.ones(problem.space.n, dtype=np.bool_))
        descent = Descent(here, self.lookahead)
        highest = [int(np.flatnonzero(fine)[-1]) for fine in problem.budget.allowed]
        descent.go_to(np.array(highest, dtype=np.int64))
        in_time = descent.to_budget(deadline)
        if in_time and flip_while_better(here, deadline):
            return Proposal(here.kept)
        kept = filled_up(problem, here.kept, here.tracker.gains())
        return Proposal(kept, status=Status.TIME_LIMIT)
