"""The law of budgets: what is kept stays within every limit and range, and costs what it is said to cost."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from cahp_opt.arrays import Ints
from cahp_opt.costs.budget import Budget
from cahp_opt.costs.count_table import Cost, CountTable
from cahp_opt.testing.broken_law import require


def check_within(name: str, budget: Budget, counts: Ints) -> None:
    """The budget holds, computed here from the counts.

    Args:
        name: of the class that chose.
        budget: the limits and ranges.
        counts: units kept per block, ``[blocks]``.

    Raises:
        BrokenLaw: naming the limit.
    """
    space = budget.space
    uneven = counts % budget.multiples > 0
    require(
        np.all(budget.fewest <= counts)
        and np.all(counts <= budget.most)
        and np.all(counts[uneven] == space.units[uneven]),
        f"`{name}` keeps {counts.tolist()} units per block, and the budget allows from "
        f"{budget.fewest.tolist()} to {budget.most.tolist()} in multiples of {budget.multiples.tolist()}.",
    )
    for kind in (space.of_attention, ~space.of_attention):
        require(
            not budget.even or len(set(counts[kind].tolist())) <= 1,
            f"`{name}` keeps {counts.tolist()} units per block, and the budget is even.",
        )
    for table in budget.tables:
        cost = _cost(table, counts)
        require(
            cost <= table.limit * (1 + 1e-12),
            f"the selection of `{name}` costs {cost} of {table.limit} by {table.name}.",
        )


def check_costs(name: str, budget: Budget, counts: Ints, told: Mapping[str, Cost]) -> None:
    """The costs that a selection tells are those of its counts.

    Args:
        name: of the class that chose.
        budget: the limits.
        counts: units kept per block, ``[blocks]``.
        told: by table.

    Raises:
        BrokenLaw: naming the table.
    """
    for table in budget.tables:
        cost, of_table = _cost(table, counts), told[table.name]
        require(
            math.isclose(of_table.value, cost, rel_tol=1e-12, abs_tol=1e-15)
            and (of_table.limit, of_table.unit) == (table.limit, table.unit),
            f"the selection of `{name}` costs {cost} of {table.limit} by {table.name}, and tells {of_table}.",
        )


def _cost(table: CountTable, counts: Ints) -> float:
    own = sum(c[k] for c, k in zip(table.costs, counts, strict=True))
    return float(max(table.least, table.fixed + own))
