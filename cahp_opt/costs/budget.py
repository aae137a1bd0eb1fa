"""Budgets: count tables with limits, and a range of units per block."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from math import floor, fsum, lcm

import numpy as np
import numpy.typing as npt

from cahp_opt.arrays import Bools, Floats, Ints, is_whole
from cahp_opt.costs.count_table import Cost, CountTable, count_arrays, distinct
from cahp_opt.costs.knapsack import BestCounts, best_counts
from cahp_opt.costs.latency_table import LatencyTable
from cahp_opt.space import HeadSpace

Counts = int | Sequence[int] | Ints
"""One number, or one per block."""


class BudgetError(ValueError):
    """No keep-set meets the budget; the message states the smallest reachable cost."""


@dataclass(frozen=True, eq=False)
class Budget:
    """Limits on count tables, all at once, with a fewest and a largest number of units per block.

    A budget sees only how many units each block keeps. Combine budgets with ``&``. The three ranges are the
    same for all constructors. One number as ``maximum`` or ``multiple_of`` is about attention alone: groups
    of neurons are as wide as they were asked for.

    Args:
        space: the blocks.
        tables: costs with their limits; each one must hold.
        minimum: fewest units per block, one number for blocks of both kinds or one per block.
        maximum: most units per block, one number for all attention or one per block; None for all units.
        multiple_of: every block keeps a multiple of this many units, one number for all attention or one
            per block; all units of a block may be kept in any case. Some hardware runs only such widths
            fast.
        even: whether all blocks of attention keep the same number of units, and so do all feed-forward
            blocks, as a configuration of the ordinary kind can state it. :func:`~cahp_opt.select` asks its
            solver once for each such number; a solver itself never sees such a budget.

    Raises:
        BudgetError: if no keep-set meets it.
        ValueError: for a bad argument.
    """

    space: HeadSpace
    tables: tuple[CountTable, ...] = ()
    minimum: Counts = 0
    maximum: Counts | None = None
    multiple_of: Counts = 1
    even: bool = False

    def __post_init__(self) -> None:
        space = self.space
        minimum = _per_block(space, self.minimum, "minimum")
        maximum = _per_block(
            space,
            space.units if self.maximum is None else self.maximum,
            "maximum",
            neurons=space.units,
        )
        object.__setattr__(self, "minimum", minimum)
        object.__setattr__(self, "maximum", np.minimum(maximum, space.units))
        multiples = _per_block(space, self.multiple_of, "multiple_of", least=1, neurons=1)
        object.__setattr__(self, "multiple_of", multiples)
        tables: list[CountTable] = []
        names = distinct(table.name for table in self.tables)
        for name, table in zip(names, self.tables, strict=True):
            costs = count_arrays(space, table.costs, f"costs of {table.name}")
            floors = np.array([table.fixed, table.least])
            if not (np.isfinite(table.limit) and np.all(np.isfinite(floors) & (floors >= 0))):
                raise ValueError(
                    f"`limit` of {table.name!r} must be finite and its `fixed` part and `least` finite "
                    f"and at least 0, got {table.limit}, {table.fixed} and {table.least}."
                )
            tables.append(replace(table, name=name, costs=costs))
        object.__setattr__(self, "tables", tuple(tables))
        self._refuse_unreachable()

    # -- constructors ------------------------------------------------------------------------------

    @staticmethod
    def heads(
        space: HeadSpace,
        limit: int,
        *,
        minimum: Counts = 0,
        maximum: Counts | None = None,
        multiple_of: Counts = 1,
    ) -> Budget:
        """Keep at most ``limit`` units of attention in all; neurons are not counted."""
        if not is_whole(limit) or limit < 0:
            raise ValueError(
                f"`limit` must be a whole number of units of at least 0, got {limit!r}."
            )
        if not space.of_attention.any():
            raise ValueError(
                "`Budget.heads` counts units of attention, and all blocks are feed-forward parts; limit "
                "those with `Budget.neurons`."
            )
        name = "units" if space.of_attention.all() else "attention units"
        table = CountTable(name, _counting(space, space.of_attention), float(limit))
        return Budget(space, (table,), minimum, maximum, multiple_of)

    @staticmethod
    def neurons(
        space: HeadSpace,
        share: float,
        *,
        minimum: Counts = 0,
        maximum: Counts | None = None,
        multiple_of: Counts = 1,
    ) -> Budget:
        """Keep at most this ``share`` of all feed-forward neurons, above 0 and at most 1; heads are not
        counted.

        Neurons are counted where every feed-forward block has an ``order``, which states its width;
        otherwise groups, with all blocks taken for equally wide.
        """
        if not 0 < share <= 1:
            raise ValueError(
                "`share` must be a share of the feed-forward neurons above 0 and at most 1, such as 0.5, "
                f"got {share!r}."
            )
        feed_forward = ~space.of_attention
        blocks = [block for block in space.blocks if not block.unit.of_attention]
        if not blocks:
            raise ValueError(
                "`Budget.neurons` counts feed-forward neurons, and all blocks are attention; limit those "
                "with `Budget.heads`."
            )
        if all(block.order is not None for block in blocks):
            widths = [len(block.order or ()) // block.units for block in blocks]
            unit = "neurons"
        else:
            whole = lcm(*(block.units for block in blocks))
            widths = [whole // block.units for block in blocks]
            unit = "neuron groups" if set(widths) == {1} else f"parts of a block in {whole}"
        weights = np.zeros(len(space.blocks), dtype=np.int64)
        weights[feed_forward] = widths
        costs = _counting(space, weights)
        whole_model = sum(int(cost[-1]) for cost in costs)
        # As the decimal number that was given: 0.29 of 100 neurons are 29.
        limit = floor(Fraction(repr(float(share))) * whole_model)
        table = CountTable("neurons", costs, float(limit), unit=unit)
        return Budget(space, (table,), minimum, maximum, multiple_of)

    @staticmethod
    def heads_per_block(
        space: HeadSpace, limit: Counts, *, minimum: Counts = 0, multiple_of: Counts = 1
    ) -> Budget:
        """Keep at most ``limit`` units in every block; one number for all attention, or one per
        block."""
        return Budget(space, (), minimum, limit, multiple_of)

    @staticmethod
    def latency(
        table: LatencyTable,
        ratio: float | None = None,
        *,
        seconds: float | None = None,
        minimum: Counts = 0,
        maximum: Counts | None = None,
        multiple_of: Counts = 1,
    ) -> Budget:
        """Take at most ``ratio`` of the unpruned end-to-end time, or at most ``seconds``."""
        if (ratio is None) == (seconds is None):
            raise ValueError("give either `ratio` or `seconds`, and not both.")
        if ratio is not None:
            _positive("ratio", ratio)
            limit = table.dense if ratio == 1 else ratio * table.dense
        else:
            limit = _positive("seconds", seconds)
        costs = table.within(limit, "latency")
        return Budget(table.space, (costs,), minimum, maximum, multiple_of)

    @staticmethod
    def latency_per_block(
        table: LatencyTable, ratio: float, *, minimum: Counts = 0, multiple_of: Counts = 1
    ) -> Budget:
        """Every block takes at most ``ratio`` of its own unpruned time."""
        _positive("ratio", ratio)
        zeros = tuple(np.zeros_like(s) for s in table.seconds)
        tables = tuple(
            CountTable(
                f"latency of {block.name}",
                (*zeros[:b], seconds, *zeros[b + 1 :]),
                ratio * float(seconds[-1]),
                unit="s",
            )
            for b, (block, seconds) in enumerate(
                zip(table.space.blocks, table.seconds, strict=True)
            )
        )
        return Budget(table.space, tables, minimum, None, multiple_of)

    @staticmethod
    def table(
        space: HeadSpace,
        costs: Sequence[npt.ArrayLike],
        limit: float,
        *,
        name: str = "cost",
        fixed: float = 0.0,
        unit: str = "",
        minimum: Counts = 0,
        maximum: Counts | None = None,
        multiple_of: Counts = 1,
    ) -> Budget:
        """Any cost of your own: the sum of ``costs[b][k]`` for ``k`` units kept in block ``b``,
        with ``costs[b]`` of shape ``[units + 1]``."""
        arrays = count_arrays(space, costs, "costs")
        costs_and_limit = CountTable(name, arrays, float(limit), fixed, unit)
        return Budget(space, (costs_and_limit,), minimum, maximum, multiple_of)

    def __and__(self, other: Budget) -> Budget:
        """Both budgets at once."""
        difference = self.space.difference(other.space)
        if difference:
            raise ValueError(f"two budgets of different models cannot be combined: {difference}.")
        return Budget(
            self.space.ordered_as(other.space),
            self.tables + other.tables,
            np.maximum(self.fewest, other.fewest),
            np.minimum(self.most, other.most),
            np.lcm(self.multiples, other.multiples),
            self.even or other.even,
        )

    def with_limit(self, limit: float, *, table: str | None = None) -> Budget:
        """The same budget with another limit of one table.

        Args:
            limit: the new limit, in the table's unit, everything outside the blocks included.
            table: the table's name; None for the first.

        Raises:
            BudgetError: if no keep-set meets it.
            ValueError: if there is no such table.
        """
        chosen = self.table_named(table)
        tables = tuple(replace(t, limit=float(limit)) if t is chosen else t for t in self.tables)
        return replace(self, tables=tables)

    def table_named(self, name: str | None) -> CountTable:
        """The table of this name, or the first.

        Raises:
            ValueError: if there is none.
        """
        for table in self.tables:
            if name is None or table.name == name:
                return table
        raise ValueError(
            f"`table` must be one of {[t.name for t in self.tables]}, got {name!r}; a budget of counts "
            "per block alone has no table to vary."
        )

    # -- questions ---------------------------------------------------------------------------------

    @property
    def fewest(self) -> Ints:
        """Fewest units per block, ``[blocks]``."""
        return np.asarray(self.minimum, dtype=np.int64)

    @property
    def most(self) -> Ints:
        """Most units per block, ``[blocks]``."""
        return np.asarray(self.maximum, dtype=np.int64)

    @property
    def multiples(self) -> Ints:
        """The required divisor of the units of every block, ``[blocks]``."""
        return np.asarray(self.multiple_of, dtype=np.int64)

    def floors(self) -> dict[str, float]:
        """By table name: the smallest cost that this table alone can reach within the ranges."""
        return {table.name: self._floor(table) for table in self.tables}

    def cheapest_by(self, table: CountTable) -> Ints:
        """The counts that one of its tables alone makes cheapest, ``[blocks]``, with the fewest units among
        equals; they may break the limits of others."""
        if self.even:
            return min(self._common, key=table.cost)
        pairs = zip(table.costs, self.allowed, strict=True)
        counts = [int(np.flatnonzero(fine)[np.argmin(cost[fine])]) for cost, fine in pairs]
        return np.array(counts, dtype=np.int64)

    @cached_property
    def even_counts(self) -> tuple[Ints, ...]:
        """The counts within the budget, ``[blocks]`` each, that are the same in all blocks of a kind; if it
        is :attr:`even`, there are no others."""
        return tuple(c for c in self._common if all(table.fits(c) for table in self.tables))

    def pinned(self, counts: Ints) -> Budget:
        """The budget that allows only these of its counts, ``[blocks]``, with the same costs."""
        return Budget(self.space, self.tables, counts, counts)

    def costs(self, counts: Ints) -> dict[str, Cost]:
        """By table name: the cost of these counts, ``[blocks]``, its limit and its unit."""
        return {t.name: Cost(t.cost(counts), t.limit, t.unit) for t in self.tables}

    def violation(self, counts: Ints) -> str | None:
        """The first limit that these counts, ``[blocks]``, break, as a sentence; None if they are
        within the budget."""
        for block, count, least, most, multiple in zip(
            self.space.blocks, counts, self.fewest, self.most, self.multiples, strict=True
        ):
            if not least <= count <= most:
                return (
                    f"block {block.name!r} keeps {count} units, and {least} to {most} are allowed."
                )
            if count % multiple and count != block.units:
                return (
                    f"block {block.name!r} keeps {count} of {block.units} units, which is not a "
                    f"multiple of {multiple}."
                )
        for kind in self._kinds if self.even else ():
            first, other = kind[0], kind[int(np.argmax(counts[kind] != counts[kind[0]]))]
            if counts[other] != counts[first]:
                names = [self.space.blocks[b].name for b in (first, other)]
                return (
                    f"block {names[0]!r} keeps {counts[first]} units and block {names[1]!r} "
                    f"{counts[other]}, and all blocks of a kind are to keep the same number."
                )
        for table in self.tables:
            if not table.fits(counts):
                return (
                    f"{table.name} is {table.cost(counts):.6g}, and the limit is {table.limit:.6g}."
                )
        return None

    def allows(self, counts: Ints) -> bool:
        """Whether these counts, ``[blocks]``, are within the budget."""
        return self.violation(counts) is None

    @cached_property
    def allowed(self) -> tuple[Bools, ...]:
        """For every block a bool ``[units + 1]``: the counts that limits on that block alone allow."""
        result: list[Bools] = []
        for b, fine in enumerate(self._in_range):
            for table in self.tables:
                if table.only_block == b:
                    others = [
                        table.fixed,
                        *(float(c[0]) for i, c in enumerate(table.costs) if i != b),
                    ]
                    within = [fsum([*others, float(c)]) <= table.limit for c in table.costs[b]]
                    fine = fine & np.array(within)
            result.append(fine)
        return tuple(result)

    @cached_property
    def coupling(self) -> tuple[CountTable, ...]:
        """The tables that tie several blocks together, as plain sums.

        Their ``least`` is 0: it lies within the limit of any budget, and so decides nothing.
        """
        tying = (table for table in self.tables if table.only_block is None)
        return tuple(replace(table, least=0.0) for table in tying)

    @cached_property
    def cheapest(self) -> Ints:
        """Counts within the budget that cost little, ``[blocks]``, for the start of a search."""
        best = self._independent_cheapest()
        if best is not None:
            return best
        if self.even:
            found = BestCounts(next(iter(self.even_counts), None), 0.0, -np.inf)
        else:
            zeros = [np.zeros(units + 1) for units in self.space.units]
            found = best_counts(zeros, self.allowed, self.coupling)
        if found.counts is None:
            missing = "meet" if found.bound == -np.inf else "were found that meet"
            floors = "; ".join(
                f"{t.name} alone can reach {_amount(t, t.cost(self.cheapest_by(t)))} "
                f"(limit {_amount(t, t.limit)})"
                for t in self.tables
                if t.only_block is None or self.even
            )
            raise BudgetError(
                f"no counts {missing} all limits at once: {floors}. Raise one of the limits."
            )
        return found.counts

    def _independent_cheapest(self) -> Ints | None:
        """The counts that are cheapest for every table at once, if there are such."""
        counts: list[int] = []
        for b, fine in enumerate(self.allowed):
            options = np.flatnonzero(fine)
            if not self.coupling:
                counts.append(int(options[0]))
                continue
            columns = np.array([table.costs[b][options] for table in self.coupling])
            every = np.all(columns == columns.min(axis=1, keepdims=True), axis=0)
            if not every.any():
                return None
            counts.append(int(options[np.argmax(every)]))
        array = np.array(counts, dtype=np.int64)
        return array if self.allows(array) else None

    def _floor(self, table: CountTable) -> float:
        """The smallest cost that a table alone can reach within the ranges."""
        if self.even:
            return min(map(table.cost, self._common))
        return table.smallest(self._in_range)

    @property
    def _kinds(self) -> list[list[int]]:
        """The blocks of attention and the feed-forward blocks, by their places, without what is empty."""
        attention = self.space.of_attention
        kinds: list[list[int]] = [np.flatnonzero(a).tolist() for a in (attention, ~attention)]
        return [kind for kind in kinds if kind]

    @cached_property
    def _common(self) -> tuple[Ints, ...]:
        """The counts within the ranges that are the same in all blocks of a kind, fewest units first."""
        ranges, kinds = self._in_range, self._kinds
        choices = [
            [
                k
                for k in range(int(min(self.space.units[kind])) + 1)
                if all(ranges[b][k] for b in kind)
            ]
            for kind in kinds
        ]
        found: list[Ints] = []
        for choice in itertools.product(*choices):
            counts = np.zeros(len(self.space.blocks), dtype=np.int64)
            for kind, count in zip(kinds, choice, strict=True):
                counts[kind] = count
            found.append(counts)
        return tuple(sorted(found, key=lambda counts: int(counts.sum())))

    @cached_property
    def _in_range(self) -> tuple[Bools, ...]:
        """For every block a bool ``[units + 1]``: the multiples from the least to the most."""
        result: list[Bools] = []
        for block, least, most, multiple in zip(
            self.space.blocks, self.fewest, self.most, self.multiples, strict=True
        ):
            k = np.arange(block.units + 1)
            whole = (k % multiple == 0) | (k == block.units)
            result.append(whole & (k >= least) & (k <= most))
        return tuple(result)

    def _refuse_unreachable(self) -> None:
        for block, least, most in zip(self.space.blocks, self.fewest, self.most, strict=True):
            if least > most:
                raise BudgetError(
                    f"block {block.name!r} must keep at least {least} units and may keep at most "
                    f"{most} of its {block.units}; lower `minimum` or raise `maximum`."
                )
        ranges = self._in_range
        for b, (block, fine) in enumerate(zip(self.space.blocks, ranges, strict=True)):
            if not fine.any():
                raise BudgetError(
                    f"block {block.name!r} must keep {self.fewest[b]} to {self.most[b]} of its "
                    f"{block.units} units, and none of that is a multiple of {self.multiples[b]}; change "
                    "`minimum`, `maximum` or `multiple_of`."
                )
        if self.even and not self._common:
            raise BudgetError(
                "no number of units is allowed in all blocks of a kind at once, and `even` asks for one; change "
                "`minimum`, `maximum` or `multiple_of`, or leave `even` out."
            )
        for table in self.tables:
            floor = self._floor(table)
            if floor > table.limit:
                raise BudgetError(_unreachable(table, floor, table.cost(self.space.units)))
        for block, fine in zip(self.space.blocks, self.allowed, strict=True):
            if not fine.any():
                raise BudgetError(
                    f"no count of block {block.name!r} meets all of its limits at once; raise one."
                )
        _ = self.cheapest  # raises if the limits exclude each other


def _unreachable(table: CountTable, floor: float, full: float) -> str:
    """The sentence for a limit below the ``floor``; ``full`` is the cost of the unpruned model."""
    share = f" ({floor / full:.3g} of the unpruned {_amount(table, full)})" if full else ""
    told = (
        f"`{table.name}` of at most {_amount(table, table.limit)} cannot be met: the smallest reachable "
        f"is {_amount(table, floor)}{share}"
    )
    if table.least <= table.limit:
        return f"{told}; raise the limit to at least that, or lower `minimum` or `multiple_of`."
    if table.unit != "s":
        return f"{told}, and it is never below {_amount(table, table.least)}; raise the limit."
    return (
        f"{told}; launching the kernels alone takes {_amount(table, table.least)}, however few units are "
        "kept: measure with CUDA graphs, torch.compile or a larger batch, or raise the limit."
    )


def _amount(table: CountTable, cost: float) -> str:
    """A cost with its unit, for a sentence: large whole numbers in full."""
    number = f"{cost:,.0f}" if 1e6 <= abs(cost) < 1e15 and cost.is_integer() else f"{cost:.6g}"
    return f"{number} {table.unit}" if table.unit else number


def _positive(argument: str, x: float | None) -> float:
    if x is None or not (np.isfinite(x) and x > 0):
        raise ValueError(f"`{argument}` must be a finite number above 0, got {x}.")
    return float(x)


def _counting(space: HeadSpace, weights: Bools | Ints) -> tuple[Floats, ...]:
    """What every count of every block costs where a unit costs its block's weight, ``[blocks]``."""
    return tuple(
        float(weight) * np.arange(units + 1, dtype=np.float64)
        for weight, units in zip(weights, space.units, strict=True)
    )


def _per_block(
    space: HeadSpace,
    given: Counts,
    argument: str,
    *,
    least: int = 0,
    neurons: int | Ints | None = None,
) -> Ints:
    """A whole number per block, ``[blocks]``.

    Args:
        space: the blocks.
        given: as it was given.
        argument: its name.
        least: the smallest number allowed.
        neurons: what holds for feed-forward blocks if one number is given; None for that number.
    """
    array, shape = np.asarray(given), (len(space.blocks),)
    if not np.issubdtype(array.dtype, np.integer) or array.shape not in ((), shape):
        raise ValueError(
            f"`{argument}` must be a whole number, or {len(space.blocks)} of them (one per block), "
            f"got {given!r}."
        )
    if np.any(array < least):
        raise ValueError(f"`{argument}` must be at least {least}, got {given!r}.")
    if array.ndim or neurons is None:
        return np.broadcast_to(array.astype(np.int64), shape).copy()
    found: Ints = np.where(space.of_attention, array, neurons).astype(np.int64)
    if not space.of_attention.any() and np.any(found != array):
        raise ValueError(
            f"`{argument}` as one number, {given!r}, is about attention, and all blocks are feed-forward "
            "parts; give one number per block."
        )
    return found
