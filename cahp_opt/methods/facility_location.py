"""Heads that stand for those that attend alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cahp_opt.costs.prune import Prune
from cahp_opt.objectives import FacilityLocation
from cahp_opt.runs.method import Method, Needs, Task
from cahp_opt.runs.names import ObjectiveName
from cahp_opt.selection import Chooser, chooser
from cahp_opt.solvers import LocalSearch
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.stats.needs import needs_of


@dataclass(frozen=True)
class Representatives(Method):
    """Heads such that every head is like one that is kept, by the divergence of their attention maps; salient heads
    count more."""

    source: ClassVar[str] = (
        "this library; the objective is that of Nemhauser, Wolsey and Fisher, An Analysis of Approximations for "
        "Maximizing Submodular Set Functions, 1978"
    )
    prunes: ClassVar[Prune] = Prune.HEADS

    @property
    def name(self) -> str:
        """That of the objective."""
        return str(ObjectiveName.FACILITY_LOCATION.value)

    def needs(self, task: Task) -> Needs:
        """The divergence of attention maps, and salience."""
        del task
        return Needs(needs_of(FacilityLocation.from_stats))

    def chooser(self, stats: HeadStats, task: Task) -> Chooser:
        """Maximises the likeness by greedy steps and local swaps."""
        objective = FacilityLocation.from_stats(stats)
        return chooser(objective, LocalSearch(), time_limit=task.time_limit, seed=task.seed)
