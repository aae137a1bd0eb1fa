"""Random keep-sets: the baseline that every method must beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cahp_opt.problem import Problem
from cahp_opt.solver import Proposal, Solver
from cahp_opt.solvers.parts.filling import fill_in_order


@dataclass(frozen=True)
class RandomSubset(Solver):
    """Keep units in a random order as long as the budget holds (Budhraja et al. 2020, "On the weak
    link between importance and prunability of attention heads": a strong baseline).

    Cost: O(n), no values; heuristic; any objective.
    """

    def solve(self, problem: Problem, *, deadline: float, rng: np.random.Generator) -> Proposal:
        return Proposal(fill_in_order(problem.budget, rng.permutation(problem.objective.n), None))
