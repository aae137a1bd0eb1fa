"""The damage to the output by the Gauss-Newton matrix at the density that is kept."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import ClassVar

from cahp_opt.objectives import Quadratic
from cahp_opt.runs.method import Method, Needs, Task
from cahp_opt.selection import Chooser, chooser
from cahp_opt.solver import Solver
from cahp_opt.solvers import MIQP, Auto
from cahp_opt.stats.head_stats import HeadStats


@dataclass(frozen=True)
class GaussNewton(Method):
    """The keep-set with the least damage to the output, by pairs of units within and across blocks.

    The matrix of heads is taken under random masks that keep as many units as the budget does, so that it holds
    far from the unpruned model; beside groups of neurons, it is taken at the unpruned model.

    Args:
        seconds: for the mixed-integer program, which needs OR-Tools, where the task sets no time.
        most: units up to which it is tried; more, and a dozen or fewer, are left to :class:`~cahp_opt.solvers.Auto`.
    """

    seconds: float = 10.0
    most: int = 200

    source: ClassVar[str] = (
        "this library; the matrix is that of Schraudolph, Fast Curvature Matrix-Vector Products for "
        "Second-Order Gradient Descent, 2002"
    )

    def __post_init__(self) -> None:
        if not (self.seconds > 0 and self.most >= 0):
            raise ValueError(
                f"`seconds` must be above 0 and `most` at least 0, got {self.seconds} and {self.most}."
            )

    def needs(self, task: Task) -> Needs:
        """The matrix at that density."""
        return Needs(frozenset({"gauss_newton"}), (_density(task),))

    def chooser(self, stats: HeadStats, task: Task) -> Chooser:
        """Minimises the damage."""
        objective = Quadratic.from_stats(stats, density=_density(task))
        solver, seconds = self._solver(stats.space.n), task.time_limit
        if seconds is None and isinstance(solver, MIQP):
            seconds = self.seconds
        return chooser(objective, solver, time_limit=seconds, seed=task.seed)

    def _solver(self, units: int) -> Solver:
        """The mixed-integer program, where it is there, fast enough, and not every keep-set can be tried instead."""
        suits = Auto().few < units <= self.most and find_spec("ortools") is not None
        return MIQP() if suits else Auto()


def _density(task: Task) -> float:
    return task.density if task.budget.space.of_attention.all() else 1.0
