"""Salience: Michel et al. 2019."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cahp_opt.objectives import Modular
from cahp_opt.runs.method import Method, Needs, Task
from cahp_opt.selection import Chooser, chooser
from cahp_opt.solvers import DynamicProgram
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.stats.needs import needs_of


@dataclass(frozen=True)
class Michel(Method):
    """The units with the largest mean absolute gradient of the loss by their gates.

    Published for attention heads, divided by their norm in every layer and pruned a tenth at a time without recovery;
    here as they are, in one step, and for groups of neurons by the same formula. Among all keep-sets within the budget
    the one with the largest sum is found exactly. Without labels, the loss is that of labels which are drawn from the
    model's own output.
    """

    source: ClassVar[str] = (
        "Michel, Levy and Neubig, Are Sixteen Heads Really Better than One?, 2019"
    )

    def needs(self, task: Task) -> Needs:
        """Salience."""
        del task
        return Needs(needs_of(Modular.from_stats))

    def chooser(self, stats: HeadStats, task: Task) -> Chooser:
        """Maximises the sum of saliences."""
        solver = DynamicProgram()
        return chooser(
            Modular.from_stats(stats), solver, time_limit=task.time_limit, seed=task.seed
        )
