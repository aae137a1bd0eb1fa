"""Layer-wise reconstruction by local swaps: OSSCAR."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cahp_opt.methods.even import EvenCounts
from cahp_opt.objectives import ExplainedVariance
from cahp_opt.runs.method import Method, Needs, Task
from cahp_opt.runs.names import ObjectiveName
from cahp_opt.runs.recovery import Recovery
from cahp_opt.selection import Chooser, chooser
from cahp_opt.solvers import LazyGreedy, LocalSearch
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.stats.needs import needs_of


@dataclass(frozen=True)
class Osscar(Method):
    """The same share of every block, and of each the units from which least squares reconstructs the output best,
    found by greedy steps and local swaps.

    Published with the least-squares weights that the refit finds too, for inputs of the model as pruned so far; here
    units are chosen for those of the unpruned model, and all about their means, since the refit repairs the bias.
    """

    source: ClassVar[str] = (
        "Meng et al., OSSCAR: One-Shot Structured Pruning in Vision and Language Models with Combinatorial "
        "Optimization, 2024"
    )
    published_with: ClassVar[Recovery] = Recovery.REFIT

    def needs(self, task: Task) -> Needs:
        """The moments of the outputs of all units."""
        del task
        return Needs(needs_of(ExplainedVariance.from_stats))

    def chooser(self, stats: HeadStats, task: Task) -> Chooser:
        """Swaps units at even counts."""
        solver = EvenCounts(LocalSearch(LazyGreedy()))
        objective = ExplainedVariance.from_stats(stats)
        return chooser(objective, solver, time_limit=task.time_limit, seed=task.seed)

    def remarks(self, stats: HeadStats) -> list[str]:
        """Those of the objective, if the outputs are constant."""
        return ObjectiveName.EXPLAINED_VARIANCE.remarks(stats)
