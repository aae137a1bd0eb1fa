"""Budgets for choosing in stages: on the way to a budget, and over the units that are left."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import fsum, inf

import numpy as np

from cahp_opt.arrays import Bools, Floats
from cahp_opt.costs.budget import Budget
from cahp_opt.costs.count_table import CountTable
from cahp_opt.space import Block, HeadSpace


def on_the_way(budget: Budget, share: float) -> Budget:
    """The budget of a stage on the way from the unpruned model to ``budget``.

    Limits and the most units per block lie between those of the unpruned model and those of the budget, as
    ``unpruned^(1 - share) * limit^share``. Every block keeps at least what the cheapest counts of the budget
    keep, so that the budget can still be met behind the stage.

    Args:
        budget: the end of the way.
        share: of the way, from 0 to 1.
    """
    units = budget.space.units
    tables = tuple(
        replace(table, limit=max(table.limit, _between(table.cost(units), table.limit, share)))
        for table in budget.tables
    )
    pairs = zip(units, budget.most, strict=True)
    between = [round(_between(float(unit), float(limit), share)) for unit, limit in pairs]
    most = np.maximum(np.array(between, dtype=np.int64), budget.most)
    return Budget(budget.space, tables, budget.cheapest, most, even=budget.even)


def over_what_is_left(budget: Budget, left: Bools) -> Budget:
    """The budget over the units that are left, in the blocks that have any.

    Args:
        budget: over all units.
        left: which units are left, bool ``[n]``; as many in every block at least as the cheapest counts of the
            budget keep.

    Raises:
        BudgetError: if they are fewer, and nothing meets the budget any more.
    """
    counts, cheapest = budget.space.counts(left), budget.cheapest
    alive = np.flatnonzero(counts)
    blocks = budget.space.blocks
    space = HeadSpace(tuple(Block(blocks[b].name, int(counts[b]), blocks[b].unit) for b in alive))
    tables: list[CountTable] = []
    for table in budget.coupling:
        gone = [float(table.costs[b][0]) for b in np.flatnonzero(counts == 0)]
        costs = tuple(table.costs[b][: counts[b] + 1] for b in alive)
        narrow = replace(table, costs=costs, fixed=_rounded_up([table.fixed, *gone]))
        if np.all(cheapest <= counts):  # these are certain to be allowed
            narrow = replace(narrow, limit=max(table.limit, narrow.cost(cheapest[alive])))
        tables.append(narrow)
    tables += [
        _widths(space, place, budget.allowed[b][: counts[b] + 1])
        for place, b in enumerate(alive.tolist())
    ]
    return Budget(space, tuple(tables), multiple_of=budget.multiples[alive], even=budget.even)


def _between(unpruned: float, limit: float, share: float) -> float:
    if min(unpruned, limit) <= 0:
        return unpruned + share * (limit - unpruned)
    return float(unpruned ** (1 - share) * limit**share)


def _rounded_up(parts: list[float]) -> float:
    """The sum, no smaller than it is exactly, so that what it allows is within the whole budget too."""
    found = fsum(parts)
    return (
        found if Fraction(found) >= sum(map(Fraction, parts)) else float(np.nextafter(found, inf))
    )


def _widths(space: HeadSpace, block: int, allowed: Bools) -> CountTable:
    """Only these counts of one block, bool ``[units + 1]``, as a cost."""
    costs: list[Floats] = [np.zeros(units + 1) for units in space.units]
    costs[block] = (~allowed).astype(np.float64)
    return CountTable(f"widths of {space.blocks[block].name}", tuple(costs), 0.0)
