"""The method that a user puts together: an objective and a solver, each by its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from cahp_opt.costs.budget import Budget
from cahp_opt.objective import Objective
from cahp_opt.problem import Problem
from cahp_opt.runs.kinds import OF_ATTENTION
from cahp_opt.runs.maximising import Maximising
from cahp_opt.runs.method import Needs, Task
from cahp_opt.runs.names import DEFAULT_SOLVER, ObjectiveName, SolverName
from cahp_opt.runs.recovery import Recovery
from cahp_opt.selection import select
from cahp_opt.solver import Solver
from cahp_opt.stats.head_stats import HeadStats


@dataclass(frozen=True)
class ObjectiveAndSolver(Maximising):
    """An objective of calibration statistics, maximised by a solver.

    Args:
        objective: the objective to maximise.
        solver: the solver.
    """

    objective: ObjectiveName = ObjectiveName.EXPLAINED_OUTPUT
    solver: SolverName = DEFAULT_SOLVER

    source: ClassVar[str] = "this library"

    @classmethod
    def suiting(
        cls,
        recovery: Recovery,
        objective: ObjectiveName | None = None,
        solver: SolverName | None = None,
        *,
        embeds: bool = False,
    ) -> ObjectiveAndSolver:
        """A method with defaults for None: the objective that suits the recovery and the output,
        and the solver that suits the objective."""
        objective = objective or ObjectiveName.suiting(recovery, embeds=embeds)
        suits = DEFAULT_SOLVER if objective.separable else SolverName("auto")
        return cls(objective, solver or suits)

    @property
    def name(self) -> str:
        """That of the objective."""
        return str(self.objective.value)

    def needs(self, task: Task) -> Needs:
        """The statistics of the objective; matrices beside neurons at the unpruned model alone."""
        whole = not task.budget.space.of_attention.all() and "gauss_newton" in self.objective.needs
        return Needs(self.objective.needs, (1.0,) if whole else ())

    def maximised(self, stats: HeadStats, task: Task) -> Objective:
        """The objective of these statistics."""
        del task
        return self.objective.build(stats)

    def maximiser(self) -> Solver:
        """The solver."""
        return self.solver.build()

    def remarks(self, stats: HeadStats) -> list[str]:
        """Those of the objective."""
        return self.objective.remarks(stats)

    def check(self, task: Task) -> None:
        """Let the solver see the objective's structure, before minutes of measuring go into it.

        Raises:
            ValueError: if the solver cannot handle the objective over this space, or the objective compares the
                classes of texts without labels, or attention maps of blocks that have none.
        """
        if "signatures" in self.objective.needs and not task.labelled:
            raise ValueError(
                f"`--objective {self.objective.value}` compares units by class, and the texts have no labels; "
                "give `--data` with a column label, or another objective."
            )
        space = task.budget.space
        if self.objective.needs & OF_ATTENTION and not space.of_attention.all():
            raise ValueError(
                f"`--objective {self.objective.value}` compares attention maps, which feed-forward parts lack; give "
                "`--prune heads`, or another objective."
            )
        problem = Problem(self.objective.kind.example(space), Budget(space))
        select(problem, self.solver.build(), time_limit=0.1, seed=task.seed)

    def facts(self, task: Task) -> Mapping[str, str]:
        """The two names."""
        del task
        return {"objective": self.objective.value, "solver": self.solver.value}
