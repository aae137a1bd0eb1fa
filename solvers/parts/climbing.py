"""Going up step by step until nothing fits: the loop of the greedy family."""

from __future__ import annotations

import time

from cahp_opt.problem import Problem
from cahp_opt.solver import Proposal, Status
from cahp_opt.solvers.parts.filling import filled_up
from cahp_opt.solvers.parts.single_units import climb_units, costs_alike
from cahp_opt.solvers.parts.steps import Climb, Step, best_step


def climb(problem: Problem, lookahead: int, *, lazy: bool, deadline: float) -> Proposal:
    """Take the best step until none is left or the deadline has passed.

    Where every unit costs the same and gains diminish, no longer step can beat a single unit.

    Args:
        problem: the objective and the budget.
        lookahead: how many plateau ends ahead a step may reach.
        lazy: evaluate a block only while its bound on the rate reaches the best step known.
        deadline: the ``time.monotonic()`` at which to stop.
    """
    if problem.objective.submodular and costs_alike(problem.budget):
        return climb_units(problem, lazy=lazy, deadline=deadline)
    walk = Climb(problem, lookahead, lazy)
    blocks = range(len(problem.space.blocks))
    while time.monotonic() <= deadline:
        steps: list[Step] = []
        top = -float("inf")
        hopes = [walk.hope(b) if lazy else float("inf") for b in blocks]
        for block in sorted(blocks, key=lambda b: -hopes[b]):
            if hopes[block] < top or time.monotonic() > deadline:
                break
            found = walk.steps(block)
            steps += found
            top = max([top, *(step.rate for step in found)])
        if time.monotonic() > deadline:
            break  # the best of a part would not be the best
        best = best_step(steps)
        if best is None:
            return Proposal(walk.kept, stats={"evaluations": walk.evaluations})
        walk.take(best)
    kept = filled_up(problem, walk.kept, walk.tracker.gains())
    return Proposal(kept, status=Status.TIME_LIMIT, stats={"evaluations": walk.evaluations})
