"""Step greedy: fill the plateau of latency with the best value per cost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cahp_opt.problem import Problem
from cahp_opt.solver import Proposal, Solver
from cahp_opt.solvers.parts.climbing import climb


@dataclass(frozen=True)
class Greedy(Solver):
    """Take again and again the step with the most gain per cost, until nothing fits.

    A step adds to one block as many units as reach the end of one of its next plateaus: under a
    latency staircase single units are a poor currency, since the first unit of a stair pays for all.
    Units that cost nothing are taken first. Where every unit costs the same, this is the greedy of
    Nemhauser, Wolsey and Fisher (1978).

    Cost: O(n^2) gains; heuristic; any objective.

    Args:
        lookahead: how many of a block's next plateau ends are considered; at least 1.
    """

    lookahead: int = 3

    def __post_init__(self) -> None:
        if self.lookahead < 1:
            raise ValueError(f"`lookahead` must be at least 1, got {self.lookahead}.")

    def solve(self, problem: Problem, *, deadline: float, rng: np.random.Generator) -> Proposal:
        return climb(problem, self.lookahead, lazy=False, deadline=deadline)
