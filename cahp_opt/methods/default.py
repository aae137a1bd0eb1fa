"""The library's own choice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from cahp_opt.runs.method import Method, Needs, Task
from cahp_opt.runs.objective_and_solver import ObjectiveAndSolver
from cahp_opt.runs.recovery import Recovery
from cahp_opt.selection import Chooser
from cahp_opt.stats.head_stats import HeadStats


@dataclass(frozen=True)
class Default(Method):
    """What `cahp prune` does by itself: the objective that suits the recovery and the output of the model, with the solver
    that suits the objective."""

    source: ClassVar[str] = "this library"
    published_with: ClassVar[Recovery] = Recovery.REFIT

    def needs(self, task: Task) -> Needs:
        """Those of the objective that suits the task."""
        return _suiting(task).needs(task)

    def chooser(self, stats: HeadStats, task: Task) -> Chooser:
        """Maximises that objective."""
        return _suiting(task).chooser(stats, task)

    def remarks(self, stats: HeadStats) -> list[str]:
        """Those of an objective of outputs, if these are constant."""
        return ObjectiveAndSolver().remarks(stats)

    def check(self, task: Task) -> None:
        """As the objective and the solver do."""
        _suiting(task).check(task)

    def facts(self, task: Task) -> Mapping[str, str]:
        """The method, and the objective and solver that it came to."""
        return {"method": self.name, **_suiting(task).facts(task)}


def _suiting(task: Task) -> ObjectiveAndSolver:
    return ObjectiveAndSolver.suiting(task.recovery, embeds=task.embeds)
