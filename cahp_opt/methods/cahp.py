"""The seed method: clusters of heads that attend alike to each class of texts."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import ClassVar

import numpy as np

from cahp_opt.arrays import Floats
from cahp_opt.costs.budget import Budget
from cahp_opt.costs.knapsack import best_counts
from cahp_opt.costs.prune import Prune
from cahp_opt.objectives import Complementarity
from cahp_opt.problem import Problem
from cahp_opt.runs.method import Method, Needs, Task
from cahp_opt.runs.recovery import Recovery
from cahp_opt.selection import Chooser, Selection, select
from cahp_opt.solvers import CAHP
from cahp_opt.solvers.cahp import Reduction
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.stats.needs import needs_of


@dataclass(frozen=True)
class Cahp(Method):
    """Clusters of heads by how differently they attend to the classes, and of each the most salient head.

    Published with the number of clusters at a knee of their silhouettes, and with fine-tuning; here there are
    as many as the budget has room for (:class:`~cahp_opt.solvers.CAHP`).

    Args:
        reduction: where the clusters are looked for; t-SNE needs scikit-learn.
    """

    reduction: Reduction = Reduction.TSNE

    source: ClassVar[str] = (
        "Complementary Attention Head Pruning for Efficient Transformers, arXiv 2606.19150"
    )
    published_with: ClassVar[Recovery] = Recovery.FINETUNE
    prunes: ClassVar[Prune] = Prune.HEADS
    labels: ClassVar[bool] = True

    def needs(self, task: Task) -> Needs:
        """Attention maps by class, and salience."""
        del task
        return Needs(needs_of(Complementarity.from_stats))

    def chooser(self, stats: HeadStats, task: Task) -> Chooser:
        """Clusters the heads."""
        objective = Complementarity.from_stats(stats)

        def choose(budget: Budget) -> Selection:
            solver = CAHP(reduction=self.reduction, clusters=max(1, _most_units(budget)))
            problem = Problem(objective, budget)
            return select(problem, solver, time_limit=task.time_limit, seed=task.seed)

        return choose

    def check(self, task: Task) -> None:
        """Refuse also where t-SNE is missing.

        Raises:
            ValueError: naming the way out.
        """
        super().check(task)
        if self.reduction is Reduction.TSNE and find_spec("sklearn") is None:
            raise ValueError(
                f"`--method {self.name}` needs scikit-learn for t-SNE; install it with "
                "`pip install 'cahp-opt[cahp]'`, or choose another method."
            )


def _most_units(budget: Budget) -> int:
    """How many units the budget has room for; more than that where it is even."""
    numbers: list[Floats] = [np.arange(block.units + 1.0) for block in budget.space.blocks]
    found = best_counts(numbers, budget.allowed, budget.coupling).counts
    return budget.space.n if found is None else int(found.sum())
