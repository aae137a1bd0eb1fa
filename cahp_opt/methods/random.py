"""Random units, the baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cahp_opt.objectives import Modular
from cahp_opt.runs.method import Method, Task
from cahp_opt.selection import Chooser, chooser
from cahp_opt.solvers import RandomSubset
from cahp_opt.stats.head_stats import HeadStats


@dataclass(frozen=True)
class Random(Method):
    """Units at random, as many as the budget allows; every seed chooses others."""

    source: ClassVar[str] = "baseline"

    def chooser(self, stats: HeadStats, task: Task) -> Chooser:
        """Draws units."""
        return chooser(Modular(np.ones(stats.space.n)), RandomSubset(), seed=task.seed)
