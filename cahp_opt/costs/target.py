"""Every constraint on a selection, as one value: goals, numbers of units, a range per block."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cahp_opt.costs.basis import Basis, recorded
from cahp_opt.costs.budget import Budget
from cahp_opt.costs.cost_table import CostTable
from cahp_opt.costs.count_table import distinct
from cahp_opt.costs.goals import Goal, LatencyGoal, ResourceGoal
from cahp_opt.costs.latency_table import LatencyTable
from cahp_opt.costs.profile import Profile
from cahp_opt.costs.prune import Prune
from cahp_opt.costs.quantities import KV_CACHE, QUANTITIES, RESOURCES, resource_of
from cahp_opt.space import HeadSpace


@dataclass(frozen=True)
class Target:
    """The constraints on a selection.

    Args:
        goals: latencies and resources; each needs its table in the profile.
        heads: the most units of attention kept in all.
        minimum: the fewest units kept per block, of both kinds.
        maximum: the most units kept per block of attention; None for all of them.
        multiple_of: units kept per block of attention are a multiple of it, or all.
        neurons: the largest share of all feed-forward neurons that is kept, above 0 and at most 1.
        even: whether all blocks of a kind keep the same number of units.

    Raises:
        ValueError: for another share of the neurons.
    """

    goals: tuple[Goal, ...] = ()
    heads: int | None = None
    minimum: int = 1
    maximum: int | None = None
    multiple_of: int = 1
    neurons: float | None = None
    even: bool = False

    def __post_init__(self) -> None:
        if self.neurons is not None and not 0 < self.neurons <= 1:
            raise ValueError(
                "`neurons` must be a share of the feed-forward neurons above 0 and at most 1, such as "
                f"0.5, got {self.neurons}."
            )

    @property
    def prune(self) -> Prune:
        """The kinds of blocks that its limits are about: both for a time, weights, bytes or what a meter
        reads; attention for a number of heads, a maximum per block and the key/value cache."""
        if any(goal.name != KV_CACHE for goal in self.goals):
            return Prune.BOTH
        heads = bool(self.goals) or self.heads is not None or self.maximum is not None
        return Prune.of(heads=heads, neurons=self.neurons is not None)

    @property
    def limits(self) -> bool:
        """Whether it limits anything; a minimum and multiples alone do not."""
        numbers = (self.heads, self.maximum, self.neurons)
        return bool(self.goals) or any(number is not None for number in numbers)

    @property
    def latencies(self) -> tuple[LatencyGoal, ...]:
        """The goals that are about time."""
        return tuple(goal for goal in self.goals if isinstance(goal, LatencyGoal))

    @property
    def metered(self) -> tuple[str, ...]:
        """The names of the resources that are limited and have to be measured."""
        names = (goal.name for goal in self.goals if isinstance(goal, ResourceGoal))
        return tuple(name for name in names if RESOURCES[resource_of(name)].meter)

    def verified(self, profile: Profile) -> list[tuple[str, Goal]]:
        """The goals about what is measured, with the names of their tables in the budget.

        Raises:
            ValueError: if the profile lacks a table.
        """
        names = distinct(goal.name for goal in self.goals)
        named = zip(names, self.goals, strict=True)
        return [(name, goal) for name, goal in named if goal.measured(profile)]

    def budget(
        self,
        space: HeadSpace,
        profile: Profile | None,
        model: str = "",
        *,
        unlimited: bool = False,
    ) -> Budget:
        """The budget over ``space``.

        Args:
            space: the blocks.
            profile: the tables that the goals are about; None if no goal needs one. They may be of more
                blocks, see :meth:`Profile.restricted`.
            model: the identity of the model that the blocks are of, where it is known, as
                :mod:`cahp_opt.identity` has it; a profile of another one is refused.
            unlimited: whether the costs of the :meth:`verified` goals are counted and not limited.

        Raises:
            BudgetError: if nothing meets it.
            ValueError: without any limit, or if the profile is missing, of another model, or lacks a table.
        """
        if not self.limits:
            raise ValueError(
                "nothing limits the selection; give `--latency`, `--parameters`, `--memory`, `--kv-cache`, "
                "`--heads`, `--neurons` or `--maximum`."
            )
        numbers = self.numbers(space)
        if not self.goals:
            return numbers
        if profile is None:
            raise ValueError(
                f"`{self.goals[0].option}` needs a latency table; give `--latency-table` too."
            )
        profile = profile.restricted(space)
        profile.check(model)
        tables = tuple(goal.table(profile) for goal in self.goals)
        if unlimited:
            names = {name for name, _ in self.verified(profile)}
            tables = tuple(
                t.without_limit() if name in names else t
                for name, t in zip(distinct(t.name for t in tables), tables, strict=True)
            )
        return replace(numbers, tables=(*tables, *numbers.tables))

    def numbers(self, space: HeadSpace) -> Budget:
        """The budget over ``space`` of all that needs no table: numbers of units and ranges per block.

        Raises:
            BudgetError: if nothing meets it.
            ValueError: if the space lacks the kind of blocks that a number is about.
        """
        self._check_kinds(space)
        budget = Budget(space, (), self.minimum, self.maximum, self.multiple_of, self.even)
        if self.heads is not None:
            budget &= Budget.heads(space, self.heads)
        if self.neurons is not None:
            budget &= Budget.neurons(space, self.neurons)
        return budget

    def _check_kinds(self, space: HeadSpace) -> None:
        """Refuse a number of units of a kind that is not pruned."""
        there, multiple = Prune.in_space(space), self.multiple_of if self.multiple_of > 1 else None
        numbers = {"--heads": self.heads, "--maximum": self.maximum, "--multiple-of": multiple}
        for option, number in numbers.items():
            if number is not None and not there.heads:
                raise ValueError(
                    f"`{option} {number}` is about attention, and neurons alone are pruned; leave it out, or "
                    "prune both kinds."
                )
        if self.neurons is not None and not there.neurons:
            raise ValueError(
                f"`--neurons {self.neurons:g}` is about feed-forward parts, and heads alone are pruned; leave "
                "it out, or prune both kinds."
            )

    def measured(self, profile: Profile | None) -> dict[str, CostTable]:
        """The measured tables that the goals are about, by name: of latencies, the workload's.

        Raises:
            ValueError: if the profile lacks one.
        """
        found: dict[str, CostTable] = {}
        if profile is not None:
            for goal in self.goals:
                found |= goal.measured(profile)
        return found

    def workloads(self, profile: Profile | None) -> dict[str, CostTable]:
        """The latency tables that the goals are about, by workload.

        Raises:
            ValueError: if the profile lacks one.
        """
        return {n: t for n, t in self.measured(profile).items() if isinstance(t, LatencyTable)}

    def remarks(self, profile: Profile | None) -> list[str]:
        """Sentences on reasons not to trust the latency tables of the goals.

        Raises:
            ValueError: if the profile lacks one.
        """
        told = [
            f"{name}: {remark}"
            for name, table in self.measured(profile).items()
            for remark in table.remarks
        ]
        if profile is not None and not profile.model and self._rests_on_measurements(profile):
            told.append(
                "the latency table does not say which model it is of, as those of earlier releases, so only "
                "names and units of the blocks were compared."
            )
        return told

    def _rests_on_measurements(self, profile: Profile) -> bool:
        """Whether a goal is about a table of a model, and not about one that was made by hand."""
        timed = self.measured(profile).values()
        counted = len(self.goals) > len(self.latencies) and not profile.latency
        return counted or any(table.measured for table in timed)

    def loose(self, space: HeadSpace, profile: Profile | None) -> list[str]:
        """Sentences on limits that the unpruned model meets anyway.

        Args:
            space: the units.
            profile: with the tables that the goals are about; None if there are none.

        Raises:
            ValueError: if the profile lacks a table.
        """
        sentences = list[str]()
        attention = [block.units for block in space.blocks if block.unit.of_attention]
        largest = max(attention, default=1)
        only = len(attention) == len(space.blocks)
        block, a_block = ("block", "a block") if only else ("attention block", "attention")
        if self.heads is not None and self.heads >= sum(attention):
            sentences.append(
                f"`--heads {self.heads}` limits nothing: there are {sum(attention)} units."
            )
        if self.neurons == 1:
            sentences.append("`--neurons 1` limits nothing: all neurons may stay.")
        if self.maximum is not None and self.maximum >= largest:
            sentences.append(
                f"`--maximum {self.maximum}` limits nothing: no {block} has more than {largest} units."
            )
        if self.multiple_of > largest:
            sentences.append(
                f"`--multiple-of {self.multiple_of}` leaves {a_block} whole or empty: none has that many "
                "units."
            )
        if profile is not None:
            profile = profile.restricted(space)
        tables = [] if profile is None else [goal.table(profile) for goal in self.goals]
        for goal, table in zip(self.goals, tables, strict=profile is not None):
            dense = table.cost([block.units for block in space.blocks])
            if dense <= table.limit or goal.ratio == 1:
                used = table.unit in QUANTITIES and not QUANTITIES[table.unit].counted
                amount = f"takes {dense:.4g}" if used else f"has {dense:,.0f}"
                sentences.append(
                    f"`{goal.option}` limits nothing: the unpruned model {amount} {table.unit}."
                )
        return sentences

    def basis(self, profile: Profile | None) -> Basis:
        """What the target rests on, for the record of a selection.

        Raises:
            ValueError: if the profile lacks a table.
        """
        tables = {n: recorded(t.dense, t.provenance) for n, t in self.measured(profile).items()}
        return Basis(self.goals, tables, tuple(self.remarks(profile)) if tables else ())
