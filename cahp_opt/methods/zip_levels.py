"""Units removed one at a time by the optimal brain surgeon, and the best number for every block: ZipLM."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np

from cahp_opt.arrays import Floats
from cahp_opt.costs.knapsack import best_counts
from cahp_opt.objectives import ExplainedVariance
from cahp_opt.problem import Problem
from cahp_opt.runs.method import Method, Needs, Task
from cahp_opt.runs.names import ObjectiveName
from cahp_opt.runs.recovery import Recovery
from cahp_opt.selection import Chooser, chooser
from cahp_opt.solver import Proposal, Solver
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.stats.needs import needs_of
from cahp_opt.subsets import BestSubsets, join_subsets


@dataclass(frozen=True)
class ZipLevels(Method):
    """In every block units go one at a time, each the one whose loss least squares on the others repairs best; how
    many go in each block is decided by dynamic programming over these levels.

    The error prior of a level is the squared error of the block's output over that of a block without any unit: 0
    where all units stay and 1 where none does. Published with blocks weighted by a search that runs the model, and
    with retraining between several rounds; here all blocks count the same, and there is one round. Errors are about
    the mean, since the refit repairs the bias.
    """

    source: ClassVar[str] = (
        "Kurtic, Frantar and Alistarh, ZipLM: Inference-Aware Structured Pruning of Language Models, "
        "arXiv 2302.04089"
    )
    published_with: ClassVar[Recovery] = Recovery.FINETUNE

    def needs(self, task: Task) -> Needs:
        """The moments of the outputs of all units."""
        del task
        return Needs(needs_of(ExplainedVariance.from_stats))

    def chooser(self, stats: HeadStats, task: Task) -> Chooser:
        """Removes the units, and chooses a level for every block."""
        objective = ExplainedVariance.from_stats(stats, relative=True)
        levels = Levels(tuple(_levels(objective, block) for block in range(len(objective.units))))
        return chooser(objective, levels, time_limit=task.time_limit, seed=task.seed)

    def remarks(self, stats: HeadStats) -> list[str]:
        """Those of the objective, if the outputs are constant."""
        return ObjectiveName.EXPLAINED_VARIANCE.remarks(stats)


@dataclass(frozen=True, eq=False)
class Levels(Solver):
    """One of a few keep-sets for every block.

    Cost: a knapsack over counts; the best of these keep-sets, and so heuristic; an objective that they are made from.

    Args:
        tables: for every block a keep-set of every size, and its value.
    """

    tables: tuple[BestSubsets, ...] = field(repr=False)

    def solve(self, problem: Problem, *, deadline: float, rng: np.random.Generator) -> Proposal:
        budget, values = problem.budget, [table.values for table in self.tables]
        found = best_counts(values, budget.allowed, budget.coupling, deadline).counts
        return Proposal(join_subsets(self.tables, budget.cheapest if found is None else found))


def _levels(objective: ExplainedVariance, block: int) -> BestSubsets:
    """The units of one block that stay at every level, with what they explain of the whole."""
    gram = objective.equations(block).gram
    found = removed_in_turn(gram, objective.factor(block), objective.units[block])
    return found.times(float(objective.weights[block]))


def removed_in_turn(gram: Floats, factor: Floats, units: int) -> BestSubsets:
    """Remove the units of a least-squares fit one at a time, the cheapest first, with a refit after each.

    With ``Q`` the inverse of the Gram matrix and ``B = H Q`` the fitted weights, removing the columns ``u`` loses
    ``tr(B_u Q_uu^-1 B_u')``, and conditioning both on that refits the rest.

    Args:
        gram: with its ridge, ``[d, d]``; every unit owns an equal share of the columns.
        factor: ``H``, ``[rows, d]``: the columns ``S`` explain ``tr(gram_SS^-1 H_S' H_S)``.
        units: their number.

    Returns:
        The units that stay at every level, and what they explain. More may be explained by as many others, up to
        what all units explain.
    """
    inverse: Floats = np.linalg.inv(gram).astype(np.float64, copy=False)
    fit = _Fit(inverse, factor @ inverse, len(gram) // units)
    values = np.zeros(units + 1)
    values[units] = np.vdot(fit.weights, factor)
    kept = np.zeros((units + 1, units), dtype=np.bool_)
    kept[units] = True
    left = np.arange(units)
    for count in range(units, 1, -1):
        losses = fit.losses()
        goes = int(np.argmin(losses))
        fit = fit.without(goes)
        left = np.delete(left, goes)
        kept[count - 1, left] = True
        values[count - 1] = values[count] - losses[goes]
    return BestSubsets(values, kept, np.full(units + 1, values[units]))


class _Fit(NamedTuple):
    """What is left of a least-squares fit: ``Q``, ``[d, d]``, ``B``, ``[rows, d]``, and the columns of a unit."""

    inverse: Floats
    weights: Floats
    width: int

    def losses(self) -> Floats:
        """What removing each of the units loses, ``[units]``."""
        count = len(self.inverse) // self.width
        every = np.arange(count)
        inner: Floats = self.inverse.reshape(count, self.width, count, self.width)
        own: Floats = self.weights.T.reshape(count, self.width, len(self.weights))
        solved: Floats = np.linalg.solve(inner[every, :, every, :], own).astype(np.float64)
        lost: Floats = (own * solved).sum(axis=(1, 2))
        return lost

    def without(self, unit: int) -> _Fit:
        """The same after a unit was removed and the others were refitted."""
        goes = np.zeros(len(self.inverse), dtype=np.bool_)
        goes[unit * self.width : (unit + 1) * self.width] = True
        inner, beside = self.inverse[goes][:, goes], self.inverse[goes][:, ~goes]
        across: Floats = np.linalg.solve(inner, beside).astype(np.float64)
        weights: Floats = self.weights[:, ~goes] - self.weights[:, goes] @ across
        return _Fit(self.inverse[~goes][:, ~goes] - beside.T @ across, weights, self.width)
