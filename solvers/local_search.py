"""Improve any solver's answer by swaps and by exchanges of latency between blocks."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from cahp_opt.problem import Problem
from cahp_opt.solver import Proposal, Solver, Status
from cahp_opt.solvers.lazy_greedy import LazyGreedy
from cahp_opt.solvers.parts.incumbent import Incumbent
from cahp_opt.solvers.parts.local_optimum import to_local_optimum
from cahp_opt.solvers.parts.neighbourhood import Neighbourhood


@dataclass(frozen=True)
class LocalSearch(Solver):
    """Start from another solver's answer and improve it until no small change helps.

    The changes: adding, removing or swapping single units, inside a block and across blocks
    (interchange, Nemhauser, Wolsey and Fisher 1978, section 4), and taking one block down a plateau
    of the costs to fill a plateau of another. Never worse than its start, whose bound it keeps.

    Cost: O(n^2) per swap with a form of the objective, else O(n^2) gains; heuristic; any objective.

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
            return first  # nothing to improve, or nothing to trust: `select` will report it
        best = Incumbent.following(problem, first)
        here = Neighbourhood(problem, first.kept)
        best.stats["moves"], finished = to_local_optimum(here, self.reach, deadline)
        best.offer(here.kept)
        best.cut_short |= not finished
        return best.proposal()
