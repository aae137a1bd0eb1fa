"""The diagonal of the Fisher matrix: the first step of Kwon et al. 2022, alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cahp_opt.objectives import Curvature, Modular
from cahp_opt.runs.method import Method, Needs, Task
from cahp_opt.selection import Chooser, chooser
from cahp_opt.solvers import DynamicProgram
from cahp_opt.stats.head_stats import HeadStats


@dataclass(frozen=True)
class Fisher(Method):
    """The units with the largest mean squared gradient of the task loss by their gates, at the unpruned model.

    Published as the first of three steps. Among all keep-sets within the budget the one with the largest sum is
    found exactly: the top ones, where a budget counts units.
    """

    source: ClassVar[str] = (
        "Kwon et al., A Fast Post-Training Pruning Framework for Transformers, arXiv 2204.09656, section 4.1"
    )
    labels: ClassVar[bool] = True

    def needs(self, task: Task) -> Needs:
        """The Fisher matrix of the unpruned model."""
        del task
        return Needs(frozenset({"fisher"}), (1.0,))

    def chooser(self, stats: HeadStats, task: Task) -> Chooser:
        """Maximises the sum of the diagonal."""
        diagonal = Modular.from_curvature(stats, 1.0, Curvature.FISHER)
        return chooser(diagonal, DynamicProgram(), time_limit=task.time_limit, seed=task.seed)
