"""Exact selection for objectives that add up over blocks."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from cahp_opt.costs.knapsack import best_counts
from cahp_opt.problem import Problem
from cahp_opt.rounding import rounding_slack
from cahp_opt.solver import Proposal, Solver, Status
from cahp_opt.subsets import join_subsets


@dataclass(frozen=True)
class DynamicProgram(Solver):
    """The proven optimum of any objective that is a sum over blocks, under any budget.

    The best subset of every size in every block comes from the objective (sorting for a sum of
    weights, all subsets for explained variance and quadratics inside blocks); which size each block
    gets is a multiple-choice knapsack, solved exactly on real costs. Where time ends before the proof,
    the answer is the best found with the bound proved so far. Groups of neurons may have too many subsets:
    then the answer is the best by their measured order, the bound holds for all of them, and the
    certificate names these blocks.

    Cost: a knapsack over counts, and tables of up to 2^units per block; exact; needs `separable()`.

    Raises:
        ValueError: if the objective does not separate over blocks, or a block is too large.
    """

    def solve(self, problem: Problem, *, deadline: float, rng: np.random.Generator) -> Proposal:
        tables = problem.objective.separable(problem.space)
        if tables is None:
            raise ValueError(
                f"`DynamicProgram` needs an objective that is a sum over blocks, and "
                f"`{type(problem.objective).__name__}` does not say that it is one; use "
                "`LazyGreedy` or `Greedy`."
            )
        budget = problem.budget
        found = best_counts(
            [table.values for table in tables], budget.allowed, budget.coupling, deadline
        )
        counts = budget.cheapest if found.counts is None else found.counts
        kept = join_subsets(tables, counts)
        value = problem.objective.value(kept)  # the tables' sum may differ by rounding
        by_order = [
            b.name for b, t in zip(problem.space.blocks, tables, strict=True) if t.bound is not None
        ]
        bound = found.bound
        if by_order:
            most = [table.most for table in tables]
            bound = best_counts(most, budget.allowed, budget.coupling, deadline).bound
        exact = bound <= max(found.value, value) + rounding_slack(found.value, bound)
        late = Status.TIME_LIMIT if time.monotonic() > deadline else Status.FEASIBLE
        return Proposal(
            kept,
            value if exact else max(bound, value),
            Status.OPTIMAL if exact else late,
            _CERTIFICATE + (_BY_ORDER.format(_listed(by_order)) if by_order else ""),
        )


_CERTIFICATE = "best subsets of every block and an exact knapsack over their sizes"
_BY_ORDER = "; the groups of {} by their measured order, with a bound over all subsets"


def _listed(names: list[str]) -> str:
    """Names of blocks, the first few of many."""
    return ", ".join(names if len(names) <= 3 else [*names[:2], f"{len(names) - 2} other blocks"])
