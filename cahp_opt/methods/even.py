"""The same share of every block, each by what a refit of its output can still explain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cahp_opt.problem import Problem
from cahp_opt.runs.method import Method, Needs, Task
from cahp_opt.runs.names import ObjectiveName
from cahp_opt.runs.recovery import Recovery
from cahp_opt.selection import Chooser, chooser
from cahp_opt.solver import Proposal, Solver, Status
from cahp_opt.solvers import Auto
from cahp_opt.stats.head_stats import HeadStats


@dataclass(frozen=True)
class Even(Method):
    """The same share of the units of every block, as far as the budget allows, and of each the ones from which a
    refit explains most of the output.

    What :class:`~cahp_opt.methods.default.Default` gains over it is due to the allocation over the blocks alone.
    """

    source: ClassVar[str] = "baseline"
    published_with: ClassVar[Recovery] = Recovery.REFIT

    def needs(self, task: Task) -> Needs:
        """Those of the objective that suits a refit."""
        return Needs(_objective(task).needs)

    def chooser(self, stats: HeadStats, task: Task) -> Chooser:
        """Maximises that objective at even counts."""
        solver = EvenCounts(Auto())
        objective = _objective(task).build(stats)
        return chooser(objective, solver, time_limit=task.time_limit, seed=task.seed)

    def remarks(self, stats: HeadStats) -> list[str]:
        """Those of an objective of outputs, if these are constant."""
        return ObjectiveName.EXPLAINED_OUTPUT.remarks(stats)


def _objective(task: Task) -> ObjectiveName:
    return ObjectiveName.suiting(Recovery.REFIT, embeds=task.embeds)


@dataclass(frozen=True)
class EvenCounts(Solver):
    """Another solver, at counts that are as even over the blocks as the budget has room for.

    Cost: that of the other solver; heuristic, since the best counts may be uneven; any objective that it takes.

    Args:
        solver: chooses the units at these counts.
    """

    solver: Solver

    def solve(self, problem: Problem, *, deadline: float, rng: np.random.Generator) -> Proposal:
        pinned = problem.budget.pinned(Task(problem.budget).even)
        found = self.solver.solve(Problem(problem.objective, pinned), deadline=deadline, rng=rng)
        # What is proved for these counts is not proved for others.
        late = found.status is Status.TIME_LIMIT
        status = Status.TIME_LIMIT if late else Status.FEASIBLE
        return Proposal(found.kept, status=status, stats=found.stats)
