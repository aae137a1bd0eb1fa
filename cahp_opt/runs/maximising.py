"""Methods that maximise an objective of calibration statistics, which can be judged by itself too."""

from __future__ import annotations

from abc import abstractmethod

from cahp_opt.objective import Objective
from cahp_opt.runs.method import Method, Task
from cahp_opt.selection import Chooser, chooser
from cahp_opt.solver import Solver
from cahp_opt.solvers import Auto
from cahp_opt.stats.head_stats import HeadStats


class Maximising(Method):
    """A method that makes an objective of the statistics and maximises it.

    A study shows of the objective how well it ranks keep-sets, beside what becomes of those that it chooses.
    """

    @abstractmethod
    def maximised(self, stats: HeadStats, task: Task) -> Objective:
        """The objective; the same for every recovery.

        Args:
            stats: with at least what :meth:`needs` names.
            task: what is asked for.

        Raises:
            ValueError: if the statistics lack something.
        """

    def maximiser(self) -> Solver:
        """What maximises it: :class:`~cahp_opt.solvers.Auto`."""
        return Auto()

    def chooser(self, stats: HeadStats, task: Task) -> Chooser:
        """Maximises the objective of these statistics."""
        return chooser(
            self.maximised(stats, task),
            self.maximiser(),
            time_limit=task.time_limit,
            seed=task.seed,
        )
