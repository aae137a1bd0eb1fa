"""What a refit can still explain, allocated over the blocks by the exact optimum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cahp_opt.objectives import ExplainedVariance
from cahp_opt.runs.method import Method, Needs, Task
from cahp_opt.runs.names import ObjectiveName
from cahp_opt.runs.recovery import Recovery
from cahp_opt.selection import Chooser, chooser
from cahp_opt.solvers import Auto
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.stats.needs import needs_of


@dataclass(frozen=True)
class MostExplained(Method):
    """The units from which a refit explains most of the variance of all blocks' outputs together.

    Every token and every block counts the same; :class:`~cahp_opt.methods.default.Default` weighs them by what
    the model's output makes of them. The optimum is proved where blocks have at most 16 heads.
    """

    source: ClassVar[str] = (
        "this library, on the layer-wise reconstruction of Meng et al., OSSCAR, 2024"
    )
    published_with: ClassVar[Recovery] = Recovery.REFIT

    @property
    def name(self) -> str:
        """That of the objective."""
        return str(ObjectiveName.EXPLAINED_VARIANCE.value)

    def needs(self, task: Task) -> Needs:
        """The moments of the outputs of all units."""
        del task
        return Needs(needs_of(ExplainedVariance.from_stats))

    def chooser(self, stats: HeadStats, task: Task) -> Chooser:
        """Maximises the explained variance."""
        objective = ExplainedVariance.from_stats(stats)
        return chooser(objective, Auto(), time_limit=task.time_limit, seed=task.seed)

    def remarks(self, stats: HeadStats) -> list[str]:
        """Those of the objective, if the outputs are constant."""
        return ObjectiveName.EXPLAINED_VARIANCE.remarks(stats)
