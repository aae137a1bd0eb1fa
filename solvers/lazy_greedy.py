"""Step greedy that looks again only at steps that may still be the best."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cahp_opt.problem import Problem
from cahp_opt.solver import Proposal, Solver
from cahp_opt.solvers.parts.climbing import climb


@dataclass(frozen=True)
class LazyGreedy(Solver):
    """The same answer as :class:`Greedy` with far fewer evaluations, for submodular objectives
    (Minoux 1978, "Accelerated greedy algorithms for maximizing submodular set functions").

    Gains only shrink as units are kept, so old gains bound what a step can gain: the sum of a
    block's largest old gains. Steps are evaluated anew in the order of that bound, until no bound
    reaches the best step. For other objectives, where old gains bound nothing, every step is
    evaluated every time.

    Cost: O(n^2) gains at worst, far fewer for submodular objectives; heuristic; any objective.

    Args:
        lookahead: how many of a block's next plateau ends are considered; at least 1.
    """

    lookahead: int = 3

    def __post_init__(self) -> None:
        if self.lookahead < 1:
            raise ValueError(f"`lookahead` must be at least 1, got {self.lookahead}.")

    def solve(self, problem: Problem, *, deadline: float, rng: np.random.Generator) -> Proposal:
        lazy = problem.objective.submodular
        return climb(problem, self.lookahead, lazy=lazy, deadline=deadline)
