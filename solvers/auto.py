"""Choose a solver by the structure and the size of the problem, and say why."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from importlib.util import find_spec

import numpy as np

from cahp_opt.problem import Problem
from cahp_opt.solver import Proposal, Solver
from cahp_opt.solvers.best_of import BestOf
from cahp_opt.solvers.branch_and_bound import BranchAndBound
from cahp_opt.solvers.brute_force import BruteForce
from cahp_opt.solvers.dynamic_program import DynamicProgram
from cahp_opt.solvers.greedy import Greedy
from cahp_opt.solvers.lazy_greedy import LazyGreedy
from cahp_opt.solvers.local_search import LocalSearch
from cahp_opt.solvers.miqp import MIQP
from cahp_opt.solvers.row_prices import RowPrices
from cahp_opt.solvers.tabu import Tabu


@dataclass(frozen=True)
class Auto(Solver):
    """The solver that measured best for problems of this kind; ``stats`` states which, and why.

    Exact where that is cheap (sums over blocks, few units); lazy greedy with local search for
    submodular objectives, and for coverages prices of the rows, which prove more; tabu search, with
    branch and bound up to a size, for quadratics; greedy with local search for the rest. What a time
    limit leaves for a coverage goes to :class:`MIQP`, if OR-Tools is installed.

    Cost: that of the solver it chooses; exact where that is; any objective.

    Args:
        few: up to this many units, every keep-set is evaluated.
        many: from this many units on, swaps are not searched.
        provable: up to this many units, the answer for a quadratic objective is also bounded by
            branch and bound, and the one for a coverage by :class:`MIQP` within a time limit.
        nodes: the most nodes of branch and bound; it may end sooner with a proof.
    """

    few: int = 12
    many: int = 8_192
    provable: int = 200
    nodes: int = 50

    def __post_init__(self) -> None:
        if self.few < 0 or self.many < 1:
            raise ValueError(
                f"`few` must be at least 0 and `many` at least 1, got {self.few} and {self.many}."
            )

    def solve(self, problem: Problem, *, deadline: float, rng: np.random.Generator) -> Proposal:
        solver, because = self.choose(problem, limited=math.isfinite(deadline))
        found = solver.solve(problem, deadline=deadline, rng=rng)
        return replace(found, stats={**found.stats, "chose": repr(solver), "because": because})

    def choose(self, problem: Problem, *, limited: bool = False) -> tuple[Solver, str]:
        """The solver for a problem, and a sentence that says why.

        Args:
            problem: the objective and the budget.
            limited: whether a time limit ends the search.
        """
        objective, n = problem.objective, problem.space.n
        if _is_enumerable(problem):
            return DynamicProgram(), "The value is a sum over blocks, which is solved exactly."
        if n <= self.few:
            return (
                BruteForce(most_units=self.few),
                f"With {n} units, every keep-set can be evaluated.",
            )
        if n > self.many:
            solver = LazyGreedy() if objective.submodular else Greedy()
            return solver, f"With {n} units, only greedy steps are fast enough."
        if objective.coverage() is not None and objective.quadratic() is None:
            if limited and n <= self.provable and find_spec("ortools"):
                return (
                    MIQP(),
                    "The objective is a coverage: prices of its rows prove most, and a mixed-integer "
                    "master uses the time that is left.",
                )
            return (
                RowPrices(),
                "The objective is a coverage: swaps find good answers, and prices of its rows prove how "
                "good.",
            )
        if objective.submodular and objective.quadratic() is None:
            return (
                LocalSearch(LazyGreedy()),
                "The objective is submodular: lazy greedy is near-optimal, and swaps close most of "
                "the rest.",
            )
        if objective.quadratic() is not None and n <= self.provable:
            return (
                BestOf((Tabu(), BranchAndBound(nodes=self.nodes))),
                f"The objective is quadratic with {n} units: tabu search finds good answers fast, and "
                "branch and bound proves how good.",
            )
        if objective.quadratic() is not None:
            return (
                Tabu(),
                "The objective is quadratic: the gains of all swaps are known at once, which makes "
                "tabu search strong.",
            )
        return (
            LocalSearch(Greedy()),
            "The objective declares no structure that a stronger solver could use.",
        )


def _is_enumerable(problem: Problem) -> bool:
    try:
        return problem.objective.separable(problem.space) is not None
    except ValueError:  # it is a sum over blocks, but a block has too many subsets
        return False
