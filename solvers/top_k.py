"""Rank once, keep from the top: the baseline that ignores interactions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cahp_opt.problem import Problem
from cahp_opt.solver import Proposal, Solver
from cahp_opt.solvers.parts.filling import fill_in_order


@dataclass(frozen=True)
class TopK(Solver):
    """Keep units by their value alone, largest first, as long as the budget holds.

    Units that no longer fit are passed over, and cheaper ones behind them may still enter.

    Cost: n gains and a sort; heuristic; any objective.
    """

    def solve(self, problem: Problem, *, deadline: float, rng: np.random.Generator) -> Proposal:
        nothing = np.zeros(problem.objective.n, dtype=np.bool_)
        alone = problem.objective.gains(nothing)
        order = np.argsort(-alone, kind="stable")
        useful = None if problem.objective.monotone else alone > 0
        return Proposal(fill_in_order(problem.budget, order, useful))
