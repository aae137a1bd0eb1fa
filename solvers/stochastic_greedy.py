"""Greedy that looks at a random sample of units at every step."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from cahp_opt.costs.budget import Budget
from cahp_opt.problem import Problem
from cahp_opt.solver import Proposal, Solver, Status
from cahp_opt.solvers.parts.filling import filled_up
from cahp_opt.solvers.parts.steps import Climb, Step, best_step


@dataclass(frozen=True)
class StochasticGreedy(Solver):
    """The best step among the blocks of a random sample of units, again and again (Mirzasoleiman et
    al. 2015, "Lazier than lazy greedy").

    For a count of ``k`` out of ``n`` units the sample has ``n / k * ln(1 / epsilon)`` units, and the
    expected value of a monotone submodular objective is at least ``1 - 1/e - epsilon`` of the optimum.
    Under tables of costs ``k`` is estimated from the share of the full cost that the limits allow. As
    in :class:`Greedy`, a step fills a block up to one of its next plateau ends.

    Cost: O(n^2) gains at worst, fewer the larger `epsilon`; heuristic; any objective.

    Args:
        epsilon: between 0 and 1; smaller samples more.
        lookahead: how many of a block's next plateau ends are considered; at least 1.
    """

    epsilon: float = 0.1
    lookahead: int = 3

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < 1:
            raise ValueError(f"`epsilon` must lie between 0 and 1, got {self.epsilon}.")
        if self.lookahead < 1:
            raise ValueError(f"`lookahead` must be at least 1, got {self.lookahead}.")

    def solve(self, problem: Problem, *, deadline: float, rng: np.random.Generator) -> Proposal:
        walk = Climb(problem, self.lookahead, lazy=problem.objective.submodular)
        share = _share_that_fits(problem.budget)
        size = max(1, math.ceil(math.log(1 / self.epsilon) / share))
        while time.monotonic() <= deadline:
            step = self._sampled_step(walk, problem, size, rng)
            if step is None:
                return Proposal(walk.kept, stats={"evaluations": walk.evaluations})
            walk.take(step)
        kept = filled_up(problem, walk.kept, walk.tracker.gains())
        return Proposal(kept, status=Status.TIME_LIMIT, stats={"evaluations": walk.evaluations})

    def _sampled_step(
        self, walk: Climb, problem: Problem, size: int, rng: np.random.Generator
    ) -> Step | None:
        """The best step of a sample's blocks; further samples only where a sample has no step."""
        order = rng.permutation(np.flatnonzero(~walk.kept))
        blocks = problem.space.block_of[order]
        seen = set[int]()
        for start in range(0, len(order), size):
            steps: list[Step] = []
            for block in sorted(set(blocks[start : start + size].tolist()) - seen):
                seen.add(block)
                steps += walk.steps(block)
            best = best_step(steps)
            if best is not None:
                return best
        return None


def _share_that_fits(budget: Budget) -> float:
    """About which share of the units the budget lets in, above 0."""
    n = budget.space.n
    share = float(budget.most.sum()) / n
    for table in budget.coupling:
        full = table.cost(budget.space.units) - table.fixed
        if full > 0:
            share = min(share, (table.limit - table.fixed) / full)
    return max(share, 1 / n)
