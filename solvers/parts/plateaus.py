"""Where the plateaus of the budget's costs end."""

from __future__ import annotations

import numpy as np

from cahp_opt.arrays import Bools
from cahp_opt.costs.budget import Budget


def plateau_ends(budget: Budget) -> list[Bools]:
    """For every block a bool ``[units + 1]``: whether one more unit is forbidden or costs more."""
    result: list[Bools] = []
    for b, allowed in enumerate(budget.allowed):
        ends = np.ones(len(allowed), dtype=np.bool_)
        free = allowed[1:].copy()
        for table in budget.coupling:
            free &= table.costs[b][1:] <= table.costs[b][:-1]
        ends[:-1] = ~free
        result.append(ends)
    return result
