"""Methods: ways of choosing the units to keep, published ones and your own."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import numpy as np

from cahp_opt.arrays import Ints
from cahp_opt.costs.budget import Budget
from cahp_opt.costs.profile import Profile
from cahp_opt.costs.prune import Prune
from cahp_opt.costs.target import Target
from cahp_opt.runs.measuring import Measuring, MeasuringOptions
from cahp_opt.runs.recovery import Recovery
from cahp_opt.selection import Chooser, Selection
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.stats.pooling import provenance_of
from cahp_opt.stats.statistic import Statistic
from cahp_opt.stats.totals import PairsByDensity
from cahp_opt.version import __version__


@dataclass(frozen=True)
class Task:
    """What a method is asked for.

    Args:
        budget: what the selection may cost; its space is what is chosen from.
        recovery: how the sliced model is repaired.
        embeds: whether the output is an embedding, pooled over the tokens.
        labelled: whether the calibration texts have labels that the model takes.
        seed: of every random choice.
        time_limit: seconds that a solver may take; None for no limit.
    """

    budget: Budget
    recovery: Recovery = Recovery.REFIT
    embeds: bool = False
    labelled: bool = False
    seed: int = 0
    time_limit: float | None = None

    @cached_property
    def even(self) -> Ints:
        """Counts that are as even over the blocks, as shares of their units, as the budget has room for,
        ``[blocks]``: from the fewest, the block with the smallest share gets the next units that fit."""
        budget = self.budget
        if budget.even:
            return max(budget.even_counts, key=lambda counts: int(counts.sum()))
        counts, units = budget.cheapest.copy(), budget.space.units
        steps = budget.multiples
        grown = True
        while grown:
            grown = False
            for block in np.argsort(counts / units, kind="stable"):
                more = counts.copy()
                more[block] = min(counts[block] + steps[block], units[block])
                if more[block] > counts[block] and budget.allows(more):
                    counts, grown = more, True
                    break
        return counts

    @property
    def density(self) -> float:
        """The share of all units that even counts keep, above 0 and at most 1."""
        return max(round(float(self.even.sum()) / self.budget.space.n, 3), 0.001)


@dataclass(frozen=True)
class Needs:
    """What calibration has to measure for a method.

    Args:
        statistics: their names, as :data:`cahp_opt.stats.registry.STATISTICS` has them.
        densities: of the random masks of ``gauss_newton`` and ``fisher``; empty for the usual ones.
        refitted: whether what is left will be refitted, as :class:`~cahp_opt.runs.measuring.Measuring` has it;
            the recovery decides, whatever a method says.
    """

    statistics: frozenset[str] = frozenset()
    densities: tuple[float, ...] = ()
    refitted: bool = True

    def measuring(self, amounts: MeasuringOptions) -> Measuring:
        """This much of the statistics."""
        found = replace(amounts.of(self.statistics), refitted=self.refitted)
        return replace(found, densities=self.densities) if self.densities else found

    def of(self, stats: HeadStats) -> HeadStats:
        """These statistics alone, out of some that were measured for several methods together.

        What a method makes of them so depends on nothing that others need: a matrix whose density is not
        named is that of the smallest density there is.
        """
        measured = self.measuring(MeasuringOptions())
        found = dict[str, Statistic]()
        for name, statistic in stats.statistics.items():
            if name not in measured:
                continue
            if isinstance(statistic, PairsByDensity):
                own = {rho: statistic[rho] for rho in measured.densities if rho in statistic}
                statistic = PairsByDensity(own)
            found[name] = statistic
        return replace(stats, statistics=found)


class Method(ABC):
    """A way of choosing the units to keep: a frozen dataclass of options, all with defaults.

    A method states what calibration measures for it (:meth:`needs`), and makes of that a function that chooses
    within a budget (:meth:`chooser`). One that runs the model itself derives from
    :class:`cahp_opt.torch.methods.model_method.ModelMethod`.
    """

    source: ClassVar[str]
    """Where it was published."""
    published_with: ClassVar[Recovery] = Recovery.NONE
    """The recovery that it was published with, or the one nearest to it."""
    prunes: ClassVar[Prune] = Prune.BOTH
    """The kinds of blocks that it can choose from."""
    labels: ClassVar[bool] = False
    """Whether the calibration texts must have labels."""

    @property
    def name(self) -> str:
        """The name on the command line and in tables: that of the class in lower case, with hyphens."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", type(self).__name__).lower()

    def needs(self, task: Task) -> Needs:
        """What calibration has to measure; by itself nothing."""
        del task
        return Needs()

    @abstractmethod
    def chooser(self, stats: HeadStats, task: Task) -> Chooser:
        """The function that chooses within a budget.

        It is called again, with another budget over the same units, where the time of a sliced model misses its limit.

        Args:
            stats: with at least what :meth:`needs` names.
            task: what is asked for; budgets that follow are over the same space.

        Raises:
            ValueError: if the statistics lack something.
        """

    def remarks(self, stats: HeadStats) -> list[str]:
        """Sentences on what makes a choice from these statistics arbitrary."""
        del stats
        return []

    def check(self, task: Task) -> None:
        """Refuse, before anything is measured, what the method cannot do.

        Args:
            task: what will be asked for; its budget may still be without limits.

        Raises:
            ValueError: naming the way out.
        """
        space = task.budget.space
        if self.labels and not task.labelled:
            raise ValueError(
                f"`--method {self.name}` needs labelled texts, and these have no labels that the model takes; give a "
                "classifier `--data` with a column label, or another method."
            )
        held = Prune.in_space(space)
        if self.prunes is not Prune.BOTH and held is not self.prunes:
            raise ValueError(
                f"`--method {self.name}` chooses {self.prunes.value} only; give `--prune {self.prunes.value}`, or "
                "another method."
            )

    def facts(self, task: Task) -> Mapping[str, str]:
        """What a selection's provenance says of the method."""
        del task
        return {"method": self.name}


def measured_for(method: Method, task: Task, amounts: MeasuringOptions) -> Measuring:
    """What calibration measures for a method, with neurons in the order that suits the recovery."""
    measuring = method.needs(task).measuring(amounts)
    return replace(measuring, refitted=task.recovery.refits)


def trusted(method: Method, chooser: Chooser) -> Chooser:
    """The same function, whose selections are checked against their budgets, and get their costs from there.

    Raises:
        RuntimeError: when called, if a selection is outside of its budget; this is a bug in the method.
    """

    def choose(budget: Budget) -> Selection:
        selection = chooser(budget)
        broken = budget.violation(selection.counts)
        if broken is not None:
            raise RuntimeError(
                f"`{type(method).__name__}` chose units outside of the budget: {broken} This is a bug."
            )
        return replace(selection, costs=budget.costs(selection.counts))

    return choose


def choose_by(
    method: Method,
    stats: HeadStats,
    task: Task,
    target: Target,
    profile: Profile | None = None,
) -> Selection:
    """The selection of a method that needs statistics alone; its provenance states what it was made from.

    Args:
        method: the method.
        stats: what calibration measured.
        task: what is asked for, with the budget of the target.
        target: the goals and limits, for the record.
        profile: the tables of the goals.

    Raises:
        ValueError: if the records do not fit each other or the method.
    """
    method.check(task)
    selection = trusted(method, method.chooser(stats, task))(task.budget)
    return with_provenance(selection, method, task, stats, target, profile)


def with_provenance(
    selection: Selection,
    method: Method,
    task: Task,
    stats: HeadStats,
    target: Target,
    profile: Profile | None,
) -> Selection:
    """The selection with what it was made from, and how.

    Raises:
        ValueError: if the profile lacks a table.
    """
    facts = {
        "model": stats.model,
        **method.facts(task),
        "cahp-opt": __version__,
        **provenance_of(stats.pooling),
    }
    return replace(selection, provenance=facts, basis=target.basis(profile))
